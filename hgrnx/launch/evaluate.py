"""Scoring a trained run after the fact, in this process."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from hgrnx.config import EvaluationConfig, Recipe, load_recipe, to_yaml
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.evaluation.suite import EvaluationResult, evaluate
from hgrnx.paths import Places
from hgrnx.runs import OpenedModel, open_folder, open_model, read_json


def evaluate_run(name: str, places: Places, pairs: Path | None, console: Console) -> EvaluationResult:
    """Score a run's newest weights with everything, print and save the scores as ``eval/<pairs folder>.json``.

    Args:
        pairs: folder of minimal pairs in BLiMP's format; the recipe's, or the dataset's own, when None.

    Raises:
        UserError: no such run, or it is a Hugging Face folder, whose development text is not known.
    """
    opened = open_model(name, places)
    if opened.recipe is None:
        raise UserError(f"{opened.folder} is not a run: it has no development text to score. Name a run of yours.")
    folder = str(pairs.expanduser().resolve()) if pairs else opened.recipe.evaluation.minimal_pairs
    result = _score(opened, folder, console)
    label = Path(folder).name if folder else "own"
    result.save(opened.folder / "eval", label)
    table = Table(title=opened.folder.name, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in result.metrics.items():
        table.add_row(key, f"{value:.4f}")
    console.print(table)
    console.print(opened.folder / "eval" / f"{label}.json", highlight=False)
    return result


def score_again_if_asked_for_more(run_dir: Path, recipe: Recipe, console: Console) -> None:
    """Replace a finished run's final scores where they are of other minimal pairs than ``recipe`` asks for.

    What is measured does not decide the weights, so the run is the same; its scores are not.
    """
    before = load_recipe(str(run_dir / "recipe.yaml"))
    if before.evaluation.minimal_pairs == recipe.evaluation.minimal_pairs:
        return
    console.print(f"{run_dir.name}: scoring on {recipe.evaluation.minimal_pairs or 'its own pairs'}", highlight=False)
    result = _score(open_folder(run_dir), recipe.evaluation.minimal_pairs, console)
    result.save(run_dir / "eval", "final")
    (run_dir / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")


def _score(opened: OpenedModel, pairs: str | None, console: Console) -> EvaluationResult:
    dataset = PreparedDataset.open(Path(read_json(opened.folder / "environment.json")["data"]))
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task: TaskID = progress.add_task("scoring", total=None)
        return evaluate(
            opened.model,
            dataset,
            EvaluationConfig(minimal_pairs=pairs),
            final=True,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
