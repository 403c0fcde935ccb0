"""Scoring a model after the fact, in this process."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from hgrnx.config import EvaluationConfig, Recipe, load_recipe, to_yaml
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.tokenizer import load_tokenizer, tokenizer_hash
from hgrnx.errors import UserError
from hgrnx.evaluation import EvaluationResult, evaluate, evaluate_pairs
from hgrnx.models.folders import special_ids
from hgrnx.paths import Places
from hgrnx.runs import OpenedModel, open_folder, open_model, read_json


def evaluate_model(
    name: str, places: Places, pairs: Path | None, text: Path | None, console: Console
) -> EvaluationResult:
    """Score a model with everything, print the scores and save them in ``eval/`` of its folder.

    The file is named after the folder of pairs (``own`` where the dataset's own, or none, are used); a checkpoint's
    after it too.

    Args:
        name: a run (its newest weights), a checkpoint's folder, or a Hugging Face folder.
        pairs: folder of minimal pairs in BLiMP's format; the recipe's, or the dataset's own, when None.
        text: prepared dataset whose development text is scored; the run's when None. A Hugging Face folder has none.

    Raises:
        UserError: no such model, ``text`` has another tokenizer, or there is nothing to score it on.
    """
    opened = open_model(name, places)
    folder = str(pairs.expanduser().resolve()) if pairs else None
    if folder is None and opened.recipe is not None:
        folder = opened.recipe.evaluation.minimal_pairs
    dataset = _dataset(opened, text)
    if dataset is None and folder is None:
        raise UserError(
            f"{opened.folder} has no text of its own: name minimal pairs with --data, or a prepared dataset (a folder "
            f"in {places.data}) with --text."
        )
    result = _score(opened, dataset, folder, console)
    label = "-".join([Path(folder).name if folder else "own", *([opened.checkpoint] if opened.checkpoint else [])])
    result.save(opened.folder / "eval", label)
    table = Table(title=opened.checkpoint or opened.folder.name, title_justify="left")
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
    opened = open_folder(run_dir)
    result = _score(opened, _dataset(opened, None), recipe.evaluation.minimal_pairs, console)
    result.save(run_dir / "eval", "final")
    (run_dir / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")


def _dataset(opened: OpenedModel, text: Path | None) -> PreparedDataset | None:
    """``text``, or the run's own data; None for a Hugging Face folder."""
    if text is None:
        if opened.recipe is None:
            return None
        return PreparedDataset.open(Path(read_json(opened.folder / "environment.json")["data"]))
    dataset = PreparedDataset.open(text.expanduser())
    if dataset.tokenizer_hash != tokenizer_hash(opened.tokenizer_dir):
        raise UserError(f"{text} was prepared with another tokenizer than that of {opened.folder}: its tokens differ.")
    return dataset


def _score(
    opened: OpenedModel, dataset: PreparedDataset | None, pairs: str | None, console: Console
) -> EvaluationResult:
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task: TaskID = progress.add_task("scoring", total=None)

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if dataset is not None:
            config = EvaluationConfig(minimal_pairs=pairs)
            return evaluate(opened.model, dataset, config, final=True, on_progress=on_progress)
        assert pairs is not None
        bos_id = special_ids(opened.tokenizer_dir).get("bos_token_id")
        if bos_id is None:
            raise UserError(f"{opened.folder}/tokenizer_config.json names no bos_token, after which texts are scored.")
        tokenizer = load_tokenizer(opened.tokenizer_dir)
        return evaluate_pairs(opened.model, tokenizer, bos_id, Path(pairs), on_progress=on_progress)
