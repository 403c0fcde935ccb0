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

from hgrnx.config import AnyRecipe, Recipe, flatten, run_name, to_yaml
from hgrnx.console import make_console
from hgrnx.data.benchmarks import read_minimal_pairs
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.folders import write_json
from hgrnx.data.progress import prepare_with_progress
from hgrnx.data.run_ledger import LEDGER, RunLedger
from hgrnx.errors import UserError
from hgrnx.evaluation.points import CURVE, check_best, zero_shot_tasks
from hgrnx.launch.beside import BesideScorer
from hgrnx.launch.cluster import connected
from hgrnx.launch.evaluate import score_again_if_asked_for_more
from hgrnx.launch.ray_train import train_on_ray
from hgrnx.launch.teacher_cache import ensure_signal
from hgrnx.launch.tracked import JobTracking
from hgrnx.objectives import find_teachers
from hgrnx.paths import Places
from hgrnx.report.dynamics import DYNAMICS, plot_dynamics
from hgrnx.report.plots import plot_curves, plot_phenomena
from hgrnx.report.tables import print_summary, summary_markdown
from hgrnx.tracking.mlflow import stored_run_id
from hgrnx.tracking.store_check import shown
from hgrnx.training.ledger import check_plan, plan_ledgers
from hgrnx.training.snapshots import Snapshots


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
        f"[bold]{recipe.name}[/bold]\n  runs    {places.runs}\n  data    {places.data}\n"
        f"  MLflow  {shown(places.mlflow_uri)}",
        highlight=False,
    )
    check_writable(places)
    if recipe.evaluation.minimal_pairs is not None:  # before hours of training, not after
        read_minimal_pairs(Path(recipe.evaluation.minimal_pairs))
    recipe = with_whole_data_path(recipe)
    tasks = zero_shot_tasks(recipe.evaluation)
    dataset = prepare_with_progress(recipe.data, places, console)
    check_best(recipe.evaluation, dataset.pairs_dir, tasks)
    job = _Job(recipe, dataset, places, JobTracking(places), console)
    with connected(places):
        return job.run(fresh)


def with_whole_data_path(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with ``evaluation.data`` as an absolute path: workers run elsewhere than this process."""
    if recipe.evaluation.data is None:
        return recipe
    data = str(Path(recipe.evaluation.data).expanduser().resolve())
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"data": data})})


def job_stages(recipe: AnyRecipe, dataset: PreparedDataset, runs: Path) -> dict[str, Recipe]:
    """The runs of a job, by label, in order.

    Raises:
        UserError: a teacher that the recipe names is missing or unfinished, or uses another tokenizer.
    """
    if recipe.distill is not None and recipe.distill.teachers:
        folders = find_teachers(recipe.distill.teachers, dataset.tokenizer_hash, runs)
        # Workers run elsewhere than this process: a path must be whole, and a run is known by its name.
        teachers = tuple(folder.name if folder.parent == runs else str(folder.resolve()) for folder in folders)
        distill = recipe.distill.model_copy(update={"teachers": teachers})
        recipe = recipe.model_copy(update={"distill": distill})
    if isinstance(recipe, Recipe):
        return {recipe.name: recipe}
    stages: dict[str, Recipe] = {}
    teachers = recipe.distill.teachers
    teacher = recipe.teacher_recipe()
    if teacher is not None:
        stages["teacher"] = teacher
        teachers = (run_name(teacher, dataset.hash),)
    for generation in range(1, recipe.distill.generations + 1):
        student = recipe.student_recipe(teachers, generation)
        stages[student.name.removeprefix(f"{recipe.name}-")] = student
        teachers = (run_name(student, dataset.hash),)
    if recipe.twin:
        stages["twin"] = recipe.twin_recipe()
    return stages


class _Job:
    """The stages of one job, their folders, and the MLflow run that they belong to."""

    def __init__(
        self, recipe: AnyRecipe, dataset: PreparedDataset, places: Places, tracking: JobTracking, console: Console
    ) -> None:
        self.recipe, self.dataset, self.places = recipe, dataset, places
        self.tracking, self.console = tracking, console
        self.stages = job_stages(recipe, dataset, places.runs)
        names = {label: run_name(stage, dataset.hash) for label, stage in self.stages.items()}
        self.runs = {label: places.run_dir(name) for label, name in names.items()}
        self.ledgers = plan_ledgers(self.stages, names, dataset, places.runs)
        for label, stage in self.stages.items():  # before hours of training, not after
            for warning in check_plan(stage, self.ledgers[label]):
                console.print(f"Warning: {label}: {warning}", highlight=False)
        digest = hashlib.sha256(json.dumps(sorted(names.items())).encode()).hexdigest()[:8]
        self.folder = places.run_dir(f"{recipe.name}-job-{digest}")

    def run(self, fresh: bool) -> JobResult:
        if fresh:
            for old in (*self.runs.values(), self.folder):
                shutil.rmtree(old, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.yaml").write_text(to_yaml(self.recipe), encoding="utf-8")
        parent = self.tracking.start(self.folder, self.folder.name, flatten(self.recipe), self.dataset)
        finished = False
        try:
            for label in self.stages:
                self._run_stage(label, parent)
            self._compare(parent)
            finished = True
        finally:
            self.tracking.finish(parent, finished)
        students = [run for label, run in self.runs.items() if label.startswith("student")]
        shown = students[-1] if students else next(iter(self.runs.values()))
        self.console.print(
            f"\nTable and plots   {self.folder}\n"
            f"Curves and scores hgrnx ui      (MLflow run '{self.folder.name}')\n"
            f"Try the model     hgrnx generate {shown.name} --prompt '...'",
            highlight=False,
        )
        return JobResult(self.folder, self.runs)

    def _run_stage(self, label: str, parent: str) -> None:
        recipe, run_dir, ledger = self.stages[label], self.runs[label], self.ledgers[label]
        trained = run_stage(
            label, recipe, run_dir, ledger, self.dataset, self.places, self.tracking, parent, self.console
        )
        if not trained:
            self.console.print(
                f"{label}: finished before ({run_dir.name}); --fresh would run it again", highlight=False
            )
            score_again_if_asked_for_more(run_dir, recipe, self.console)
            self.tracking.link(parent, label, run_dir)
            self._score_what_waits(recipe, run_dir)

    def _score_what_waits(self, recipe: Recipe, run_dir: Path) -> None:
        """What a job that died after its training had not scored yet."""
        if recipe.evaluation.tasks and not (run_dir / CURVE).is_file() and not Snapshots(run_dir).waiting():
            self.console.print(
                f"{run_dir.name} was trained without evaluation.tasks, so there are no weights of its way to score. "
                f"Its last ones: hgrnx eval {run_dir.name} --tasks {','.join(recipe.evaluation.tasks)}",
                highlight=False,
            )
        if not Snapshots(run_dir).waiting():
            return
        run = stored_run_id(run_dir)
        BesideScorer(recipe, run_dir, self.places, run).finish()
        plot_dynamics({run_dir.name: run_dir}, run_dir / DYNAMICS)
        if run is not None:
            self.tracking.log_dynamics(run, run_dir)

    def _compare(self, parent: str) -> None:
        """The table and the plots of the job, on the terminal, on disk and in MLflow."""
        (self.folder / "summary.md").write_text(summary_markdown(self.runs), encoding="utf-8")
        curves = {label: run / "metrics.jsonl" for label, run in self.runs.items()}
        plot_curves(curves, self.folder / "curves.png")
        plot_phenomena(self.runs, self.folder / "phenomena.png")
        plot_dynamics(self.runs, self.folder / DYNAMICS)
        self.tracking.log_comparison(parent, self.folder, self.runs, self.dataset)
        self.console.print()
        print_summary(self.runs, self.console)


def run_stage(
    label: str,
    recipe: Recipe,
    run_dir: Path,
    ledger: RunLedger,
    dataset: PreparedDataset,
    places: Places,
    tracking: JobTracking,
    parent: str,
    console: Console,
) -> bool:
    """Train one run of a job on the connected cluster, under its MLflow run; False where it was finished before."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / LEDGER, ledger.as_dict())
    if (run_dir / "result.json").is_file():
        return False
    ensure_signal(recipe, dataset, places, console)
    run = tracking.start(run_dir, run_dir.name, flatten(recipe), dataset, parent=parent)
    finished = False
    try:
        train_on_ray(recipe, dataset, run_dir, places, title=label, mlflow_run=run)
        plot_dynamics({label: run_dir}, run_dir / DYNAMICS)
        finished = True
    finally:
        tracking.finish_training(run, run_dir, finished)
    return True


def check_writable(places: Places) -> None:
    """Raises :class:`UserError` where runs, data or stored signals cannot be written."""
    for folder in (places.runs, places.data, places.signals):
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
