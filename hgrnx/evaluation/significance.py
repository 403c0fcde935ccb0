"""Is one model better than another on a task, or is it the items? Both were asked the same ones.

Two answers. The bootstrap draws items anew within each subtask (and, a second time, subtasks as well) and gives an
interval for the difference of the task's score. McNemar's test asks of the items that exactly one of the two got right
whether they fall evenly; its mid-p form is used, which keeps to its level without the exact test's caution
(Fagerland et al. 2013, doi:10.1186/1471-2288-13-91).

Neither knows that the same recipe with another seed would train another model.

Shapes: R draws, S subtasks, N items, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hgrnx.evaluation.metrics import GLUE_METRICS, MetricName, measure
from hgrnx.evaluation.shares import choices_of

DRAWS = 2000
_LEVEL = (2.5, 97.5)
_OVER_ITEMS = {"bear"}
"""Tasks whose score is the mean over items, not over subtasks."""


@dataclass(frozen=True)
class PairedTask:
    """One model's score on a task minus another's, in shares."""

    difference: float
    interval: tuple[float, float]
    """95%, over items."""
    subtask_interval: tuple[float, float] | None
    """95%, over subtasks and their items; None for a single subtask."""
    better: int
    """Items that the first model got more of right than the second (all of them where there is one way of asking)."""
    worse: int
    p: float
    """Of McNemar's test, mid-p, two-sided."""
    items: int


def paired_task(task: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> PairedTask | None:
    """Compare two models' predictions on a task; None when they were not on the same items.

    Args:
        task: its short name.
        first, second: predictions by subtask, see :class:`~hgrnx.evaluation.results.TaskResult`.
    """
    if not first or first.keys() != second.keys():
        return None
    if any(first[name]["data"] != second[name]["data"] for name in first):
        return None
    random = np.random.default_rng(0)
    gaps, draws, weights = [], [], []
    better = worse = items = 0
    for name in sorted(first):
        metric = GLUE_METRICS.get(name, "accuracy") if task == "glue" else "accuracy"
        gap, drawn = (
            _mean_gap(first[name], second[name], random)
            if metric == "accuracy"
            else _metric_gap(metric, first[name], second[name], random)
        )
        difference_N = _credit(first[name]) - _credit(second[name])
        gaps.append(gap)
        draws.append(drawn)
        weights.append(len(difference_N) if task in _OVER_ITEMS else 1)
        better += int((difference_N > 0).sum())
        worse += int((difference_N < 0).sum())
        items += len(difference_N)
    draws_SR, weights_S = np.stack(draws), np.array(weights, dtype=np.float64)
    chosen_SR = random.integers(0, len(gaps), size=draws_SR.shape)
    redrawn_R = np.average(np.take_along_axis(draws_SR, chosen_SR, 0), 0, weights=weights_S[chosen_SR])
    return PairedTask(
        difference=float(np.average(gaps, weights=weights_S)),
        interval=_interval(np.average(draws_SR, 0, weights=weights_S)),
        subtask_interval=_interval(redrawn_R) if len(gaps) > 1 else None,
        better=better,
        worse=worse,
        p=mcnemar(better, worse),
        items=items,
    )


def mcnemar(better: int, worse: int) -> float:
    """Two-sided mid-p of so uneven a split of ``better + worse`` items if both models were equally good."""
    count, least = better + worse, min(better, worse)
    if count == 0:
        return 1.0
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    places = np.arange(least + 1)
    log_terms = log_factorial[count] - log_factorial[places] - log_factorial[count - places] - count * math.log(2)
    terms = np.exp(log_terms)
    return float(min(1.0, 2 * terms.sum() - terms[-1]))


def _mean_gap(
    first: Mapping[str, Any], second: Mapping[str, Any], random: np.random.Generator
) -> tuple[float, np.ndarray]:
    """The difference of two accuracies, and draws of it: how often each difference of an item occurs is drawn."""
    difference_N = _credit(first) - _credit(second)
    values, counts = np.unique(difference_N, return_counts=True)
    drawn = random.multinomial(len(difference_N), counts / len(difference_N), size=DRAWS)
    return float(difference_N.mean()), drawn @ values / len(difference_N)


def _metric_gap(
    metric: MetricName, first: Mapping[str, Any], second: Mapping[str, Any], random: np.random.Generator
) -> tuple[float, np.ndarray]:
    """The same for a metric of the whole table: how often each (label, prediction, other's prediction) is drawn."""
    labels = 1 + max([1, *first["right"], *first["chosen"], *second["chosen"]])
    table_CCC = np.zeros((labels,) * 3)
    np.add.at(table_CCC, (np.array(first["right"]), np.array(first["chosen"]), np.array(second["chosen"])), 1)
    count = int(table_CCC.sum())
    drawn = random.multinomial(count, table_CCC.ravel() / count, size=DRAWS).reshape(DRAWS, *table_CCC.shape)
    tables = np.concatenate([table_CCC[None], drawn])
    gaps = measure(metric, tables.sum(3)) - measure(metric, tables.sum(2))
    return float(gaps[0]), gaps[1:]


def _credit(prediction: Mapping[str, Any]) -> np.ndarray:
    """How far each item is right, [N]: a share of 1 where there are templates or a tie."""
    if "scores" in prediction:
        return choices_of(prediction).credit()
    return (np.array(prediction["right"]) == np.array(prediction["chosen"])).astype(np.float64)


def _interval(draws_R: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws_R, _LEVEL)
    return float(low), float(high)
