"""The teacher of a search: trained once, before the first trial, and named in the recipe that all trials start from."""

from __future__ import annotations

from rich.console import Console

from hgrnx.config import AnyRecipe, DistillRecipe, run_name
from hgrnx.data.dataset import PreparedDataset
from hgrnx.launch.jobs import job_stages, run_stage
from hgrnx.launch.search_folder import Facts
from hgrnx.launch.tracked import JobTracking
from hgrnx.paths import Places
from hgrnx.runs import read_json
from hgrnx.training.ledger import check_plan, plan_ledger


def with_teacher(
    recipe: AnyRecipe,
    dataset: PreparedDataset,
    places: Places,
    facts: Facts,
    tracking: JobTracking,
    parent: str,
    console: Console,
) -> AnyRecipe:
    """``recipe`` with its teachers named as runs; its own teacher is trained where that was not done before.

    Args:
        facts: gets ``teacher_seconds``.
        parent: the search's run in MLflow.

    Raises:
        UserError: the teacher cannot be trained, or an existing one does not fit.
    """
    stages = job_stages(recipe, dataset, places.runs)
    if "teacher" not in stages:
        # Named as the stages name them, so that a trial is the same run as that of a job with its recipe.
        stage = stages.get("student") or next(iter(stages.values()))
        if recipe.distill is None or stage.distill is None:
            return recipe
        distill = recipe.distill.model_copy(update={"teachers": stage.distill.teachers})
        return recipe.model_copy(update={"distill": distill})
    assert isinstance(recipe, DistillRecipe)
    teacher = stages["teacher"]
    name = run_name(teacher, dataset.hash)
    run_dir = places.run_dir(name)
    ledger = plan_ledger(teacher, dataset, name, places.runs)
    for warning in check_plan(teacher, ledger):
        console.print(f"Warning: teacher: {warning}", highlight=False)
    with facts.clock("teacher_seconds"):
        trained = run_stage("teacher", teacher, run_dir, ledger, dataset, places, tracking, parent, console)
    if not trained:
        console.print(f"teacher: finished before ({name})", highlight=False)
        tracking.link(parent, "teacher", run_dir)
    # By another job, or partly before a kill: at least what its steps took.
    seconds = read_json(run_dir / "result.json")["seconds"]
    facts.set("teacher_seconds", max(seconds, facts.elapsed("teacher_seconds")))
    distill = recipe.distill.model_copy(update={"teachers": (name,)})
    return recipe.model_copy(update={"teacher": None, "distill": distill})
