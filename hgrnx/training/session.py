"""The part of a run between two of its checkpoints: takes up the state, puts the hooks around the steps, trains.

A run that rolls back begins such a part again; all that lasts longer is made once, in ``run.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hgrnx.config import Recipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.folders import write_json
from hgrnx.data.loader import TrainLoader
from hgrnx.errors import UserError
from hgrnx.evaluation.points import drop_points
from hgrnx.evaluation.task import Task
from hgrnx.models import LanguageModel, build_model
from hgrnx.objectives import Distillation
from hgrnx.objectives.base import Objective
from hgrnx.tracking.tracker import CompositeTracker, JsonlTracker, NullTracker, Tracker
from hgrnx.training import optim
from hgrnx.training.bad_steps import BadSteps
from hgrnx.training.best import BestWeights
from hgrnx.training.checkpoint import find_checkpoint, is_extra, load_checkpoint
from hgrnx.training.distributed import gather_objects, rank_and_world, wait_for_all
from hgrnx.training.engine import Engine, cpu_copy
from hgrnx.training.events import EventLog
from hgrnx.training.hooks import (
    BadStepHook,
    CheckpointHook,
    Clock,
    EvaluateHook,
    Hook,
    LeaveHook,
    LogHook,
    MilestoneHook,
    ProgressHook,
    StopHook,
)
from hgrnx.training.loop import Period, Stopped, train
from hgrnx.training.memory import peak_memory_mb
from hgrnx.training.remote import LONGEST_END_S, LONGEST_LEAVE_S, Remote, Uploader
from hgrnx.training.schedules import seq_len_schedule, steps_of
from hgrnx.training.snapshots import Snapshots
from hgrnx.training.task_hook import LeaveSnapshot, Schedule, ScoreInTurn, TaskHook, snapshot_limit
from hgrnx.training.writer import CheckpointWriter

MILESTONES = "milestones"
"""Folder of a run with the weights at its word milestones."""


class Listener(Protocol):
    """Hears from rank 0 how a run goes: a progress bar, usually in another process."""

    def __call__(self, message: dict[str, Any]) -> None: ...


@dataclass
class Session:
    """What stays the same while a run goes on from its checkpoints, again and again where it rolls back."""

    recipe: Recipe
    dataset: PreparedDataset
    run_dir: Path
    engine: Engine
    objective: Objective
    loader: TrainLoader
    events: EventLog
    listener: Listener | None
    """On rank 0 only."""
    open_trackers: Callable[[Path], Sequence[Tracker]]
    asked: Callable[[], bool]
    """Whether to save a checkpoint and leave; looked at after every step."""
    may_go_on: Callable[[], bool] | None
    """Whether to go on; looked at on rank 0 after every evaluation before the end."""
    tasks: Sequence[Task]
    """What this process has to score of ``evaluation.tasks``."""
    scored_beside: bool
    """Whether another process scores them."""

    def __post_init__(self) -> None:
        self.checkpoints = self.run_dir / "checkpoints"
        self.total_steps = self.loader.steps_for(self.recipe.training.duration)
        self.bad_steps = BadSteps(self.recipe.training, self.engine.device)
        place = self.recipe.launch.upload_to
        self.remote = None if place is None else Remote(place, self.run_dir.name)

    def go_on(self, passed_over: int) -> dict[str, Any] | None:
        """Train from the last checkpoint to the end. ``passed_over``: the step rolled back from, 0 at first.

        Returns:
            What is in ``result.json``, or None where the run was stopped.

        Raises:
            RollBack: a bad step came, and the policy is to roll back.
            Left: it was asked to leave, and has saved a checkpoint.
        """
        training = self.recipe.training
        rank, _ = rank_and_world()
        start_step, clock, windows, extra = self._load(rolling_back=passed_over > 0)
        tracker: Tracker = NullTracker()
        if rank == 0:
            metrics = self.run_dir / "metrics.jsonl"
            tracker = CompositeTracker([JsonlTracker(metrics, start_step), *self.open_trackers(metrics)])
            if not (extra and training.on_bad_step == "roll_back"):
                tracker.durable(start_step)
        if passed_over:
            self._record_roll_back(tracker, start_step, passed_over)
        writer = CheckpointWriter(self.events, training.max_checkpoint_failures)
        uploader: Uploader | None = None
        finished = False
        try:
            if self.remote is not None and rank == 0:
                uploader = Uploader(self.remote, self.run_dir, training.keep_checkpoints, self.events)
            result = self._train(start_step, passed_over, clock, windows, tracker, writer, uploader)
            finished = True
            return result
        except Stopped:
            return None
        finally:
            with contextlib.suppress(UserError):  # told already; what is raised now, if anything, comes first
                writer.wait()
            if uploader is not None:
                uploader.close(LONGEST_END_S if finished else LONGEST_LEAVE_S)
            tracker.close(final=finished)

    def _train(
        self,
        start_step: int,
        passed_over: int,
        clock: Clock,
        windows: list[dict[str, Any]],
        tracker: Tracker,
        writer: CheckpointWriter,
        uploader: Uploader | None,
    ) -> dict[str, Any]:
        training, launch, total_steps = self.recipe.training, self.recipe.launch, self.total_steps
        rank, world = rank_and_world()
        plain = build_model(self.recipe.model, self.dataset.vocab_size, seed=self.recipe.seed)
        plain = plain.to(self.engine.device).eval()
        warmup_steps = steps_of(training.warmup, self.loader, total_steps)
        decay_steps = steps_of(training.decay, self.loader, total_steps)
        objective = self.objective
        train(
            self.engine,
            self.loader,
            start_step=max(start_step, passed_over),
            total_steps=total_steps,
            micro_batch_size=launch.micro_batch_size or training.batch_size // world,
            seed=self.recipe.seed,
            learning_rate=lambda step: optim.learning_rate(step, total_steps, warmup_steps, training, decay_steps),
            hooks=self._hooks(plain, clock, windows, tracker, writer, uploader),
            bad_steps=self.bad_steps,
            weights_of=start_step,
            seq_len=seq_len_schedule(training, self.loader, total_steps),
            before_step=(lambda step: objective.at(step, total_steps)) if isinstance(objective, Distillation) else None,
        )
        result = {
            "steps": total_steps,
            "words": self.loader.words_seen(total_steps),
            "epochs": self.loader.epoch_of(total_steps),
            "seconds": clock.seconds,
            "tokens_per_second": clock.tokens / clock.seconds,
            "peak_memory_mb": max(gather_objects(peak_memory_mb(self.engine.device))),
            "workers": world,
            "parameters": plain.parameter_counts(),
        }
        if rank == 0:
            write_json(self.run_dir / "result.json", result)
        wait_for_all()
        return result

    def _hooks(
        self,
        plain: LanguageModel,
        clock: Clock,
        windows: list[dict[str, Any]],
        tracker: Tracker,
        writer: CheckpointWriter,
        uploader: Uploader | None,
    ) -> list[Hook]:
        """In the order in which they come after a step: what a checkpoint stands for comes before it."""
        training, evaluation = self.recipe.training, self.recipe.evaluation
        every, listener = Period(training.checkpoint_every), self.listener
        log = LogHook(tracker, self.engine, clock, training.log_every, every)
        if windows:
            log.restore(windows)
        best = BestWeights(self.run_dir, evaluation.best)
        hooks: list[Hook] = [
            log,
            BadStepHook(tracker, self.events, self.bad_steps),
            EvaluateHook(
                self.engine,
                plain,
                self.dataset,
                evaluation,
                tracker,
                self.run_dir / "eval",
                best,
                None if listener is None else lambda done, total: listener({"evaluated": done, "items": total}),
            ),
        ]
        if evaluation.tasks:
            snapshots = Snapshots(self.run_dir, snapshot_limit(evaluation))
            take: LeaveSnapshot | ScoreInTurn
            if self.scored_beside:
                take = LeaveSnapshot(snapshots)
            else:
                take = ScoreInTurn(plain, self.dataset, self.tasks, self.run_dir, best)
                take.score_waiting(snapshots)
            hooks.append(TaskHook(self.engine, Schedule(evaluation.tasks_every), take, tracker))
        if training.word_milestones:
            hooks.append(MilestoneHook(self.engine, self.run_dir / MILESTONES))

        def meta() -> dict[str, Any]:
            gathered = gather_objects(log.window())
            return {
                "seconds": clock.seconds,
                "tokens": clock.tokens,
                "recipe": self.recipe.identity(),
                **({"bad_steps": self.bad_steps.counts()} if training.on_bad_step != "stop" else {}),
                **({"windows": gathered} if gathered[0]["tokens"] else {}),
            }

        saving = CheckpointHook(
            self.engine,
            self.checkpoints,
            every,
            training.keep_checkpoints,
            tracker,
            meta,
            writer,
            publish_extra=training.on_bad_step != "roll_back",
            on_saved=(lambda folder: None) if uploader is None else uploader.add,
        )
        hooks.append(saving)
        if listener is not None:
            hooks.append(ProgressHook(listener))
        if self.may_go_on is not None:
            hooks.append(StopHook(evaluation.every, self.may_go_on))
        hooks.append(LeaveHook(saving, self.asked))
        return hooks

    def _load(self, rolling_back: bool) -> tuple[int, Clock, list[dict[str, Any]], bool]:
        """Fill the engine from the last checkpoint, or with the initial weights to roll back without one.

        Returns:
            Step, clock, the windows of :class:`LogHook`, and whether the checkpoint lies outside the period.
        """
        folder, problems = _where_to_continue(self.run_dir, rolling_back, self.remote)
        for problem in problems:
            self.events.add(
                "checkpoint_passed_over",
                f"A damaged checkpoint was passed over ({problem}); going on from {folder.name if folder else '?'}.",
            )
        if folder is None:
            if rolling_back:
                model = build_model(self.recipe.model, self.dataset.vocab_size, seed=self.recipe.seed)
                weights = {name: cpu_copy(parameter) for name, parameter in model.named_parameters()}
                self.engine.load_state(self.engine.initial_state(weights))
            return 0, Clock(), [], False
        state, meta = load_checkpoint(folder)
        self.engine.load_state(state)
        if not rolling_back:
            if self.bad_steps.policy != "stop" and "bad_steps" in meta:
                self.bad_steps.restore(meta["bad_steps"])
            facts = {"step": meta["step"], "workers": rank_and_world()[1], "engine": self.recipe.launch.engine}
            self.events.add("resumed", f"Going on from the checkpoint of step {meta['step']}.", **facts)
        return meta["step"], Clock(meta["seconds"], meta["tokens"]), meta.get("windows", []), is_extra(folder)

    def _record_roll_back(self, tracker: Tracker, start_step: int, passed_over: int) -> None:
        if passed_over >= self.total_steps:
            raise UserError(
                f"Step {passed_over}, the last one, was bad, and nothing follows it after rolling back. "
                "Lower training.learning_rate; its checkpoints are kept."
            )
        tracker.log(
            passed_over,
            {
                "train/rolled_back": self.bad_steps.rolled_back,
                "train/passed_over_steps": passed_over - start_step,
                "words": self.loader.words_seen(passed_over),
            },
        )
        if rank_and_world()[0] == 0:  # what was scored of the weights that are given up
            drop_points(self.run_dir, start_step)
            snapshots = Snapshots(self.run_dir)
            for step in snapshots.waiting():
                if step > start_step:
                    snapshots.remove(step)
        self.events.add(
            "rolled_back",
            f"Step {passed_over} was bad: back to the weights of step {start_step}, passing over the batches since.",
            step=passed_over,
            to=start_step,
        )


def _where_to_continue(run_dir: Path, of_period: bool, remote: Remote | None) -> tuple[Path | None, list[str]]:
    """Rank 0 looks and the others follow, so that all continue from the same step, or all stop.

    Where this machine has no checkpoint, the last one that was copied to ``remote`` is brought here.
    """
    found: tuple[Path | None, list[str]] = (None, [])
    error: str | None = None
    if rank_and_world()[0] == 0:
        try:
            found = find_checkpoint(run_dir / "checkpoints", of_period=of_period)
            if found[0] is None and remote is not None and not of_period:
                problems = remote.fetch(run_dir)
                found = find_checkpoint(run_dir / "checkpoints")[0], problems
        except UserError as problem:
            error = str(problem)
    found, error = gather_objects((found, error))[0]
    if error is not None:
        raise UserError(error)
    if found[0] is not None and remote is not None and not found[0].exists():  # a machine with a disk of its own
        remote.fetch(run_dir, found[0].name)
    return found
