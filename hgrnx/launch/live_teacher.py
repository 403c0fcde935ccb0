"""How long a training would take with its teacher beside the student, from some of its steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median

import ray

from hgrnx.config import Recipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.launch.ray_train import train_on_ray
from hgrnx.launch.trial_board import TrialBoard
from hgrnx.paths import Places
from hgrnx.tracking.tracker import read_metrics

_STEPS = 12


def measure_live(recipe: Recipe, dataset: PreparedDataset, run_dir: Path, places: Places) -> float:
    """Seconds that all steps of ``recipe`` take with a live teacher, extrapolated from its first 12.

    Args:
        run_dir: a folder in the place of runs, where teachers are found by name; removed at the end.
    """
    assert recipe.distill is not None
    shutil.rmtree(run_dir, ignore_errors=True)
    loader = TrainLoader(dataset, recipe.training.seq_len, recipe.training.batch_size, recipe.seed)
    steps = loader.steps_for(recipe.training.duration)
    probe = recipe.model_copy(
        update={
            "distill": recipe.distill.model_copy(update={"top_k": None}),
            "training": recipe.training.model_copy(update={"log_every": 1}),
            "evaluation": recipe.evaluation.model_copy(
                update={"every": f"{min(_STEPS, max(1, steps - 1))} steps", "dev_documents": 1, "pairs_per_file": 1}
            ),
        }
    )
    board = TrialBoard.remote()
    ray.get(board.decide.remote(1, True))  # to stop after the first evaluation
    train_on_ray(probe, dataset, run_dir, places, title="live teacher", mlflow_run=None, trial_board=board)
    speeds = [
        record["train/tokens_per_second"]
        for record in read_metrics(run_dir / "metrics.jsonl")
        if "train/tokens_per_second" in record
    ]
    shutil.rmtree(run_dir, ignore_errors=True)
    tokens = sum(loader.valid_tokens(step) for step in range(steps))
    return tokens / median(speeds)
