"""Benchmark scores while a model learns: when they are due, and what becomes of the weights then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hgrnx.config import EvaluationConfig, durations
from hgrnx.data.dataset import PreparedDataset
from hgrnx.evaluation.points import read_point, score_point, write_curve
from hgrnx.evaluation.task import Task
from hgrnx.models.base import LanguageModel
from hgrnx.tracking.tracker import Tracker
from hgrnx.training.best import BestWeights
from hgrnx.training.checkpoint import load_weights, read_meta
from hgrnx.training.distributed import gather_objects, rank_and_world, wait_for_all
from hgrnx.training.engine import Engine
from hgrnx.training.loop import Hook, Period, Progress, StepResult
from hgrnx.training.snapshots import Snapshots

_log = logging.getLogger(__name__)


class Schedule:
    """A :class:`~hgrnx.training.loop.Period`, or the word milestones; the end of the run in any case."""

    def __init__(self, text: str) -> None:
        self.period = None if text == durations.MILESTONES else Period(text)

    def due(self, before: Progress, now: Progress) -> bool:
        """Whether a point lies between two steps."""
        if self.period is not None:
            return self.period.due(before, now)
        return now.finished or bool(durations.milestones_between(before.words, now.words))


def snapshot_limit(config: EvaluationConfig) -> int | None:
    """How many snapshots may wait. At milestones all may: there are 28 in a run at most, and each is asked for."""
    return None if config.tasks_every == durations.MILESTONES else config.tasks_waiting


class TaskHook(Hook):
    """Hands whole weights on when a point is due. Comes before the checkpoint, from which a resumed run goes on.

    Records ``tasks/seconds``: what the training waited for it, copying the weights included.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule,
        take: Callable[[dict[str, Tensor], Progress], dict[str, float]],
        tracker: Tracker,
    ) -> None:
        self.engine, self.schedule, self.take, self.tracker = engine, schedule, take, tracker

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        if not self.schedule.due(before, now):
            return
        started = time.perf_counter()
        metrics = self.take(self.engine.weights(), now)
        seconds = time.perf_counter() - started
        self.tracker.log(now.step, {"tasks/seconds": seconds, **metrics, "words": now.words})


class LeaveSnapshot:
    """For another process that scores them: rank 0 writes the weights, and the training goes on."""

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots

    def __call__(self, weights: dict[str, Tensor], now: Progress) -> dict[str, float]:
        """Returns on rank 0 when the snapshot is whole on disk, on the others at once."""
        if rank_and_world()[0] != 0:
            return {}
        left_out = self.snapshots.add(now.step, now.words, weights)
        if not left_out:
            return {}
        steps = ", ".join(map(str, left_out))
        _log.warning("The scores come slower than the points: the weights of step %s will have none.", steps)
        return {"tasks/left_out": float(len(left_out))}


class ScoreInTurn:
    """Scores the weights at once, on every rank a share of the subtasks; the training waits meanwhile.

    Args:
        model: a plain model for the weights, in evaluation mode.
    """

    def __init__(
        self, model: LanguageModel, dataset: PreparedDataset, tasks: Sequence[Task], run_dir: Path, best: BestWeights
    ) -> None:
        self.model, self.tasks, self.run_dir, self.best = model, tasks, run_dir, best
        self.tokenizer: Any = dataset.tokenizer()
        self.bos_id = dataset.bos_id

    def __call__(self, weights: dict[str, Tensor], now: Progress) -> dict[str, float]:
        """Raises UserError on every rank where a score is no number."""
        self._score(weights, now.step, now.words)
        return {}

    def score_waiting(self, snapshots: Snapshots) -> None:
        """Score what an earlier session of this run left; every rank calls it."""
        for step in gather_objects(snapshots.waiting())[0]:
            path = snapshots.path(step)
            self._score(load_weights(path), step, read_meta(path)["words"])
            wait_for_all()
            snapshots.remove(step)

    def _score(self, weights: dict[str, Tensor], step: int, words: int) -> None:
        self.model.load_state_dict(weights, strict=False)
        rank, world = rank_and_world()
        score_point(
            self.model,
            self.tokenizer,
            self.bos_id,
            self.tasks,
            self.run_dir,
            step,
            words,
            rank=rank,
            world_size=world,
            gather=gather_objects,
        )
        if rank == 0:
            write_curve(self.run_dir)
            self.best.offer(step, words, read_point(self.run_dir, step), lambda: weights)
