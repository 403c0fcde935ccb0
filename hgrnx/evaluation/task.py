"""What a zero-shot task is, and the tables that its results make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from hgrnx.evaluation.choices import Accuracy, Choices, TextScorer, accuracy, mean_accuracy

ALL_ITEMS = slice(0, None)


class Task(Protocol):
    """A benchmark whose items are choices between texts."""

    @property
    def name(self) -> str: ...

    @property
    def subtasks(self) -> list[str]:
        """In the order of the tables."""

    def data_hash(self, subtask: str) -> str:
        """Changes whenever the subtask's items, or how they are asked, do."""

    def size(self, subtask: str) -> tuple[int, int]:
        """How many items a subtask has, and how many texts have to be scored for each."""

    def score(self, subtask: str, scorer: TextScorer, items: slice = ALL_ITEMS) -> Choices:
        """Ask a model items of a subtask. Raises UserError naming task and item where a score is no number."""

    def summarise(self, results: Mapping[str, Choices]) -> TaskScore:
        """The task's score, of the choices of all its subtasks."""

    def texts(self, subtask: str) -> Sequence[Sequence[str]]:
        """The options of each item, for a file of predictions."""


@dataclass(frozen=True)
class TaskScore:
    """A task's score and tables of accuracies."""

    overall: Accuracy | None
    """None where some of GLUE's tasks were left out."""
    subtasks: list[Accuracy]
    groups: list[Accuracy]
    """Phenomena of BLiMP, domains of BEAR; one a subtask elsewhere."""
    templates: list[Accuracy] = field(default_factory=list)
    """By the way of asking, where there are several."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How it was asked, where there is a choice."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def unweighted(name: str, results: Mapping[str, Choices], groups: Mapping[str, str]) -> TaskScore:
    """The BabyLM pipeline's rule: a task's score, and a group's, is the unweighted mean of its subtasks' accuracies."""
    rows = [accuracy(subtask, groups[subtask], choices) for subtask, choices in results.items()]
    parts = [mean_accuracy(group, group, members) for group, members in by_group(rows).items()]
    return TaskScore(mean_accuracy(name, name, rows), rows, parts)


def by_group(rows: Sequence[Accuracy]) -> dict[str, list[Accuracy]]:
    """Rows by their group, the groups in alphabetical order."""
    return {name: [row for row in rows if row.group == name] for name in sorted({row.group for row in rows})}


def items_hash(items: Sequence[Any], *settings: Any) -> str:
    """SHA-256 of dataclass instances, in order, and of what else decides how they are asked."""
    return hashlib.sha256(json.dumps([[asdict(item) for item in items], settings]).encode()).hexdigest()
