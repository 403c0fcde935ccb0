"""Minimal pairs (BLiMP, arXiv 1912.00582): does the model give the acceptable sentence the higher probability?

The acceptable sentence is the first option of each choice, so that a tie counts as right by the pipeline's rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from hgrnx.data.benchmark_items import MinimalPair
from hgrnx.errors import UserError
from hgrnx.evaluation.choices import Accuracy, Choices, TextScorer, accuracy, mean_accuracy, require_finite
from hgrnx.evaluation.task import ALL_ITEMS, TaskScore, by_group, items_hash, unweighted

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

    def choices(self) -> Choices:
        """The sentences as options, the acceptable one first."""
        return Choices(np.zeros(len(self.good), dtype=np.int64), np.stack([self.good, self.bad], -1)[None])


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
    files = [accuracy(name, groups[name], item.choices()) for name, item in scores.items()]
    return Summary(
        files=files,
        groups=[mean_accuracy(name, name, rows) for name, rows in by_group(files).items()],
        overall=mean_accuracy("overall", "overall", files),
    )


class MinimalPairs:
    """BLiMP, its Supplement, or another folder of minimal pairs as a task: " " + each sentence, after BOS."""

    def __init__(self, name: str, files: Mapping[str, Sequence[MinimalPair]]) -> None:
        self.name = name
        self.files = files

    @property
    def subtasks(self) -> list[str]:
        return list(self.files)

    def data_hash(self, subtask: str) -> str:
        return items_hash(self.files[subtask])

    def size(self, subtask: str) -> tuple[int, int]:
        return len(self.files[subtask]), 2

    def score(self, subtask: str, scorer: TextScorer, items: slice = ALL_ITEMS) -> Choices:
        pairs = self.files[subtask][items]
        scores_NK = scorer.strings([text for pair in pairs for text in (pair.good, pair.bad)]).reshape(-1, 2)
        require_finite(scores_NK, f"{self.name}/{subtask}", items.start)
        return Choices(np.zeros(len(pairs), dtype=np.int64), scores_NK[None])

    def summarise(self, results: Mapping[str, Choices]) -> TaskScore:
        return unweighted(self.name, results, {name: pairs[0].phenomenon for name, pairs in self.files.items()})

    def texts(self, subtask: str) -> list[tuple[str, ...]]:
        return [(pair.good, pair.bad) for pair in self.files[subtask]]
