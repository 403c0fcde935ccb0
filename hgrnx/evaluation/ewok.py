"""EWoK (arXiv 2405.09605): which of two targets does the model expect after a context?

The BabyLM pipeline's rule: Target1 and Target2 after Context1, with a space between; Target1 is right. The file holds
every item twice, with contexts and targets swapped, so that every target is right once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hgrnx.data.benchmark_items import EwokItem
from hgrnx.evaluation.choices import Choices, TextScorer, require_finite
from hgrnx.evaluation.task import ALL_ITEMS, TaskScore, items_hash, unweighted


class Ewok:
    """EWoK as a task; its texts must not be stored anywhere in the clear."""

    def __init__(self, name: str, files: Mapping[str, Sequence[EwokItem]]) -> None:
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
        chosen = self.files[subtask][items]
        asked = [(item.contexts[0], f" {target}") for item in chosen for target in item.targets]
        scores_NK = scorer.continuations(asked).reshape(-1, 2)
        require_finite(scores_NK, f"{self.name}/{subtask}", items.start)
        return Choices(np.zeros(len(chosen), dtype=np.int64), scores_NK[None])

    def summarise(self, results: Mapping[str, Choices]) -> TaskScore:
        return unweighted(self.name, results, {name: name for name in self.files})

    def texts(self, subtask: str) -> list[tuple[str, ...]]:
        """The options of each item: for a file of predictions, which must be kept behind a password."""
        return [item.targets for item in self.files[subtask]]
