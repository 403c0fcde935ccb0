"""Minimal pairs (BLiMP, arXiv 1912.00582): does the model give the acceptable sentence the higher probability?

The BabyLM pipeline's rule lists the acceptable sentence first and takes the argmax, so a tie counts as right there.
``accuracy`` follows it, for comparison; ``accuracy_ties_half`` counts a tie as half right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from hgrnx.errors import UserError

Scorer = Callable[[Sequence[str]], np.ndarray]
"""Strings -> their log-probabilities."""


class Pair(Protocol):
    """One item; ``hgrnx.data.benchmarks.MinimalPair`` is one."""

    @property
    def good(self) -> str: ...
    @property
    def bad(self) -> str: ...
    @property
    def phenomenon(self) -> str: ...


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities (nats) of one file's sentences, in file order."""

    good: np.ndarray
    bad: np.ndarray


@dataclass(frozen=True)
class Accuracy:
    """Shares are between 0 and 1."""

    name: str
    group: str
    pairs: int
    accuracy: float
    stderr: float
    ties: int
    accuracy_ties_half: float


@dataclass(frozen=True)
class Summary:
    """Accuracies per file, per group of files and over all files."""

    files: list[Accuracy]
    groups: list[Accuracy]
    overall: Accuracy

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The rows as plain dicts."""
        return {"files": [asdict(row) for row in self.files], "groups": [asdict(row) for row in self.groups]}


def score_pairs(
    files: Mapping[str, Sequence[Pair]],
    scorer: Scorer,
    *,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> dict[str, PairScores]:
    """Score every pair of every file.

    Args:
        files: pairs by file name.
        scorer: called once with all sentences of this rank.
        rank, world_size: this process scores every ``world_size``-th pair.
        gather: called on every rank with an object; returns the objects of all ranks, in the order of ranks.

    Raises:
        UserError: a score is not finite; the file and the pair are named.
    """
    pairs = [pair for items in files.values() for pair in items][rank::world_size]
    scores = np.asarray(scorer([text for pair in pairs for text in (pair.good, pair.bad)]), dtype=np.float64)
    total = sum(len(items) for items in files.values())
    both = np.empty((total, 2))
    for index, part in enumerate(gather(scores.reshape(-1, 2))):
        both[index::world_size] = part
    results, start = {}, 0
    for name, items in files.items():
        part = both[start : start + len(items)]
        start += len(items)
        for number, (pair, row) in enumerate(zip(items, part, strict=True), start=1):
            if not np.isfinite(row).all():
                raise UserError(
                    f"{name}, pair {number} ('{pair.good}' / '{pair.bad}'): the model's scores are {row[0]} and "
                    f"{row[1]}. Such a pair would count as right; the weights are broken, so nothing is scored."
                )
        results[name] = PairScores(part[:, 0].copy(), part[:, 1].copy())
    return results


def summarise(scores: Mapping[str, PairScores], groups: Mapping[str, str]) -> Summary:
    """Accuracy per file; a group's, and the overall one, is the unweighted mean of its files (the pipeline's rule).

    Args:
        scores: what :func:`score_pairs` returns.
        groups: the group of each file.
    """
    files = [_file_accuracy(name, groups[name], item) for name, item in scores.items()]
    names = sorted({row.group for row in files})
    return Summary(
        files=files,
        groups=[_mean(name, name, [row for row in files if row.group == name]) for name in names],
        overall=_mean("overall", "overall", files),
    )


def _file_accuracy(name: str, group: str, scores: PairScores) -> Accuracy:
    count = len(scores.good)
    ties = int((scores.good == scores.bad).sum())
    right = int((scores.good > scores.bad).sum())
    accuracy = (right + ties) / count
    return Accuracy(
        name=name,
        group=group,
        pairs=count,
        accuracy=accuracy,
        stderr=math.sqrt(accuracy * (1 - accuracy) / count),
        ties=ties,
        accuracy_ties_half=(right + ties / 2) / count,
    )


def _mean(name: str, group: str, rows: Sequence[Accuracy]) -> Accuracy:
    return Accuracy(
        name=name,
        group=group,
        pairs=sum(row.pairs for row in rows),
        accuracy=math.fsum(row.accuracy for row in rows) / len(rows),
        stderr=math.sqrt(math.fsum(row.stderr**2 for row in rows)) / len(rows),
        ties=sum(row.ties for row in rows),
        accuracy_ties_half=math.fsum(row.accuracy_ties_half for row in rows) / len(rows),
    )
