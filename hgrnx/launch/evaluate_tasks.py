"""Scoring a model on benchmark tasks: all is checked, then asked here or on Ray, kept as it is finished, and shown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from hgrnx.errors import UserError, joined
from hgrnx.evaluation.catalogue import Plan
from hgrnx.evaluation.files import read_gzip
from hgrnx.evaluation.glue import GlueProgress, KeptTunings, Tune, kept_glue, run_glue
from hgrnx.evaluation.glue_bar import glue_bar
from hgrnx.evaluation.glue_jobs import Job, plan_jobs
from hgrnx.evaluation.results import (
    PREDICTIONS,
    SCORES,
    TABLE,
    glue_result,
    save_results,
    task_metrics,
    task_result,
)
from hgrnx.evaluation.shares import Ask, Share, ask_here, run_shares
from hgrnx.evaluation.submission import check_submission_path, write_submission
from hgrnx.launch.subject import OpenedSubject, find_tasks, open_subject, own_device
from hgrnx.launch.task_progress import task_progress
from hgrnx.launch.task_request import TaskRequest
from hgrnx.launch.tracked import log_evaluation
from hgrnx.paths import Places
from hgrnx.report.task_scores import plot_task_scores, print_task_scores
from hgrnx.runs import evaluation_folder, find_run

_PLOT = "tasks.png"
_T = TypeVar("_T")


@dataclass
class _Screen:
    """Where those at work tell how far they are: what is shown at the time."""

    on_wait: Callable[[str], None] = lambda _: None
    on_tuning: Callable[[GlueProgress], None] = lambda _: None


def evaluate_tasks(
    name: str,
    places: Places,
    request: TaskRequest,
    console: Console,
    *,
    fresh: bool = False,
    workers: int | None = None,
    cpus_per_worker: int = 1,
    on_share: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Score a run's newest weights, or a Hugging Face folder, on benchmark tasks; print and save the scores.

    Args:
        fresh: ask again what was finished before.
        workers: how many Ray workers share the work; 0 for this process alone. When None, all devices of the cluster in
            ``RAY_ADDRESS``, and without one this process.
        cpus_per_worker: of each Ray worker.
        on_share: called whenever some items of a zero-shot task are finished; an exception of it ends the call, and
            they are kept.

    Returns:
        The content of ``tasks.json`` in the evaluation folder.

    Raises:
        UserError: before anything is run, with all problems at once: no such model, unknown tasks, data that is
            missing or damaged, an output that cannot be written; later: scores that are no numbers, workers that are
            lost again and again.
    """
    folder, plan, jobs = _check(name, places, request)
    on_ray = bool(workers) or (workers is None and "RAY_ADDRESS" in os.environ)
    subject = open_subject(folder, request, "cpu" if on_ray else own_device())
    facts = {"model": folder.name, "weights": subject.weights, "precision": request.precision}
    out = evaluation_folder(folder, places)
    kept = out / "finished" / f"{subject.weights[:16]}-{request.precision}"
    kept_tunings = KeptTunings(kept / "glue", subject.weights, subject.tokenizer, subject.bos_id)
    if fresh:
        for task in plan.tasks:
            shutil.rmtree(kept / task.name, ignore_errors=True)
        kept_tunings.forget(plan.glue)
    content: dict[str, Any] = {}
    screen = _Screen()
    with _at_work(subject, plan, places, screen, on_ray, workers, cpus_per_worker) as (ask, tune):
        if plan.tasks:
            with task_progress(plan.tasks, console) as progress:
                screen.on_wait = progress.show

                def note(share: Share, before: bool) -> None:
                    progress.add(share, before)
                    if on_share is not None:
                        on_share()

                for task, predictions in run_shares(plan.tasks, ask, kept, note):
                    content = save_results(out, {task.name: task_result(task, predictions)}, facts)
            screen.on_wait = lambda _: None
        if jobs:
            assert plan.glue_folder is not None
            finished = kept_glue(plan.glue_folder, plan.glue, request.glue, kept_tunings, request.seeds)
            with glue_bar(console) as screen.on_tuning:
                for tuned in run_glue(jobs, tune, kept_tunings, request.seeds):
                    console.print(f"{tuned.task}: {100 * tuned.score:.1f} ({tuned.metric})", highlight=False)
                    finished.append(tuned)
                    content = save_results(out, {"glue": glue_result(finished, plan.glue_folder)}, facts)
    _show(content, out, folder, places, console)
    if request.submission is not None:
        texts = {task.name: {subtask: task.texts(subtask) for subtask in task.subtasks} for task in plan.tasks}
        all_predictions = read_gzip(out / PREDICTIONS) or {}
        asked = {task: all_predictions[task] for task in [*texts, *(["glue"] if jobs else [])]}
        for path in write_submission(request.submission, asked, texts):
            console.print(f"Predictions {path}", highlight=False)
    return content


def _check(name: str, places: Places, request: TaskRequest) -> tuple[Path, Plan, list[Job]]:
    problems: list[str] = []

    def attempt(step: Callable[[], _T]) -> _T | None:
        try:
            return step()
        except UserError as error:
            problems.append(str(error))
            return None

    folder = attempt(lambda: find_run(name, places))
    plan = attempt(lambda: find_tasks(request, request.tasks))
    jobs: list[Job] = []
    if plan is not None and plan.glue_folder is not None and plan.glue:
        glue_folder, names = plan.glue_folder, plan.glue
        jobs = attempt(lambda: plan_jobs(glue_folder, names, request.glue)) or []
    if request.submission is not None:
        submission = request.submission
        attempt(lambda: check_submission_path(submission))
    if folder is None or plan is None or problems:
        raise UserError(joined(problems))
    return folder, plan, jobs


@contextmanager
def _at_work(
    subject: OpenedSubject,
    plan: Plan,
    places: Places,
    screen: _Screen,
    on_ray: bool,
    count: int | None,
    cpus: int,
) -> Iterator[tuple[Ask, Tune]]:
    """What asks and fine-tunes: this process, or workers on Ray."""
    if not on_ray:
        yield ask_here(plan.tasks, subject.scorer()), subject.tuner(lambda now: screen.on_tuning(now)).tune
        return
    from hgrnx.launch.ray_eval import Subject, workers

    names = tuple(task.name for task in plan.tasks)
    meant = Subject(subject.folder, subject.weights, subject.request, names)
    with workers(
        places, meant, count, cpus, lambda text: screen.on_wait(text), lambda now: screen.on_tuning(now)
    ) as made:
        yield made.ask, made.tune


def _show(content: dict[str, Any], out: Path, folder: Path, places: Places, console: Console) -> None:
    """The table, the figure, the files' places, and all of it to the run in MLflow if it has one."""
    plot_task_scores(content, out / _PLOT, folder.name)
    console.print()
    print_task_scores(content, console)
    console.print(f"\nScores {out / SCORES}\nTable  {out / TABLE}\nFigure {out / _PLOT}", highlight=False)
    log_evaluation(
        places, folder, task_metrics(content), [out / name for name in (SCORES, TABLE, PREDICTIONS)], out / _PLOT
    )
