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
from hgrnx.training.bad_steps import BadSteps
from hgrnx.training.best import BestWeights
from hgrnx.training.checkpoint import save_checkpoint, save_weights
from hgrnx.training.distributed import any_rank, gather_objects, rank_and_world, sum_over_ranks, wait_for_all
from hgrnx.training.engine import Engine, EngineState
from hgrnx.training.events import EventLog
from hgrnx.training.loop import Hook, Period, Progress, StepResult, Stopped
from hgrnx.training.notice import Left
from hgrnx.training.writer import CheckpointWriter

_OF_ALL_RANKS = ("counts", "tokens", "steps", "seconds", "waited", "updating", "batches_ready")
"""Of :class:`LogHook`: what rank 0 knows for all ranks."""


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

    def window(self) -> dict[str, Any]:
        """This rank's part of the line that is not written yet; see :meth:`restore`."""
        return {name: getattr(self, name) for name in ("sums", *_OF_ALL_RANKS)}

    def restore(self, windows: list[dict[str, Any]]) -> None:
        """Go on in the middle of a line from what :meth:`window` gave on all ranks, however many there were."""
        rank, world = rank_and_world()
        for name in _OF_ALL_RANKS:
            setattr(self, name, windows[0][name])
        if len(windows) == world:
            self.sums.update(windows[rank]["sums"])
        else:
            for name in windows[0]["sums"]:
                self.sums[name] = sum(part["sums"][name] for part in windows) if rank == 0 else 0.0

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        self.clock.add(result)
        if not result.skipped:
            self._add(result)
        if not self.tokens or not (self.every.due(before, now) or self.checkpoints.due(before, now)):
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
                **({} if result.skipped else {"train/grad_norm": result.grad_norm}),
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

    def _add(self, result: StepResult) -> None:
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


class BadStepHook(Hook):
    """Records every step that was skipped."""

    def __init__(self, tracker: Tracker, events: EventLog, bad_steps: BadSteps) -> None:
        self.tracker, self.events, self.bad_steps = tracker, events, bad_steps

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        if result.skipped:
            self.tracker.log(now.step, {"train/skipped_steps": self.bad_steps.skipped, "words": now.words})
            self.events.add("skipped_step", f"Step {now.step} was bad and is skipped.", step=now.step)


class CheckpointHook(Hook):
    """Saves the whole state, after metrics and evaluation of the same step were recorded.

    Steps wait for the copy of the state only; rank 0 writes it beside them.

    Args:
        meta: called on every rank, and may be collective.
        publish_extra: whether what lies before a checkpoint outside the period is final.
        on_saved: told of every checkpoint that is on the disk, in the thread that wrote it.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        every: Period,
        keep: int,
        tracker: Tracker,
        meta: Callable[[], dict[str, Any]],
        writer: CheckpointWriter,
        publish_extra: bool = True,
        on_saved: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self.engine, self.folder, self.every, self.keep = engine, folder, every, keep
        self.tracker, self.meta, self.writer = tracker, meta, writer
        self.publish_extra, self.on_saved = publish_extra, on_saved

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        self.writer.check()
        if self.every.due(before, now):
            self.save(now, must=now.finished)

    def save(self, now: Progress, *, must: bool, extra: bool = False) -> None:
        """Save now. ``must``: return when it is on the disk."""
        state, meta = self.engine.state(), {**self.meta(), "words": now.words}
        if rank_and_world()[0] == 0:
            self.writer.write(now.step, lambda: self._write(now.step, state, meta, extra), must=must)
        if must:
            wait_for_all()

    def _write(self, step: int, state: EngineState, meta: dict[str, Any], extra: bool) -> None:
        folder = save_checkpoint(self.folder, step, state, meta, self.keep, extra=extra)
        if self.publish_extra or not extra:
            self.tracker.durable(step)
        self.on_saved(folder)


class LeaveHook(Hook):
    """Ends the run after a checkpoint, when any rank was asked to. Comes last."""

    def __init__(self, checkpoints: CheckpointHook, asked: Callable[[], bool]) -> None:
        self.checkpoints, self.asked = checkpoints, asked

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        if now.finished or not any_rank(self.asked(), self.checkpoints.engine.device):
            return
        if self.checkpoints.every.due(before, now):
            self.checkpoints.writer.wait(must=True)
            wait_for_all()
        else:
            self.checkpoints.save(now, must=True, extra=True)
        raise Left(now.step)


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
