"""Accuracy, F1 and Matthews correlation of predicted labels, with standard errors.

All are functions of the table of counts of (right label, predicted label). Drawing such tables anew is the bootstrap
over rows, which the standard errors of F1 and of the correlation come from.

Shapes: R draws, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

MetricName = Literal["accuracy", "f1", "mcc"]

GLUE_METRICS: dict[str, MetricName] = {"cola": "mcc", "mrpc": "f1", "qqp": "f1"}
"""The metric of the GLUE tasks that are not scored by accuracy (BabyLM's rule)."""

_DRAWS = 1000


def count_table(right: Sequence[int], predicted: Sequence[int]) -> np.ndarray:
    """How often each label (row) got each prediction (column): int64 [C, C], C at least 2."""
    labels = 1 + max([1, *right, *predicted])
    table_CC = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(table_CC, (np.asarray(right, dtype=np.int64), np.asarray(predicted, dtype=np.int64)), 1)
    return table_CC


def score_table(metric: MetricName, table_CC: np.ndarray) -> tuple[float, float]:
    """Value of a metric, and its standard error over rows.

    ``accuracy`` is between 0 and 1; ``f1`` is that of label 1, and 0 where label 1 is neither right nor predicted;
    ``mcc`` is Matthews correlation (for more than two labels Gorodkin's R_K), between -1 and 1, and 0 where all
    labels or all predictions are the same. These are scikit-learn's conventions.
    """
    value = float(measure(metric, table_CC[None])[0])
    count = int(table_CC.sum())
    if metric == "accuracy":
        return value, math.sqrt(value * (1 - value) / count)
    draws_R = np.random.default_rng(0).multinomial(count, (table_CC / count).ravel(), size=_DRAWS)
    return value, float(measure(metric, draws_R.reshape(_DRAWS, *table_CC.shape)).std())


def measure(metric: MetricName, tables_RCC: np.ndarray) -> np.ndarray:
    """A metric of each of R tables, see :func:`score_table`."""
    return _MEASURES[metric](tables_RCC)


def _accuracy(tables_RCC: np.ndarray) -> np.ndarray:
    share_R: np.ndarray = np.trace(tables_RCC, axis1=1, axis2=2) / tables_RCC.sum((1, 2))
    return share_R


def _f1(tables_RCC: np.ndarray) -> np.ndarray:
    both_R = tables_RCC[:, 1, 1]
    either_R = tables_RCC[:, 1, :].sum(1) + tables_RCC[:, :, 1].sum(1)
    return np.where(either_R > 0, 2 * both_R / np.maximum(either_R, 1), 0.0)


def _mcc(tables_RCC: np.ndarray) -> np.ndarray:
    tables_RCC = tables_RCC.astype(np.float64)
    count_R = tables_RCC.sum((1, 2))
    right_RC, predicted_RC = tables_RCC.sum(2), tables_RCC.sum(1)
    covariance_R = np.trace(tables_RCC, axis1=1, axis2=2) * count_R - (right_RC * predicted_RC).sum(1)
    spread_R = np.sqrt((count_R**2 - (right_RC**2).sum(1)) * (count_R**2 - (predicted_RC**2).sum(1)))
    return np.where(spread_R > 0, covariance_R / np.where(spread_R > 0, spread_R, 1.0), 0.0)


_MEASURES: dict[MetricName, Callable[[np.ndarray], np.ndarray]] = {"accuracy": _accuracy, "f1": _f1, "mcc": _mcc}
