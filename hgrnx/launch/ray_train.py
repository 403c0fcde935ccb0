"""A training run on Ray Train: N workers, replaced when they are lost, going on from the last checkpoint."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from hgrnx.config import Recipe, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.launch.cluster import check_resources
from hgrnx.launch.progress import Board, shown
from hgrnx.launch.trial_board import BoardTracker, wait_for_decision
from hgrnx.paths import Places, resolve_places


def train_on_ray(
    recipe: Recipe,
    dataset: PreparedDataset,
    run_dir: Path,
    places: Places,
    *,
    title: str,
    mlflow_run: str | None,
    trial_board: Any | None = None,
) -> None:
    """Train ``recipe`` in ``run_dir`` on the connected cluster and return when it has finished.

    ``run_dir`` and the dataset must be reachable from every node. With a ``trial_board`` (``trial_board.py``) nothing
    is shown: the workers bring their evaluations there, and stop when it says so.

    Raises:
        UserError: the cluster is too small, a worker found something the user can put right, or workers were
            lost more often than ``launch.max_failures``.
    """
    launch = recipe.launch
    check_resources(launch)
    board = trial_board if trial_board is not None else Board.remote()
    # Ray's own bookkeeping of this attempt: kept apart, and cleared, because Train would resume (and skip) a
    # run of the same name; what to resume from is decided by our checkpoints alone.
    ray_folder = run_dir / "ray"
    shutil.rmtree(ray_folder, ignore_errors=True)
    resources: dict[str, float] = {"CPU": launch.cpus_per_worker}
    if launch.use_gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "data_dir": str(dataset.dir),
            "run_dir": str(run_dir),
            "environment": places.environment(),
            "mlflow_run": mlflow_run,
            "board": board,
            "is_trial": trial_board is not None,
        },
        scaling_config=ScalingConfig(
            num_workers=launch.num_workers, use_gpu=launch.use_gpu, resources_per_worker=resources
        ),
        torch_config=TorchConfig(
            backend="nccl" if launch.use_gpu else "gloo", timeout_s=int(launch.collective_timeout_s)
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(ray_folder),
            failure_config=FailureConfig(
                max_failures=launch.max_failures,
                controller_failure_limit=launch.max_failures,
                max_preemption_failures=max(launch.max_failures, 10),
            ),
        ),
    )
    with nullcontext() if trial_board is not None else shown(title, board):
        error: Exception | None = None
        try:
            trainer.fit()
        except Exception as caught:
            error = caught
        failure = ray.get(board.failure.remote())
    if failure is not None:
        raise UserError(failure)
    if error is not None:
        raise UserError(
            f"{title} failed, and {launch.max_failures} replacements of its workers did not help:\n"
            f"{_last_lines(error)}\nIts checkpoints are kept in {run_dir}: the same command goes on from the last one."
        ) from error
    shutil.rmtree(ray_folder, ignore_errors=True)


def _last_lines(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-4:])


def _worker(config: dict[str, Any]) -> None:
    board = config["board"]
    # Ray replaces workers after any exception. One that the user has to put right would only happen again, so
    # the replacements end at once and the driver tells it.
    if ray.get(board.failure.remote()) is not None:
        return
    os.environ.update(config["environment"])
    import torch

    from hgrnx.data.dataset import PreparedDataset
    from hgrnx.tracking.mlflow import MlflowPublisher
    from hgrnx.training.run import run_training

    recipe = recipe_from_dict(config["recipe"])
    assert isinstance(recipe, Recipe)
    torch.set_num_threads(recipe.launch.cpus_per_worker)

    def open_trackers(metrics: Path) -> list[Any]:
        trackers: list[Any] = []
        if config["is_trial"]:
            trackers.append(BoardTracker(board, metrics, recipe.launch.use_gpu))
        if config["mlflow_run"] is not None:
            trackers.append(MlflowPublisher(os.environ["MLFLOW_TRACKING_URI"], config["mlflow_run"], metrics))
        return trackers

    try:
        run_training(
            recipe,
            PreparedDataset.open(Path(config["data_dir"])),
            Path(config["run_dir"]),
            listener=board.post.remote,
            open_trackers=open_trackers,
            go_on=(lambda: wait_for_decision(board)) if config["is_trial"] else None,
            signals=resolve_places().signals,
        )
    except UserError as error:
        ray.get(board.fail.remote(str(error)))
        raise
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        message = str(error).strip().partition("\n")[0]
        ray.get(
            board.fail.remote(
                f"A worker ran out of memory ({message}). Set launch.micro_batch_size, or "
                "launch.activation_checkpointing=true, or choose a smaller model."
            )
        )
        raise


def _out_of_memory(error: Exception) -> bool:
    """Whether it would happen again to the worker's replacement: there is no room for one tensor."""
    import torch

    known = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in str(error) for part in known)
