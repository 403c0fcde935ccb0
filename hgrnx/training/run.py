"""One training run from a recipe: builds the pieces, resumes from the last checkpoint, trains, writes the result.

Runs in every worker of a launcher, or in a plain process. torch.distributed must have been started where there
is more than one worker.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from hgrnx.config import DistillConfig, Recipe, parse_duration, to_yaml
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.folders import write_json
from hgrnx.data.loader import TrainLoader
from hgrnx.errors import UserError
from hgrnx.models import build_model
from hgrnx.objectives import Distillation, NextToken, ObjectiveModule, load_teachers
from hgrnx.objectives.base import Objective
from hgrnx.ops import implementation_note
from hgrnx.ops.cpu import keep_freed_memory
from hgrnx.tracking.environment import describe_environment
from hgrnx.tracking.tracker import CompositeTracker, JsonlTracker, NullTracker, Tracker
from hgrnx.training import optim
from hgrnx.training.bad_steps import BadSteps, RollBack
from hgrnx.training.checkpoint import find_checkpoint, is_extra, latest_checkpoint, load_checkpoint, load_weights
from hgrnx.training.distributed import gather_objects, rank_and_world, wait_for_all
from hgrnx.training.engine import MOMENTS, Engine, EngineState, build_engine, choose_device, cpu_copy
from hgrnx.training.events import EVENTS, EventLog
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
)
from hgrnx.training.loop import Period, train
from hgrnx.training.notice import asked
from hgrnx.training.recompute import recompute_layers
from hgrnx.training.remote import LONGEST_END_S, LONGEST_LEAVE_S, Remote, Uploader
from hgrnx.training.writer import CheckpointWriter

MILESTONES = "milestones"
"""Folder of a run with the weights at its word milestones."""


class Listener(Protocol):
    """Hears from rank 0 how a run goes: a progress bar, usually in another process."""

    def __call__(self, message: dict[str, Any]) -> None: ...


def run_training(
    recipe: Recipe,
    dataset: PreparedDataset,
    run_dir: Path,
    *,
    listener: Listener | None = None,
    open_trackers: Callable[[Path], Sequence[Tracker]] = lambda metrics_file: (),
    asked: Callable[[], bool] = asked,
) -> dict[str, Any]:
    """Train ``recipe`` in ``run_dir``, going on from its last whole checkpoint; every rank calls it.

    ``open_trackers`` is called on rank 0 with the path of ``metrics.jsonl``; what it returns is told of every
    line and of every durable step. ``asked`` is looked at after every step, and may say yes on any one rank.
    Returns what is also written to ``result.json``.

    Raises:
        UserError: the data are too few for one batch, a teacher does not fit, the loss is not finite, or the
            disk refuses.
        Left: it was asked to leave, and has saved a checkpoint.
    """
    rank, world = rank_and_world()
    torch.manual_seed(recipe.seed)
    if not recipe.launch.use_gpu:
        keep_freed_memory()
    model = build_model(recipe.model, dataset.vocab_size, seed=recipe.seed)
    if recipe.launch.activation_checkpointing:
        recompute_layers(model)
    objective = build_objective(recipe, dataset, run_dir.parent)
    engine = build_engine(ObjectiveModule(model, objective), recipe.training, recipe.launch)
    loader = TrainLoader(
        dataset,
        recipe.training.seq_len,
        recipe.training.batch_size,
        recipe.seed,
        rank=rank,
        world_size=world,
        reset_state=recipe.training.reset_state,
    )
    if rank == 0:
        _write_run_files(recipe, dataset, run_dir)
    say = None if listener is None else lambda text: listener({"note": text})
    session = _Session(
        recipe,
        dataset,
        run_dir,
        engine,
        loader,
        EventLog(run_dir / EVENTS if rank == 0 else None, say),
        listener if rank == 0 else None,
        open_trackers,
        asked,
    )
    passed_over = 0
    while True:
        try:
            return session.go_on(passed_over)
        except RollBack as bad:
            passed_over = bad.step


@dataclass
class _Session:
    """What stays the same while a run goes on from its checkpoints, again and again where it rolls back."""

    recipe: Recipe
    dataset: PreparedDataset
    run_dir: Path
    engine: Engine
    loader: TrainLoader
    events: EventLog
    listener: Listener | None
    open_trackers: Callable[[Path], Sequence[Tracker]]
    asked: Callable[[], bool]

    def __post_init__(self) -> None:
        self.checkpoints = self.run_dir / "checkpoints"
        self.total_steps = self.loader.steps_for(self.recipe.training.duration)
        self.bad_steps = BadSteps(self.recipe.training, self.engine.device)
        place = self.recipe.launch.upload_to
        self.remote = None if place is None else Remote(place, self.run_dir.name)

    def go_on(self, passed_over: int) -> dict[str, Any]:
        """Train from the last checkpoint to the end. ``passed_over``: the step rolled back from, 0 at first.

        Raises:
            RollBack: a bad step came, and the policy is to roll back.
        """
        training, launch = self.recipe.training, self.recipe.launch
        rank, world = rank_and_world()
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
            every = Period(training.checkpoint_every)
            listener = self.listener
            evaluation = EvaluateHook(
                self.engine,
                build_model(self.recipe.model, self.dataset.vocab_size, seed=self.recipe.seed)
                .to(self.engine.device)
                .eval(),
                self.dataset,
                self.recipe.evaluation,
                tracker,
                self.run_dir / "eval",
                None if listener is None else lambda done, total: listener({"evaluated": done, "items": total}),
            )
            log = LogHook(tracker, self.engine, clock, training.log_every, every)
            if windows:
                log.restore(windows)

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
            hooks: list[Hook] = [
                log,
                BadStepHook(tracker, self.events, self.bad_steps),
                evaluation,
                *([MilestoneHook(self.engine, self.run_dir / MILESTONES)] if training.word_milestones else []),
                saving,
                *([ProgressHook(listener)] if listener is not None else []),
                LeaveHook(saving, self.asked),
            ]
            warmup_steps = warmup_length(self.recipe, self.loader, self.total_steps)
            train(
                self.engine,
                self.loader,
                start_step=max(start_step, passed_over),
                total_steps=self.total_steps,
                micro_batch_size=launch.micro_batch_size or training.batch_size // world,
                seed=self.recipe.seed,
                learning_rate=lambda step: optim.learning_rate(step, self.total_steps, warmup_steps, training),
                hooks=hooks,
                bad_steps=self.bad_steps,
                weights_of=start_step,
            )
            result = {
                "steps": self.total_steps,
                "words": self.loader.words_seen(self.total_steps),
                "epochs": self.loader.epoch_of(self.total_steps),
                "seconds": clock.seconds,
                "tokens_per_second": clock.tokens / clock.seconds,
                "peak_memory_mb": max(gather_objects(peak_memory_mb(self.engine.device))),
                "workers": world,
                "parameters": evaluation.model.parameter_counts(),
            }
            if rank == 0:
                write_json(self.run_dir / "result.json", result)
            wait_for_all()
            finished = True
            return result
        finally:
            with contextlib.suppress(UserError):  # told already; what is raised now, if anything, comes first
                writer.wait()
            if uploader is not None:
                uploader.close(LONGEST_END_S if finished else LONGEST_LEAVE_S)
            tracker.close(final=finished)

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
                self.engine.load_state(self._initial_state())
            return 0, Clock(), [], False
        state, meta = load_checkpoint(folder)
        self.engine.load_state(state)
        if not rolling_back:
            if self.bad_steps.policy != "stop" and "bad_steps" in meta:
                self.bad_steps.restore(meta["bad_steps"])
            facts = {"step": meta["step"], "workers": rank_and_world()[1], "engine": self.recipe.launch.engine}
            self.events.add("resumed", f"Going on from the checkpoint of step {meta['step']}.", **facts)
        return meta["step"], Clock(meta["seconds"], meta["tokens"]), meta.get("windows", []), is_extra(folder)

    def _initial_state(self) -> EngineState:
        model = build_model(self.recipe.model, self.dataset.vocab_size, seed=self.recipe.seed)
        weights = {name: cpu_copy(parameter) for name, parameter in model.named_parameters()}
        zeros = {moment: {name: torch.zeros_like(w) for name, w in weights.items()} for moment in MOMENTS}
        return EngineState(weights, zeros, 0)

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


def build_objective(recipe: Recipe, dataset: PreparedDataset, runs: Path) -> Objective:
    """Next token, or distillation from the recipe's teachers: names of runs in ``runs``, or folders."""
    distill: DistillConfig | None = recipe.distill
    if distill is None:
        return NextToken()
    if not distill.teachers:
        raise UserError("distill.teachers is empty: name a finished run or a Hugging Face folder to learn from.")
    teacher = load_teachers(
        distill.teachers,
        dataset.tokenizer_hash,
        dataset.vocab_size,
        last_weights,
        choose_device(recipe.launch),
        recipe.training.precision,
        runs,
    )
    return Distillation(teacher, distill.weight, distill.temperature)


def last_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's last whole checkpoint, by parameter name.

    Raises:
        UserError: the run has none.
    """
    folder = latest_checkpoint(run_dir / "checkpoints")
    if folder is None:
        raise UserError(f"The run {run_dir} has no checkpoint yet. Start it again to continue it.")
    return load_weights(folder)


def warmup_length(recipe: Recipe, loader: TrainLoader, total_steps: int) -> int:
    """Steps of the warm-up; a percentage is of the whole run."""
    amount, unit = parse_duration(recipe.training.warmup)
    if unit == "percent":
        return max(1, round(total_steps * amount / 100))
    return min(total_steps, loader.steps_for(recipe.training.warmup))


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in megabytes: of the GPU's allocator, or of this process on CPU (resident, all it ever used)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _write_run_files(recipe: Recipe, dataset: PreparedDataset, run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    facts = {"data_hash": dataset.hash, "tokenizer_hash": dataset.tokenizer_hash, "data": str(dataset.dir)}
    if recipe.model.architecture == "hgrn2":
        facts["recurrence"] = implementation_note("cuda" if recipe.launch.use_gpu else "cpu")
    write_json(run_dir / "environment.json", describe_environment({**facts, "vocab_size": dataset.vocab_size}))
