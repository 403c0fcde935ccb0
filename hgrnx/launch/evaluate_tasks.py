"""Scoring a model on benchmark tasks, in this process: all is checked, then run, kept as it is finished, and shown."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress

from hgrnx.data.tokenizer import BOS
from hgrnx.errors import UserError, joined
from hgrnx.evaluation.catalogue import Plan, plan_tasks
from hgrnx.evaluation.files import read_gzip
from hgrnx.evaluation.glue import GlueProgress, GlueResult, run_glue
from hgrnx.evaluation.glue_bar import glue_bar
from hgrnx.evaluation.results import (
    PREDICTIONS,
    SCORES,
    TABLE,
    glue_result,
    run_task,
    save_results,
    task_metrics,
    weights_hash,
)
from hgrnx.evaluation.scorer import Scorer
from hgrnx.evaluation.submission import check_submission_path, write_submission
from hgrnx.launch.task_request import TaskRequest
from hgrnx.launch.tracked import log_evaluation
from hgrnx.ops.cpu import guard_bf16_products
from hgrnx.paths import Places
from hgrnx.report.task_scores import plot_task_scores, print_task_scores
from hgrnx.runs import OpenedModel, evaluation_folder, find_run, open_folder

_PLOT = "tasks.png"
_T = TypeVar("_T")


def evaluate_tasks(
    name: str, places: Places, request: TaskRequest, console: Console, *, fresh: bool = False
) -> dict[str, Any]:
    """Score a run's newest weights, or a Hugging Face folder, on benchmark tasks; print and save the scores.

    Args:
        fresh: ask again what was finished before.

    Returns:
        The content of ``tasks.json`` in the evaluation folder.

    Raises:
        UserError: before anything is run, with all problems at once: no such model, unknown tasks, data that is
            missing or damaged, an output that cannot be written; later: scores that are no numbers.
    """
    folder, plan = _check(name, places, request)
    if request.precision == "bf16":
        guard_bf16_products()
    opened = open_folder(folder)
    model = opened.model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = opened.tokenizer()
    bos_id = tokenizer.token_to_id(BOS)
    if bos_id is None:
        raise UserError(f"The tokenizer of {folder} has no token '{BOS}', with which every text begins.")
    weights = weights_hash(model)
    facts = {"model": folder.name, "weights": weights, "precision": request.precision}
    out = evaluation_folder(folder, places)
    kept = out / "finished" / f"{weights[:16]}-{request.precision}"
    if fresh:
        shutil.rmtree(kept, ignore_errors=True)
    bars: list[Callable[[GlueProgress], None]] = []
    # Made first: it refuses what is wrong with its data. Run last: it takes longest.
    tunings = _tunings(opened, plan, request, bos_id, weights, kept / "glue", lambda now: bars[-1](now))
    content: dict[str, Any] = {}
    for task in plan.tasks:
        with _progress(task.name, len(task.subtasks), console) as on_subtask:
            result = run_task(task, Scorer(model, tokenizer, bos_id, request.precision), kept, on_subtask)
        content = save_results(out, {task.name: result}, facts)
    finished: list[GlueResult] = []
    with glue_bar(console) as bar:
        bars.append(bar)
        for tuning in tunings:
            console.print(f"{tuning.task}: {100 * tuning.score:.1f} ({tuning.metric})", highlight=False)
            finished.append(tuning)
            assert plan.glue_folder is not None
            content = save_results(out, {"glue": glue_result(finished, plan.glue_folder)}, facts)
    _show(content, out, folder, places, console)
    if request.submission is not None:
        texts = {task.name: {subtask: task.texts(subtask) for subtask in task.subtasks} for task in plan.tasks}
        predictions = read_gzip(out / PREDICTIONS) or {}
        asked = {task: predictions[task] for task in [*texts, *(["glue"] if finished else [])]}
        for path in write_submission(request.submission, asked, texts):
            console.print(f"Predictions {path}", highlight=False)
    return content


def _check(name: str, places: Places, request: TaskRequest) -> tuple[Path, Plan]:
    problems: list[str] = []

    def attempt(step: Callable[[], _T]) -> _T | None:
        try:
            return step()
        except UserError as error:
            problems.append(str(error))
            return None

    folder = attempt(lambda: find_run(name, places))
    plan = attempt(
        lambda: plan_tasks(
            request.tasks,
            request.data,
            bear_templates=request.bear_templates,
            bear_reduction=request.bear_reduction,
        )
    )
    if request.submission is not None:
        submission = request.submission
        attempt(lambda: check_submission_path(submission))
    if folder is None or plan is None or problems:
        raise UserError(joined(problems))
    return folder, plan


def _tunings(
    opened: OpenedModel,
    plan: Plan,
    request: TaskRequest,
    bos_id: int,
    weights: str,
    kept: Path,
    on_progress: Callable[[GlueProgress], None],
) -> Iterator[GlueResult]:
    if not plan.glue:
        return iter(())
    assert plan.glue_folder is not None
    return run_glue(
        lambda: open_folder(opened.folder).model,
        opened.tokenizer(),
        bos_id,
        plan.glue_folder,
        plan.glue,
        request.glue,
        out_dir=kept,
        identity=weights,
        seeds=request.seeds,
        device=opened.model.head_weight.device,
        on_progress=on_progress,
    )


@contextmanager
def _progress(name: str, subtasks: int, console: Console) -> Iterator[Callable[[str], None]]:
    started = time.monotonic()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task(name, total=subtasks)
        yield lambda _: progress.advance(bar)
    console.print(f"{name}: {subtasks} subtasks in {time.monotonic() - started:.0f} s", highlight=False)


def _show(content: dict[str, Any], out: Path, folder: Path, places: Places, console: Console) -> None:
    """The table, the figure, the files' places, and all of it to the run in MLflow if it has one."""
    plot_task_scores(content, out / _PLOT, folder.name)
    console.print()
    print_task_scores(content, console)
    console.print(f"\nScores {out / SCORES}\nTable  {out / TABLE}\nFigure {out / _PLOT}", highlight=False)
    log_evaluation(
        places, folder, task_metrics(content), [out / name for name in (SCORES, TABLE, PREDICTIONS)], out / _PLOT
    )
