"""What happens around the steps: metrics, evaluation, checkpoints and progress, each with its period."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hgrnx.config import EvaluationConfig, durations
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.evaluation.suite import EvaluationResult, evaluate
from hgrnx.models.base import LanguageModel
from hgrnx.tracking.tracker import Tracker
from hgrnx.training.best import BestWeights
from hgrnx.training.checkpoint import save_checkpoint, save_weights
from hgrnx.training.distributed import gather_objects, rank_and_world, sum_over_ranks, wait_for_all
from hgrnx.training.engine import Engine
from hgrnx.training.loop import Hook, Period, Progress, StepResult, Stopped


class Clock:
    """Seconds spent in steps and tokens seen in them, over all sessions of a run; evaluation does not count."""

    def __init__(self, seconds: float = 0.0, tokens: int = 0) -> None:
        self.seconds = seconds
        self.tokens = tokens

    def add(self, result: StepResult) -> None:
        self.seconds += result.seconds
        self.tokens += result.tokens


class LogHook(Hook):
    """Means since the last line: losses per token, and learning rate, gradient norm, tokens/s of the window.

    Times, and the batches made ahead, are rank 0's.

    A line is also written at every checkpoint, so that a window never spans one and a resumed run writes the
    same lines as an undisturbed one.
    """

    def __init__(self, tracker: Tracker, engine: Engine, clock: Clock, every_steps: int, checkpoints: Period) -> None:
        self.tracker, self.engine, self.clock = tracker, engine, clock
        self.every = Period(f"{every_steps} steps")
        self.checkpoints = checkpoints
        self._clear()

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        self.clock.add(result)
        for name, value in result.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            # A loss whose weight is 0 in some steps is not computed there: its mean is over the others.
            self.counts[name] = self.counts.get(name, 0) + result.tokens
        self.tokens += result.tokens
        self.seconds += result.seconds
        self.steps += 1
        self.waited += result.waited
        self.updating += result.updating
        self.batches_ready += result.batches_ready
        if not (self.every.due(before, now) or self.checkpoints.due(before, now)):
            return
        sums = sum_over_ranks(self.sums, self.engine.device)
        means = {f"train/{name}": value / self.counts[name] for name, value in sums.items()}
        if not math.isfinite(means["train/loss"]):
            raise UserError(
                f"The training loss is {means['train/loss']} at step {now.step}. "
                "Lower training.learning_rate or lengthen training.warmup; checkpoints before this step are kept."
            )
        self.tracker.log(
            now.step,
            {
                **means,
                "train/learning_rate": result.learning_rate,
                "train/grad_norm": result.grad_norm,
                "train/tokens_per_second": self.tokens / self.seconds,
                "train/step_seconds": self.seconds / self.steps,
                "train/step_seconds_waiting": self.waited / self.steps,
                "train/step_seconds_updating": self.updating / self.steps,
                "train/batches_ready": self.batches_ready / self.steps,
                "train/epoch": now.epoch,
                "words": now.words,
            },
        )
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.tokens = self.steps = self.batches_ready = 0
        self.seconds = self.waited = self.updating = 0.0


class EvaluateHook(Hook):
    """Scores the weights on a plain model with consolidated weights, each rank a share of the items."""

    def __init__(
        self,
        engine: Engine,
        model: LanguageModel,
        dataset: PreparedDataset,
        config: EvaluationConfig,
        tracker: Tracker,
        folder: Path,
        best: BestWeights,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.engine, self.model, self.dataset, self.config = engine, model, dataset, config
        self.tracker, self.folder, self.best, self.on_progress = tracker, folder, best, on_progress
        self.every = Period(config.every)
        self.last: EvaluationResult | None = None

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        if self.every.due(before, now):
            self.run(now)

    def run(self, now: Progress) -> None:
        """Evaluate now; at the end of the run with everything, before it with the samples the recipe names."""
        weights = self.engine.weights()
        self.model.load_state_dict(weights, strict=False)
        rank, world = rank_and_world()
        self.last = evaluate(
            self.model,
            self.dataset,
            self.config,
            final=now.finished,
            rank=rank,
            world_size=world,
            gather=gather_objects,
            on_progress=self.on_progress,
        )
        if rank == 0:
            self.last.save(self.folder, "final" if now.finished else f"step-{now.step:08d}")
            self.tracker.log(now.step, {**self.last.metrics, "words": now.words})
            self.best.offer(now.step, now.words, self.last.metrics, lambda: weights)


class CheckpointHook(Hook):
    """Saves the whole state, after metrics and evaluation of the same step were recorded."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        every: Period,
        keep: int,
        tracker: Tracker,
        meta: Callable[[], dict[str, Any]],
    ) -> None:
        self.engine, self.folder, self.every, self.keep = engine, folder, every, keep
        self.tracker, self.meta = tracker, meta

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        if not self.every.due(before, now):
            return
        state = self.engine.state()
        if rank_and_world()[0] == 0:
            save_checkpoint(self.folder, now.step, state, {**self.meta(), "words": now.words}, self.keep)
            self.tracker.durable(now.step)
        wait_for_all()


class MilestoneHook(Hook):
    """Keeps the weights at every word milestone. Comes before the checkpoint, from which a resumed run goes on."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        passed = durations.milestones_between(before.words, now.words)
        if not passed:
            return
        weights = self.engine.weights()
        if rank_and_world()[0] == 0:
            for words in passed:
                save_weights(self.folder / durations.milestone_name(words), now.step, weights, {"words": now.words})
        wait_for_all()


class ProgressHook(Hook):
    """Tells a listener (the driver's progress bar) how far the run is, at most every half second."""

    def __init__(self, report: Callable[[dict[str, Any]], None], every_s: float = 0.5) -> None:
        self.report, self.every_s = report, every_s
        self.last = 0.0

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        if not now.finished and time.monotonic() - self.last < self.every_s:
            return
        self.last = time.monotonic()
        world = rank_and_world()[1]
        self.report(
            {
                "step": now.step,
                "total_steps": now.total_steps,
                "words": now.words,
                "epoch": now.epoch,
                # Rank 0's share stands for the whole batch here: a bar must not cost a collective operation.
                "loss": result.sums["loss"] * world / result.tokens,
                "tokens_per_second": result.tokens / result.seconds,
            }
        )


class StopHook(Hook):
    """Asks, after every evaluation but the last, whether the run shall go on; rank 0 asks for all.

    Raises:
        Stopped: on every rank.
    """

    def __init__(self, every: str, go_on: Callable[[], bool]) -> None:
        self.every, self.go_on = Period(every), go_on

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        if now.finished or not self.every.due(before, now):
            return
        answer = self.go_on() if rank_and_world()[0] == 0 else None
        if not gather_objects(answer)[0]:
            raise Stopped
