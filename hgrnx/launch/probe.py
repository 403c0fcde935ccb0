"""The first steps of a run on Ray, to measure them."""

from __future__ import annotations

from pathlib import Path

import ray

from hgrnx.config import Recipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.launch.ray_train import train_on_ray
from hgrnx.launch.trial_board import TrialBoard
from hgrnx.paths import Places


def cut_short(recipe: Recipe, steps: int) -> Recipe:
    """``recipe`` with a line of metrics for every step and a glance at development text after ``steps`` steps.

    It stops there where whoever is asked after an evaluation says so; the learning rates are those of the whole run.
    """
    evaluation = {"every": f"{steps} steps", "dev_documents": 1, "pairs_per_file": 1, "tasks": ()}
    return recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update={"log_every": 1}),
            "evaluation": recipe.evaluation.model_copy(update=evaluation),
        }
    )


def first_steps(
    recipe: Recipe, dataset: PreparedDataset, run_dir: Path, places: Places, steps: int, title: str
) -> None:
    """Train ``recipe`` for ``steps`` steps on the connected cluster, with a line of metrics in ``run_dir`` for each."""
    board = TrialBoard.remote()
    ray.get(board.decide.remote(1, True))  # to stop after the first evaluation
    train_on_ray(cut_short(recipe, steps), dataset, run_dir, places, title=title, mlflow_run=None, trial_board=board)
