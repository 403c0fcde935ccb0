"""What a job does, from the text to the table: prepare, train each stage once, compare.

A stage is a run with checkpoints of its own. A finished stage is not run again; a stage that was interrupted
goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hgrnx.config import AnyRecipe, DataConfig, DistillRecipe, Recipe, flatten, run_name, to_yaml
from hgrnx.console import make_console
from hgrnx.data.benchmarks import read_minimal_pairs
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError
from hgrnx.launch.cluster import connected
from hgrnx.launch.ray_train import train_on_ray
from hgrnx.launch.tracked import JobTracking
from hgrnx.paths import Places
from hgrnx.report.plots import plot_curves, plot_phenomena
from hgrnx.report.tables import print_summary, summary_markdown


@dataclass(frozen=True)
class JobResult:
    """Where the pieces of a finished job are."""

    folder: Path
    """The job's own folder: summary table and plots."""
    stages: Mapping[str, Path]
    """Run folder of each stage, by label, in order."""


def run_job(recipe: AnyRecipe, places: Places, *, fresh: bool = False, console: Console | None = None) -> JobResult:
    """Do all that ``recipe`` asks for: a single run, or teacher, student and twin, each evaluated.

    Args:
        fresh: remove what earlier jobs of exactly this recipe left, and start over.

    Raises:
        UserError: anything the user has to put right; nothing half-written is taken for finished later.
    """
    console = console or make_console()
    console.print(
        f"[bold]{recipe.name}[/bold]\n  runs    {places.runs}\n  data    {places.data}\n  MLflow  {places.mlflow_uri}",
        highlight=False,
    )
    _check_writable(places)
    if recipe.evaluation.minimal_pairs is not None:  # before hours of training, not after
        read_minimal_pairs(Path(recipe.evaluation.minimal_pairs))
    dataset = prepare_with_progress(recipe.data, places, console)
    tracking = JobTracking(places)
    with connected(places):
        if isinstance(recipe, Recipe):
            return _run_stages({recipe.name: recipe}, recipe, dataset, places, tracking, fresh, console)
        return _run_stages(_distillation_stages(recipe, dataset), recipe, dataset, places, tracking, fresh, console)


def _distillation_stages(recipe: DistillRecipe, dataset: PreparedDataset) -> dict[str, Recipe]:
    stages: dict[str, Recipe] = {}
    teachers: tuple[str, ...] = recipe.distill.teachers
    teacher = recipe.teacher_recipe()
    if teacher is not None:
        stages["teacher"] = teacher
        teachers = (run_name(teacher, dataset.hash),)
    stages["student"] = recipe.student_recipe(teachers)
    if recipe.twin:
        stages["twin"] = recipe.twin_recipe()
    return stages


def _run_stages(
    stages: Mapping[str, Recipe],
    recipe: AnyRecipe,
    dataset: PreparedDataset,
    places: Places,
    tracking: JobTracking,
    fresh: bool,
    console: Console,
) -> JobResult:
    names = {label: run_name(stage, dataset.hash) for label, stage in stages.items()}
    folders = {label: places.run_dir(name) for label, name in names.items()}
    digest = hashlib.sha256(json.dumps(sorted(names.items())).encode()).hexdigest()[:8]
    folder = places.run_dir(f"{recipe.name}-job-{digest}")
    if fresh:
        for old in (*folders.values(), folder):
            shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    job = tracking.start(folder, folder.name, flatten(recipe), dataset)
    finished = False
    try:
        for label, stage in stages.items():
            _run_stage(label, stage, folders[label], dataset, places, tracking, job, console)
        _compare(folders, folder, dataset, tracking, job, console)
        finished = True
    finally:
        tracking.finish(job, finished)
    console.print(
        f"\nTable and plots   {folder}\nCurves and scores hgrnx ui      (MLflow run '{folder.name}')\n"
        f"Try the student   hgrnx generate {names.get('student') or next(iter(names.values()))} --prompt '...'",
        highlight=False,
    )
    return JobResult(folder, folders)


def _run_stage(
    label: str,
    recipe: Recipe,
    run_dir: Path,
    dataset: PreparedDataset,
    places: Places,
    tracking: JobTracking,
    job: str,
    console: Console,
) -> None:
    if (run_dir / "result.json").is_file():
        console.print(f"{label}: finished before ({run_dir.name}); --fresh would run it again", highlight=False)
        tracking.link(job, label, run_dir)
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    run = tracking.start(run_dir, run_dir.name, flatten(recipe), dataset, parent=job)
    finished = False
    try:
        train_on_ray(recipe, dataset, run_dir, places, title=label, mlflow_run=run)
        finished = True
    finally:
        tracking.finish_training(run, run_dir, finished)


def _compare(
    folders: Mapping[str, Path],
    folder: Path,
    dataset: PreparedDataset,
    tracking: JobTracking,
    job: str,
    console: Console,
) -> None:
    """The table and the plots of a job, on the terminal, on disk and in MLflow."""
    (folder / "summary.md").write_text(summary_markdown(folders), encoding="utf-8")
    plot_curves({label: run / "metrics.jsonl" for label, run in folders.items()}, folder / "curves.png")
    plot_phenomena(folders, folder / "phenomena.png")
    tracking.log_comparison(job, folder, folders, dataset)
    console.print()
    print_summary(folders, console)


def prepare_with_progress(
    config: DataConfig, places: Places, console: Console, *, fresh: bool = False
) -> PreparedDataset:
    """:func:`hgrnx.data.prepare.prepare` with a progress bar where there is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        return prepare(config, places.data, fresh=fresh, on_progress=show)


def _check_writable(places: Places) -> None:
    for folder in (places.runs, places.data):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".write-probe"
            probe.write_bytes(b"hgrnx")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"Cannot write in {folder}: {error.strerror}. "
                "Choose another place with --home DIR (or HGRNX_HOME), or free space and mend its permissions."
            ) from None
