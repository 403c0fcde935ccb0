"""Scoring a trained run after the fact, in this process."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from hgrnx.config import EvaluationConfig
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.evaluation.suite import EvaluationResult, evaluate
from hgrnx.paths import Places
from hgrnx.runs import open_model, read_json


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
    dataset = PreparedDataset.open(Path(read_json(opened.folder / "environment.json")["data"]))
    folder = str(pairs.expanduser().resolve()) if pairs else opened.recipe.evaluation.minimal_pairs
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task: TaskID = progress.add_task("scoring", total=None)
        result = evaluate(
            opened.model,
            dataset,
            EvaluationConfig(minimal_pairs=folder),
            final=True,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
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
