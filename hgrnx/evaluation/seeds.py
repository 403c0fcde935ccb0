"""Is one recipe better than another on a task, whatever the seed and whatever the paradigms (subtasks) it is made of?

A bootstrap over two crossed levels. Both recipes were trained with several seeds, and every one of these models was
asked the same paradigms: score = recipe + seed + paradigm + what only that seed finds in that paradigm.

- Paradigms are drawn anew, with replacement. Items are not drawn beneath them: how far the items of a paradigm happen
  to favour one side is part of how far paradigms differ, and to draw them as well would count it twice (Cameron and
  Miller 2015, doi:10.3368/jhr.50.2.317, on clusters within clusters).
- Three seeds cannot be drawn anew: there are ten different outcomes, and their spread is a third too small. The mean
  over seeds is drawn from Student's t instead, with Welch's degrees of freedom, which is exact where seeds differ
  normally. For the same reason draws over P paradigms are widened by P / (P - 1) and by the error of their variance.
- What only a seed finds in a paradigm is in the spread of both levels. The paradigms' is narrowed by it.

The recipes' seeds count as independent. Where they share something (a student and its twin: the first weights and the
order of the batches), the interval is too wide rather than too narrow.

Shapes: R draws, S seeds, P paradigms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 20_000
_LEVEL = (2.5, 97.5)


@dataclass(frozen=True)
class SeedDifference:
    """The mean score of one recipe minus another's, in the unit of the scores."""

    difference: float
    interval: tuple[float, float]
    """95%."""
    p: float
    """Two-sided: how often a draw is on the other side of zero, times two; at least 2 / (R + 1)."""
    seeds: tuple[int, int]
    """Runs of each recipe."""
    paradigms: int

    @property
    def knows_seeds(self) -> bool:
        """Whether other seeds are in the interval. With one seed it is of these two models, and says nothing else."""
        return min(self.seeds) > 1


def seed_difference(
    first_SP: np.ndarray, second_SP: np.ndarray, weights_P: Sequence[float] | None = None
) -> SeedDifference | None:
    """Compare two recipes; None where there is nothing to estimate an error from (one paradigm, one seed).

    Args:
        first_SP, second_SP: scores by seed and paradigm; the same paradigms, not necessarily as many seeds. A single
            paradigm (``[S, 1]``) for a measure that has none, such as bits per byte.
        weights_P: of the paradigms in the task's score; equal when None.
    """
    first_SP, second_SP = np.asarray(first_SP, dtype=np.float64), np.asarray(second_SP, dtype=np.float64)
    assert first_SP.ndim == second_SP.ndim == 2 and first_SP.shape[1] == second_SP.shape[1]
    paradigms = first_SP.shape[1]
    weight_P = np.ones(paradigms) if weights_P is None else np.asarray(weights_P, dtype=np.float64)
    seeds = (len(first_SP), len(second_SP))
    if paradigms == 1 and min(seeds) == 1:
        return None
    random = np.random.default_rng(0)
    gap_P = first_SP.mean(0) - second_SP.mean(0)
    difference = float(np.average(gap_P, weights=weight_P))
    draws_R = np.full(DRAWS, difference)
    noise = 0.0
    if min(seeds) > 1:
        errors = [
            np.average(scores, axis=1, weights=weight_P).var(ddof=1) / len(scores) for scores in (first_SP, second_SP)
        ]
        if sum(errors) > 0:
            freedom = sum(errors) ** 2 / sum(error**2 / (count - 1) for error, count in zip(errors, seeds, strict=True))
            draws_R += math.sqrt(sum(errors)) * random.standard_t(freedom, DRAWS)
        noise = _own_finds(first_SP) / seeds[0] + _own_finds(second_SP) / seeds[1]
    if paradigms > 1:
        chosen_RP = random.integers(0, paradigms, size=(DRAWS, paradigms))
        means_R = np.average((gap_P - difference)[chosen_RP], axis=1, weights=weight_P[chosen_RP])
        spread = gap_P.var(ddof=1)
        own = max(0.0, 1 - noise / spread) if spread > 0 else 0.0
        variance_R = random.chisquare(paradigms - 1, DRAWS) / (paradigms - 1)
        draws_R += means_R * np.sqrt(own * paradigms / (paradigms - 1) / variance_R)
    below, above = int((draws_R <= 0).sum()), int((draws_R >= 0).sum())
    low, high = np.percentile(draws_R, _LEVEL)
    return SeedDifference(
        difference,
        (float(low), float(high)),
        min(1.0, 2 * (min(below, above) + 1) / (DRAWS + 1)),
        seeds,
        paradigms,
    )


def _own_finds(scores_SP: np.ndarray) -> float:
    """Variance of what only a seed finds in a paradigm: the residual of an additive model of both."""
    seeds, paradigms = scores_SP.shape
    if paradigms == 1:
        return 0.0
    left_SP = scores_SP - scores_SP.mean(0) - scores_SP.mean(1, keepdims=True) + scores_SP.mean()
    return float((left_SP**2).sum() / ((seeds - 1) * (paradigms - 1)))
