"""The runs of an experiment before they start: their data, names, sizes and cost; everything is checked here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from hgrnx.config import DataConfig, Recipe, parse_duration, run_name
from hgrnx.config.experiments import ExperimentPlan
from hgrnx.data.dataset import PreparedDataset, open_dataset
from hgrnx.data.loader import TrainLoader
from hgrnx.data.progress import prepare_with_progress
from hgrnx.data.run_ledger import RunLedger
from hgrnx.data.tracks import find_track
from hgrnx.errors import UserError, joined
from hgrnx.models import empty_model
from hgrnx.paths import Places
from hgrnx.training.ledger import check_plan, plan_ledger

ASSUMED_TOKENS_PER_WORD = 1.74
"""Where a dataset is not prepared yet; 16,000 entries on BabyLM-like text have so many."""


@dataclass(frozen=True)
class Cost:
    """Of one run, by arithmetic alone."""

    parameters: Mapping[str, int]
    """``total``, ``embedding`` and ``other``."""
    words: float
    """Seen in training, each pass counted."""
    tokens: float
    flops: float
    """Forward and backward, and the forwards of its teachers; evaluation is not in it."""
    assumed: bool
    """Whether the tokens are an assumption, because the data are not prepared yet."""


@dataclass(frozen=True)
class PlannedRun:
    """One training of an experiment."""

    arm: str
    seed: int
    """The experiment's; the recipe's may have an offset."""
    recipe: Recipe
    dataset: PreparedDataset
    run_dir: Path
    teachers: tuple[str, ...]
    """Names of the runs that have to be finished before."""
    ledger: RunLedger
    cost: Cost

    @property
    def label(self) -> str:
        """Arm and seed, as progress lines have them."""
        return f"{self.arm} (seed {self.seed})"


def prepare_runs(plan: ExperimentPlan, places: Places, console: Console) -> list[PlannedRun]:
    """Prepare the data of all arms and name the runs, teachers first.

    Raises:
        UserError: with everything that is missing or does not fit: text, words beyond a track's rules, parameters
            that are not equal though the experiment says so.
    """
    problems = _unequal(plan)
    datasets: dict[DataConfig, PreparedDataset] = {}
    runs: list[PlannedRun] = []
    for name, arm in plan.arms.items():
        for seed, recipe in arm.recipes.items():
            if recipe.data not in datasets:
                try:
                    datasets[recipe.data] = prepare_with_progress(recipe.data, places, console)
                except UserError as error:
                    problems.append(f"{name}: {error}")
                    break
            dataset = datasets[recipe.data]
            earlier = {run.run_dir.name: run for run in runs}
            teachers = [run for run in runs if run.arm in arm.teachers and run.seed == seed]
            names = tuple(run.run_dir.name for run in teachers)
            if recipe.distill is not None:
                distill = recipe.distill.model_copy(update={"teachers": names})
                recipe = recipe.model_copy(update={"distill": distill})
            run_dir = places.run_dir(run_name(recipe, dataset.hash))
            try:
                known = {label: run.ledger for label, run in earlier.items()}
                ledger = plan_ledger(recipe, dataset, run_dir.name, places.runs, known)
                warnings = check_plan(recipe, ledger)
            except UserError as error:
                problems.append(f"{name}: {error}")
                break
            for warning in warnings if seed == plan.seeds[0] else []:
                console.print(f"Warning: {name}: {warning}", highlight=False)
            cost = cost_of(recipe, dataset, [run.recipe for run in teachers])
            runs.append(PlannedRun(name, seed, recipe, dataset, run_dir, names, ledger, cost))
    if problems:
        raise UserError(joined(problems))
    return runs


def plan_costs(plan: ExperimentPlan, places: Places) -> dict[str, Cost]:
    """What one run of each arm costs, whether its data are prepared or not. Raises like :func:`prepare_runs`."""
    problems = _unequal(plan)
    costs: dict[str, Cost] = {}
    for name, arm in plan.arms.items():
        recipe = arm.recipes[plan.seeds[0]]
        try:
            dataset: PreparedDataset | None = open_dataset(recipe.data, places.data)
        except UserError:
            dataset = None
        try:
            costs[name] = cost_of(recipe, dataset, [plan.arms[label].recipes[plan.seeds[0]] for label in arm.teachers])
        except UserError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError(joined(problems))
    return costs


def cost_of(recipe: Recipe, dataset: PreparedDataset | None, teachers: list[Recipe]) -> Cost:
    """Words, tokens and floating-point operations of a training; without a dataset words come from the track."""
    training = recipe.training
    vocab_size = recipe.data.vocab_size if dataset is None else dataset.vocab_size
    model = empty_model(recipe.model, vocab_size)
    per_step = training.batch_size * training.seq_len
    words: float
    if dataset is None:
        amount, unit = parse_duration(training.duration)
        if unit == "percent":
            raise UserError(f"training.duration={training.duration} is a share of nothing.")
        track_words = recipe.data.words or find_track(recipe.data).words
        words = {"epochs": amount * track_words, "words": amount}.get(unit, amount * per_step / ASSUMED_TOKENS_PER_WORD)
        tokens = words * ASSUMED_TOKENS_PER_WORD
    else:
        loader = TrainLoader(dataset, training.seq_len, training.batch_size, recipe.seed)
        steps = loader.steps_for(training.duration)
        words, tokens = loader.words_seen(steps), steps * per_step
    per_token = model.flops_per_token(training.seq_len)
    for teacher in teachers:  # its forward alone
        per_token += empty_model(teacher.model, vocab_size).flops_per_token(training.seq_len) / 3
    return Cost(model.parameter_counts(), words, tokens, per_token * tokens, dataset is None)


def room(recipe: Recipe, resources: Mapping[str, float]) -> int:
    """How many runs of ``recipe`` such resources (``CPU``, ``GPU``) hold: at least one, which checks itself."""
    launch = recipe.launch
    fits = resources.get("CPU", 0) // (launch.num_workers * launch.cpus_per_worker)
    if launch.use_gpu:
        fits = min(fits, resources.get("GPU", 0) // launch.num_workers)
    return max(1, int(fits))


def experiment_folder(plan: ExperimentPlan, runs: list[PlannedRun], places: Places) -> Path:
    """Where an experiment is kept: its name, and a hash of all its runs, so that other settings are another one."""
    digest = hashlib.sha256(json.dumps(sorted(run.run_dir.name for run in runs)).encode()).hexdigest()[:8]
    return places.run_dir(f"{plan.title}-experiment-{digest}")


def _unequal(plan: ExperimentPlan) -> list[str]:
    """Says by how much the arms' parameters differ, where they differ by more than the experiment allows."""
    if plan.parameters_within is None:
        return []
    sizes: dict[str, int] = {}
    for name, arm in plan.arms.items():
        recipe = arm.recipes[plan.seeds[0]]
        sizes[name] = empty_model(recipe.model, recipe.data.vocab_size).parameter_counts()["other"]
    small, large = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[large] <= (1 + plan.parameters_within) * sizes[small]:
        return []
    return [
        f"The arms are to be equal within {plan.parameters_within:.0%} of their parameters besides the embeddings: "
        f"{large} has {sizes[large]:,} and {small} {sizes[small]:,}. Change arms.{large}.model or arms.{small}.model."
    ]
