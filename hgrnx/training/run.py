"""One training run from a recipe: builds the pieces, resumes from the last checkpoint, trains, writes the result.

Runs in every worker of a launcher, or in a plain process. torch.distributed must have been started where there
is more than one worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hgrnx.config import DistillConfig, Recipe, to_yaml
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
from hgrnx.tracking.tracker import Tracker
from hgrnx.training.average import AveragingEngine
from hgrnx.training.bad_steps import RollBack
from hgrnx.training.distributed import rank_and_world
from hgrnx.training.engine import build_engine, choose_device
from hgrnx.training.events import EVENTS, EventLog
from hgrnx.training.notice import asked
from hgrnx.training.recompute import recompute_layers
from hgrnx.training.schedules import steps_of
from hgrnx.training.session import Listener, Session
from hgrnx.training.teacher_signal import stored_teacher
from hgrnx.training.weights import last_weights


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
    asked: Callable[[], bool] = asked,
) -> dict[str, Any] | None:
    """Train ``recipe`` in ``run_dir``, going on from its last whole checkpoint; every rank calls it.

    ``open_trackers`` is called on rank 0 with the path of ``metrics.jsonl``; what it returns is told of every
    line and of every durable step. ``scored_beside``: the weights for ``evaluation.tasks`` are left in
    ``snapshots/`` for another process, which scores them; otherwise the ranks score them here, in turn. ``signals``
    is the folder with stored signals of teachers, for ``distill.top_k``. ``go_on`` is asked on rank 0 after every
    evaluation before the end. ``asked`` to leave is looked at after every step, and may say yes on any one rank.
    Returns what is also written to ``result.json``, or None where the run was stopped.

    Raises:
        UserError: the data are too few for one batch, a teacher or a benchmark does not fit, the loss is not
            finite, or the disk refuses.
        Left: it was asked to leave, and has saved a checkpoint.
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
    loader = TrainLoader(
        dataset,
        recipe.training.seq_len,
        recipe.training.batch_size,
        recipe.seed,
        rank=rank,
        world_size=world,
        reset_state=recipe.training.reset_state,
    )
    if (average := recipe.training.weight_average) is not None:
        half_life = steps_of(average.half_life, loader, loader.steps_for(recipe.training.duration))
        engine = AveragingEngine(engine, half_life, average.every)
    if rank == 0:
        _write_run_files(recipe, dataset, run_dir)
    say = None if listener is None else lambda text: listener({"note": text})
    session = Session(
        recipe,
        dataset,
        run_dir,
        engine,
        objective,
        loader,
        EventLog(run_dir / EVENTS if rank == 0 else None, say),
        listener if rank == 0 else None,
        open_trackers,
        asked,
        go_on,
        tasks,
        scored_beside,
    )
    passed_over = 0
    while True:
        try:
            return session.go_on(passed_over)
        except RollBack as bad:
            passed_over = bad.step


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


def _write_run_files(recipe: Recipe, dataset: PreparedDataset, run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    facts = {"data_hash": dataset.hash, "tokenizer_hash": dataset.tokenizer_hash, "data": str(dataset.dir)}
    if recipe.model.architecture == "hgrn2":
        facts["recurrence"] = implementation_note("cuda" if recipe.launch.use_gpu else "cpu")
    write_json(run_dir / "environment.json", describe_environment({**facts, "vocab_size": dataset.vocab_size}))
