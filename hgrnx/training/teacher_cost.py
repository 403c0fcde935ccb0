"""What a teacher beside the student costs, against its stored signal."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from hgrnx.config import Recipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.models import build_model
from hgrnx.objectives import ObjectiveModule
from hgrnx.training.bad_steps import BadSteps
from hgrnx.training.engine import build_engine
from hgrnx.training.loop import Hook, Progress, StepResult, train
from hgrnx.training.run import build_objective

_WARM_UP, _ROUNDS = 2, 8


def live_ratio(recipe: Recipe, dataset: PreparedDataset, runs: Path, signals: Path) -> float:
    """How many times as long a step with the live teacher is as one with the stored signal that ``recipe`` reads.

    Steps of both kinds take turns in this process, on one student; medians of 8 each. A single process stands for all
    workers of the recipe: both kinds of steps exchange the same gradients.

    Args:
        runs: where teachers are found by name.
        signals: where their signals are stored.
    """
    assert recipe.distill is not None
    live = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"top_k": None})})
    kinds = [build_objective(way, dataset, runs, signals) for way in (live, recipe)]
    training = recipe.training
    module = ObjectiveModule(build_model(recipe.model, dataset.vocab_size, seed=recipe.seed), kinds[0])
    rows = recipe.launch.micro_batch_size or training.batch_size // recipe.launch.num_workers
    alone = {"engine": "torch", "num_workers": 1, "min_workers": None, "micro_batch_size": rows}
    launch = recipe.launch.model_copy(update=alone)
    engine = build_engine(module, training, launch)
    loader = TrainLoader(dataset, training.seq_len, training.batch_size, recipe.seed, reset_state=training.reset_state)

    def take_turns(step: int) -> None:
        module.objective = kinds[step % 2]

    seconds = _Seconds()
    train(
        engine,
        loader,
        start_step=0,
        total_steps=min(2 * (_WARM_UP + _ROUNDS), loader.steps_for(training.duration)),
        micro_batch_size=rows,
        seed=recipe.seed,
        learning_rate=lambda step: 0.0,  # what is learned does not matter, but it must not diverge
        hooks=[seconds],
        bad_steps=BadSteps(training, engine.device),
        before_step=take_turns,
    )
    beside, stored = (median(seconds.all[2 * _WARM_UP + kind :: 2] or seconds.all[kind::2]) for kind in range(2))
    return beside / stored


class _Seconds(Hook):
    def __init__(self) -> None:
        self.all: list[float] = []

    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        self.all.append(result.seconds)
