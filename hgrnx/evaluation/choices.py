"""Multiple choice by log-probability: which of several texts does the model prefer?

All zero-shot tasks are of this kind. The pipelines take the argmax, which is the first option on a tie: where the right
option is listed first, a model that says nothing is always right. ``accuracy`` follows them, for comparison;
``accuracy_ties_half`` shares the item out among the options of a tie, so that a tie of two counts half.

Shapes: V ways of asking the same (templates; 1 elsewhere), N items, K options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hgrnx.errors import UserError


class TextScorer(Protocol):
    """What tasks need of :class:`hgrnx.evaluation.scorer.Scorer`."""

    def strings(self, texts: Sequence[str], *, prefix: str = " ") -> np.ndarray: ...
    def continuations(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray: ...
    def token_counts(self, texts: Sequence[str], *, prefix: str = " ") -> np.ndarray: ...


@dataclass(frozen=True)
class Choices:
    """What one subtask's items were given, in the order of its file."""

    right_N: np.ndarray
    """Index of the right option."""
    scores_VNK: np.ndarray
    """Log-probabilities in nats (or means of them over tokens), float64."""

    def chosen(self) -> np.ndarray:
        """Index of the preferred option, [V, N]; the first one on a tie."""
        return self.scores_VNK.argmax(-1)

    def official(self) -> np.ndarray:
        """Share of the ways of asking in which an item is right by the pipelines' rule (a tie: the first), [N]."""
        return np.asarray((self.chosen() == self.right_N).mean(0))

    def credit(self) -> np.ndarray:
        """The same with an item shared out among the options of a tie, [N]."""
        best_VNK = self.scores_VNK == self.scores_VNK.max(-1, keepdims=True)
        right_VN = np.take_along_axis(best_VNK, np.broadcast_to(self.right_N, self.chosen().shape)[..., None], -1)
        return np.asarray((right_VN[..., 0] / best_VNK.sum(-1)).mean(0))

    @property
    def ties(self) -> int:
        """How often the best score belongs to several options."""
        best_VNK = self.scores_VNK == self.scores_VNK.max(-1, keepdims=True)
        return int((best_VNK.sum(-1) > 1).sum())


@dataclass(frozen=True)
class Accuracy:
    """Shares are between 0 and 1."""

    name: str
    group: str
    items: int
    accuracy: float
    """By the pipelines' rule."""
    stderr: float
    """Standard error of ``accuracy`` over items."""
    ties: int
    accuracy_ties_half: float


def accuracy(name: str, group: str, choices: Choices) -> Accuracy:
    """Accuracy of one subtask."""
    official_N = choices.official()
    return Accuracy(
        name=name,
        group=group,
        items=len(official_N),
        accuracy=float(official_N.mean()),
        stderr=math.sqrt(float(official_N.var()) / len(official_N)),
        ties=choices.ties,
        accuracy_ties_half=float(choices.credit().mean()),
    )


def mean_accuracy(name: str, group: str, rows: Sequence[Accuracy], weights: Sequence[float] | None = None) -> Accuracy:
    """Mean over subtasks: unweighted (the BabyLM pipeline's rule) unless there are ``weights``."""
    weights = weights or [1.0] * len(rows)
    total = math.fsum(weights)
    return Accuracy(
        name=name,
        group=group,
        items=sum(row.items for row in rows),
        accuracy=math.fsum(w * row.accuracy for w, row in zip(weights, rows, strict=True)) / total,
        stderr=math.sqrt(math.fsum((w * row.stderr) ** 2 for w, row in zip(weights, rows, strict=True))) / total,
        ties=sum(row.ties for row in rows),
        accuracy_ties_half=math.fsum(w * row.accuracy_ties_half for w, row in zip(weights, rows, strict=True)) / total,
    )


def require_finite(scores: np.ndarray, where: str, start: int = 0) -> None:
    """Refuse scores that are not numbers: an argmax would take them for the best.

    Args:
        scores: the items along the first axis.
        where: task and subtask, for the message.
        start: which item of the subtask the first one is.

    Raises:
        UserError: names the first such item, counted from 0.
    """
    bad = ~np.isfinite(scores.reshape(len(scores), -1)).all(1)
    if bad.any():
        first = int(bad.argmax())
        values = ", ".join(f"{value:g}" for value in np.ravel(scores[first])[:6])
        raise UserError(
            f"{where}, item {start + first} (from 0): the model's scores are {values}. Such an item would count as "
            f"right; the weights are broken, so nothing is scored. It is so for {int(bad.sum())} of {len(bad)} items "
            "asked at once."
        )
