"""A task's work cut into shares of its items, each kept as it is finished.

A share is decided by the items alone, not by who asks them or how many do: on devices of one kind the scores are then
the same to the last bit. A kill loses the shares that were being asked. What is kept are indices and scores, no texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hgrnx.errors import UserError
from hgrnx.evaluation.choices import Choices, TextScorer
from hgrnx.evaluation.files import read_gzip, write_gzip
from hgrnx.evaluation.task import Task

SHARE_TEXTS = 8192
"""Texts of a share at most: seconds of work for a small model, minutes for a large one."""

Predictions = dict[str, Any]
"""Of a subtask: ``data`` (a hash of its items), ``right`` and ``chosen`` (indices of options by item), and ``scores``
(log-probabilities by option); ``chosen`` and ``scores`` have a list for each template where there are several."""


@dataclass(frozen=True)
class Share:
    """Neighbouring items of a subtask."""

    task: str
    subtask: str
    start: int
    stop: int
    texts: int
    """How many have to be scored, equal ones counted each."""
    data: str
    """Hash of the whole subtask's items, and of how they are asked."""

    def ask(self, task: Task, scorer: TextScorer) -> Choices:
        """Ask a model these items.

        Raises:
            UserError: ``task`` has other items than those that were shared out, or a score is no number.
        """
        if task.data_hash(self.subtask) != self.data:
            raise UserError(
                f"{self.task}/{self.subtask}: the items are not the same on all machines, or changed meanwhile. Name "
                "with --data a folder that all machines of the cluster have in common."
            )
        return task.score(self.subtask, scorer, slice(self.start, self.stop))


Ask = Callable[[Sequence[Share]], Iterable[tuple[Share, Choices]]]
"""Asks a model; gives each share once, when it is finished, in any order."""


def ask_here(tasks: Iterable[Task], scorer: TextScorer) -> Ask:
    """Ask in this process, one share after the other."""
    by_name = {task.name: task for task in tasks}
    return lambda shares: ((share, share.ask(by_name[share.task], scorer)) for share in shares)


def cut(task: Task, subtask: str, share_texts: int = SHARE_TEXTS) -> list[Share]:
    """The shares of a subtask, about equal, at least one; a share has at least one item."""
    items, per_item = task.size(subtask)
    count = max(1, -(-items // max(1, share_texts // max(1, per_item))))
    bounds = [items * number // count for number in range(count + 1)]
    data = task.data_hash(subtask)
    return [
        Share(task.name, subtask, start, stop, (stop - start) * per_item, data)
        for start, stop in zip(bounds, bounds[1:])
    ]


def run_shares(
    tasks: Sequence[Task], ask: Ask, kept: Path, on_share: Callable[[Share, bool], None] | None = None
) -> Iterator[tuple[Task, dict[str, Predictions]]]:
    """Ask what is not in ``kept`` already; yields each task, when it is finished, with its subtasks' predictions.

    Args:
        kept: folder for the finished subtasks and shares of one model with one set of settings.
        on_share: called with each finished share, and whether an earlier call had finished it.

    Raises:
        UserError: a score is no number, or ``kept`` cannot be written.
    """
    subtasks = {
        (task.name, name): _Subtask(cut(task, name), kept / task.name) for task in tasks for name in task.subtasks
    }
    waiting = dict.fromkeys(task.name for task in tasks)

    def finished() -> Iterator[tuple[Task, dict[str, Predictions]]]:
        for task in tasks:
            parts = {name: subtasks[task.name, name].predictions for name in task.subtasks}
            whole = {name: part for name, part in parts.items() if part is not None}
            if task.name in waiting and len(whole) == len(parts):
                del waiting[task.name]
                yield task, whole

    if on_share is not None:
        for subtask in subtasks.values():
            for share in subtask.shares:
                if share not in subtask.missing():
                    on_share(share, True)
    yield from finished()
    for share, choices in ask([share for subtask in subtasks.values() for share in subtask.missing()]):
        subtasks[share.task, share.subtask].add(share, choices)
        if on_share is not None:
            on_share(share, False)
        yield from finished()


def finish_subtask(task: Task, subtask: str, scorer: TextScorer, kept: Path) -> None:
    """Ask in this process what is not in ``kept`` of one subtask. Raises like :func:`run_shares`."""
    wanted = _Subtask(cut(task, subtask), kept / task.name)
    for share in wanted.missing():
        wanted.add(share, share.ask(task, scorer))


class _Subtask:
    """The shares of a subtask on disk, ``SUBTASK.START-STOP.json.gz``, and then the whole, ``SUBTASK.json.gz``."""

    def __init__(self, shares: list[Share], folder: Path) -> None:
        self.shares = shares
        self._path = folder / f"{shares[0].subtask}.json.gz"
        self.predictions = self._read(self._path)
        self._parts: dict[Share, Predictions] = {}
        if self.predictions is None and len(shares) > 1:
            read = {share: self._read(self._part_path(share)) for share in shares}
            self._parts = {share: part for share, part in read.items() if part is not None}
            self._join()

    def missing(self) -> list[Share]:
        return [] if self.predictions is not None else [share for share in self.shares if share not in self._parts]

    def add(self, share: Share, choices: Choices) -> None:
        self._parts[share] = _predictions([choices], share.data)
        if len(self.shares) > 1:
            write_gzip(self._part_path(share), self._parts[share])
        self._join()

    def _join(self) -> None:
        if self.missing():
            return
        parts = [choices_of(self._parts[share]) for share in self.shares]
        self.predictions = _predictions(parts, self.shares[0].data)
        write_gzip(self._path, self.predictions)
        for share in self.shares:
            self._part_path(share).unlink(missing_ok=True)
        self._parts = {}

    def _part_path(self, share: Share) -> Path:
        return self._path.with_name(f"{share.subtask}.{share.start}-{share.stop}.json.gz")

    def _read(self, path: Path) -> Predictions | None:
        content = read_gzip(path)
        return content if content is not None and content.get("data") == self.shares[0].data else None


def choices_of(predictions: Mapping[str, Any]) -> Choices:
    """The choices that a subtask's predictions are of."""
    scores = np.array(predictions["scores"], dtype=np.float64)
    return Choices(np.array(predictions["right"], dtype=np.int64), scores if scores.ndim == 3 else scores[None])


def _predictions(parts: Sequence[Choices], data: str) -> Predictions:
    whole = Choices(
        np.concatenate([part.right_N for part in parts]), np.concatenate([part.scores_VNK for part in parts], axis=1)
    )
    several = len(whole.scores_VNK) > 1
    chosen, scores = whole.chosen().tolist(), whole.scores_VNK.tolist()
    return {
        "data": data,
        "right": whole.right_N.tolist(),
        "chosen": chosen if several else chosen[0],
        "scores": scores if several else scores[0],
    }
