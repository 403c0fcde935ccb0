"""The ledger of a run before it starts: its own words, and those of its tokenizer and its teachers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hgrnx.config import Recipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.data.run_ledger import Reader, RunLedger, check_ledger, dataset_readers, make_ledger, read_readers
from hgrnx.data.tracks import find_track
from hgrnx.objectives import find_teachers


def plan_ledger(
    recipe: Recipe,
    dataset: PreparedDataset,
    name: str,
    runs: Path,
    planned: Mapping[str, RunLedger] | None = None,
) -> RunLedger:
    """What the run ``name`` will have read when it is finished.

    Args:
        planned: ledgers of teachers that the same job will train first, by run name.
    """
    planned = planned or {}
    loader = TrainLoader(dataset, recipe.training.seq_len, recipe.training.batch_size, recipe.seed)
    words = loader.words_seen(loader.steps_for(recipe.training.duration))
    readers: list[Reader] = dataset_readers(dataset.manifest, name, words)
    references = recipe.distill.teachers if recipe.distill is not None else ()
    for reference in references:
        if reference in planned:
            readers += planned[reference].readers
    made = [reference for reference in references if reference not in planned]
    for folder in find_teachers(made, dataset.tokenizer_hash, runs):
        readers += read_readers(folder, folder.name)
    return make_ledger(find_track(recipe.data), readers)


def plan_ledgers(
    stages: Mapping[str, Recipe], names: Mapping[str, str], dataset: PreparedDataset, runs: Path
) -> dict[str, RunLedger]:
    """:func:`plan_ledger` of the runs of a job, by label; a run may learn from those before it."""
    ledgers: dict[str, RunLedger] = {}
    for label, recipe in stages.items():
        planned = {names[before]: ledger for before, ledger in ledgers.items()}
        ledgers[label] = plan_ledger(recipe, dataset, names[label], runs, planned)
    return ledgers


def check_plan(recipe: Recipe, ledger: RunLedger) -> list[str]:
    """Warnings about the rules of the track. Raises UserError where the run breaks them and the recipe minds."""
    return check_ledger(ledger, find_track(recipe.data), recipe.data.enforce_budget)
