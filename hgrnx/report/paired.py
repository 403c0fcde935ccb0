"""The difference in accuracy of two runs on the same minimal pairs, with the error of the difference itself.

Two models mostly fail on the same hard pairs, so that their difference is known better than either accuracy.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PREDICTIONS = "final-predictions.json.gz"


class PairedDifference(NamedTuple):
    """Accuracy of one run minus another's, in percentage points."""

    points: float
    stderr: float
    """Standard error over the pairs. That other seeds would train other models is not in it."""
    pairs: int


def paired_difference(run: Path, other: Path) -> PairedDifference | None:
    """Accuracy of ``run`` minus that of ``other``, as means over files; None without predictions on the same pairs.

    A file's variance is that of the differences of its pairs (-1, 0 or 1); a tie counts as right, as in the
    accuracies.
    """
    ours, theirs = _right(run), _right(other)
    if not ours or ours.keys() != theirs.keys():
        return None
    if any(len(ours[name]) != len(theirs[name]) for name in ours):
        return None
    gaps = [ours[name] - theirs[name] for name in ours]
    variance = sum(gap.var(ddof=1) / len(gap) if len(gap) > 1 else 1.0 for gap in gaps)
    return PairedDifference(
        points=100 * float(np.mean([gap.mean() for gap in gaps])),
        stderr=100 * float(np.sqrt(variance)) / len(gaps),
        pairs=sum(len(gap) for gap in gaps),
    )


def _right(run: Path) -> dict[str, np.ndarray]:
    try:
        with gzip.open(run / "eval" / PREDICTIONS, "rt", encoding="utf-8") as file:
            files: dict[str, dict[str, Any]] = json.load(file)
    except (FileNotFoundError, ValueError, EOFError, gzip.BadGzipFile):
        return {}
    return {name: (np.asarray(item["good"]) >= np.asarray(item["bad"])).astype(float) for name, item in files.items()}
