"""One training run from a recipe: builds the pieces, resumes from the last checkpoint, trains, writes the result.

Runs in every worker of a launcher, or in a plain process. torch.distributed must have been started where there
is more than one worker.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from hgrnx.config import DistillConfig, Recipe, TrainingConfig, parse_duration, to_yaml
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.folders import write_json
from hgrnx.data.loader import TrainLoader
from hgrnx.errors import UserError
from hgrnx.evaluation.points import check_best, zero_shot_tasks
from hgrnx.models import build_model
from hgrnx.objectives import Distillation, NextToken, ObjectiveModule, load_teachers
from hgrnx.objectives.base import Objective
from hgrnx.ops import implementation_note
from hgrnx.ops.cpu import keep_freed_memory
from hgrnx.tracking.environment import describe_environment
from hgrnx.tracking.tracker import CompositeTracker, JsonlTracker, NullTracker, Tracker
from hgrnx.training import optim
from hgrnx.training.average import AveragingEngine
from hgrnx.training.best import BestWeights
from hgrnx.training.checkpoint import latest_checkpoint, load_checkpoint
from hgrnx.training.distributed import gather_objects, rank_and_world, wait_for_all
from hgrnx.training.engine import build_engine, choose_device
from hgrnx.training.hooks import (
    CheckpointHook,
    Clock,
    EvaluateHook,
    Hook,
    LogHook,
    MilestoneHook,
    ProgressHook,
    StopHook,
)
from hgrnx.training.loop import Period, Stopped, train
from hgrnx.training.recompute import recompute_layers
from hgrnx.training.snapshots import Snapshots
from hgrnx.training.task_hook import LeaveSnapshot, Schedule, ScoreInTurn, TaskHook, snapshot_limit
from hgrnx.training.teacher_signal import stored_teacher
from hgrnx.training.weights import last_weights

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
    scored_beside: bool = False,
    signals: Path | None = None,
    go_on: Callable[[], bool] | None = None,
) -> dict[str, Any] | None:
    """Train ``recipe`` in ``run_dir``, going on from its last whole checkpoint; every rank calls it.

    ``open_trackers`` is called on rank 0 with the path of ``metrics.jsonl``; what it returns is told of every
    line and of every durable step. ``scored_beside``: the weights for ``evaluation.tasks`` are left in
    ``snapshots/`` for another process, which scores them; otherwise the ranks score them here, in turn. ``signals``
    is the folder with stored signals of teachers, for ``distill.top_k``. ``go_on`` is asked on rank 0 after every
    evaluation before the end. Returns what is also written to ``result.json``, or None where the run was stopped.

    Raises:
        UserError: the data are too few for one batch, a teacher or a benchmark does not fit, the loss is not
            finite, or the disk refuses.
    """
    rank, world = rank_and_world()
    tasks = [] if scored_beside else zero_shot_tasks(recipe.evaluation)
    if not scored_beside:  # whoever scores has looked at all this
        check_best(recipe.evaluation, dataset.pairs_dir, tasks)
    torch.manual_seed(recipe.seed)
    if not recipe.launch.use_gpu:
        keep_freed_memory()
    model = build_model(recipe.model, dataset.vocab_size, seed=recipe.seed)
    if recipe.launch.activation_checkpointing:
        recompute_layers(model)
    objective = build_objective(recipe, dataset, run_dir.parent, signals)
    engine = build_engine(ObjectiveModule(model, objective), recipe.training, recipe.launch)
    training = recipe.training
    loader = TrainLoader(
        dataset,
        recipe.training.seq_len,
        recipe.training.batch_size,
        recipe.seed,
        rank=rank,
        world_size=world,
        reset_state=recipe.training.reset_state,
    )
    total_steps = loader.steps_for(recipe.training.duration)
    warmup_steps = steps_of(training.warmup, loader, total_steps)
    decay_steps = steps_of(training.decay, loader, total_steps)
    if training.weight_average is not None:
        half_life = steps_of(training.weight_average.half_life, loader, total_steps)
        engine = AveragingEngine(engine, half_life, training.weight_average.every)

    start_step, clock = 0, Clock()
    checkpoints = run_dir / "checkpoints"
    folder = _where_to_continue(checkpoints)
    if folder is not None:
        state, meta = load_checkpoint(folder)
        engine.load_state(state)
        start_step, clock = meta["step"], Clock(meta["seconds"], meta["tokens"])

    tracker: Tracker = NullTracker()
    if rank == 0:
        _write_run_files(recipe, dataset, run_dir)
        metrics = run_dir / "metrics.jsonl"
        tracker = CompositeTracker([JsonlTracker(metrics, start_step), *open_trackers(metrics)])
        tracker.durable(start_step)
    finished = False
    try:
        every = Period(recipe.training.checkpoint_every)
        best = BestWeights(run_dir, recipe.evaluation.best)
        evaluation = EvaluateHook(
            engine,
            build_model(recipe.model, dataset.vocab_size, seed=recipe.seed).to(engine.device).eval(),
            dataset,
            recipe.evaluation,
            tracker,
            run_dir / "eval",
            best,
            None if listener is None or rank else lambda done, total: listener({"evaluated": done, "items": total}),
        )
        points: list[Hook] = []
        if recipe.evaluation.tasks:
            snapshots = Snapshots(run_dir, snapshot_limit(recipe.evaluation))
            take: LeaveSnapshot | ScoreInTurn
            if scored_beside:
                take = LeaveSnapshot(snapshots)
            else:
                take = ScoreInTurn(evaluation.model, dataset, tasks, run_dir, best)
                take.score_waiting(snapshots)
            points.append(TaskHook(engine, Schedule(recipe.evaluation.tasks_every), take, tracker))
        hooks: list[Hook] = [
            LogHook(tracker, engine, clock, recipe.training.log_every, every),
            evaluation,
            *points,
            *([MilestoneHook(engine, run_dir / MILESTONES)] if recipe.training.word_milestones else []),
            CheckpointHook(
                engine,
                checkpoints,
                every,
                recipe.training.keep_checkpoints,
                tracker,
                lambda: {"seconds": clock.seconds, "tokens": clock.tokens, "recipe": recipe.identity()},
            ),
        ]
        if listener is not None and rank == 0:
            hooks.append(ProgressHook(listener))
        if go_on is not None:
            hooks.append(StopHook(recipe.evaluation.every, go_on))
        train(
            engine,
            loader,
            start_step=start_step,
            total_steps=total_steps,
            micro_batch_size=recipe.launch.micro_batch_size or recipe.training.batch_size // world,
            seed=recipe.seed,
            learning_rate=lambda step: optim.learning_rate(step, total_steps, warmup_steps, training, decay_steps),
            hooks=hooks,
            seq_len=seq_len_schedule(training, loader, total_steps),
            before_step=(lambda step: objective.at(step, total_steps)) if isinstance(objective, Distillation) else None,
        )
        result = {
            "steps": total_steps,
            "words": loader.words_seen(total_steps),
            "epochs": loader.epoch_of(total_steps),
            "seconds": clock.seconds,
            "tokens_per_second": clock.tokens / clock.seconds,
            "peak_memory_mb": peak_memory_mb(engine.device),
            "workers": world,
            "parameters": evaluation.model.parameter_counts(),
        }
        peaks = gather_objects(result["peak_memory_mb"])
        result["peak_memory_mb"] = max(peaks)
        if rank == 0:
            write_json(run_dir / "result.json", result)
        wait_for_all()
        finished = True
        return result
    except Stopped:
        return None
    finally:
        tracker.close(final=finished)


def _where_to_continue(checkpoints: Path) -> Path | None:
    """Rank 0 looks and the others follow, so that all continue from the same step, or all stop."""
    found: Path | None = None
    problem: str | None = None
    if rank_and_world()[0] == 0:
        try:
            found = latest_checkpoint(checkpoints)
        except UserError as error:
            problem = str(error)
    found, problem = gather_objects((found, problem))[0]
    if problem is not None:
        raise UserError(problem)
    return found


def build_objective(recipe: Recipe, dataset: PreparedDataset, runs: Path, signals: Path | None = None) -> Objective:
    """Next token, or distillation from the recipe's teachers: names of runs in ``runs``, or folders.

    With ``distill.top_k`` from what is stored of the teacher in ``signals``.
    """
    distill: DistillConfig | None = recipe.distill
    if distill is None:
        return NextToken()
    if not distill.teachers:
        raise UserError("distill.teachers is empty: name a finished run or a Hugging Face folder to learn from.")
    if distill.top_k is not None and distill.weight > 0:
        assert signals is not None
        return Distillation(stored_teacher(recipe, dataset, runs, signals), distill.weight, distill.temperature)
    teacher = load_teachers(
        distill.teachers,
        dataset.tokenizer_hash,
        dataset.vocab_size,
        last_weights,
        choose_device(recipe.launch),
        recipe.training.precision,
        runs,
    )
    return Distillation(
        teacher,
        distill.weight,
        distill.temperature,
        final_weight=distill.final_weight,
        final_temperature=distill.final_temperature,
        reverse_kl=distill.reverse_kl,
        hidden_weight=distill.hidden_weight,
    )


def steps_of(duration: str, loader: TrainLoader, total_steps: int) -> int:
    """``duration`` in steps, at least one and at most the run's; a percentage is of the whole run."""
    amount, unit = parse_duration(duration)
    if unit == "percent":
        return min(total_steps, max(1, round(total_steps * amount / 100)))
    return min(total_steps, loader.steps_for(duration))


def seq_len_schedule(training: TrainingConfig, loader: TrainLoader, total_steps: int) -> Callable[[int], int] | None:
    """Tokens of a sequence at each step under ``training.seq_len_warmup``; None without it."""
    warmup, seq_len = training.seq_len_warmup, training.seq_len
    if warmup is None:
        return None
    steps = steps_of(warmup.duration, loader, total_steps)
    doublings = (seq_len // warmup.first).bit_length() - 1
    return lambda step: warmup.first << min(doublings, step * doublings // steps)


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
