"""A training run on Ray Train: N workers, replaced when they are lost, going on from the last checkpoint."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hgrnx.config import Recipe, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import Terminated, UserError
from hgrnx.launch.beside import BesideScorer, has_room_beside
from hgrnx.launch.cluster import check_resources
from hgrnx.launch.progress import Board, shown
from hgrnx.launch.sigterm import heeded
from hgrnx.launch.trial_board import BoardTracker, wait_for_decision
from hgrnx.launch.workers import ListeningTorchConfig, Reporter, StartWatch, place_of, signature
from hgrnx.paths import Places, resolve_places

_HEALTH_TIMEOUT = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
_PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
_START_S = 60.0
"""Seconds that a worker has at least to begin: torch is imported meanwhile, on any disk."""
_MOST_NOTICES = 10
"""How often workers may be told to leave before the run gives up, where ``launch.max_failures`` is less."""


def train_on_ray(
    recipe: Recipe,
    dataset: PreparedDataset,
    run_dir: Path,
    places: Places,
    *,
    title: str,
    mlflow_run: str | None,
    trial_board: Any | None = None,
    told: threading.Event | None = None,
) -> None:
    """Train ``recipe`` in ``run_dir`` on the connected cluster and return when it has finished.

    ``run_dir`` and the dataset must be reachable from every node. With a ``trial_board`` (``trial_board.py``) nothing
    is shown: the workers bring their evaluations there, and stop when it says so. Whoever sets ``told`` ends the run
    after a checkpoint; when it is None a SIGTERM to this process does.

    Raises:
        UserError: the cluster is too small, a worker found something the user can put right, the same error came
            twice at the same place, or workers were lost more often than ``launch.max_failures``.
        Terminated: ``told`` was set, or this process got SIGTERM; the run has saved a checkpoint.
    """
    launch = recipe.launch
    check_resources(launch)
    beside = bool(recipe.evaluation.tasks) and has_room_beside(launch)
    board = trial_board
    if board is None:
        # Beside the driver: on another node it would be lost with that.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = Board.options(scheduling_strategy=here).remote()
    # Ray's own bookkeeping of this attempt: kept apart, and cleared, because Train would resume (and skip) a
    # run of the same name; what to resume from is decided by our checkpoints alone.
    ray_folder = run_dir / "ray"
    resources: dict[str, float] = {"CPU": launch.cpus_per_worker}
    if launch.use_gpu:
        resources["GPU"] = 1
    workers = launch.num_workers if launch.min_workers is None else (launch.min_workers, launch.num_workers)
    trainer = lambda: TorchTrainer(
        _worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "data_dir": str(dataset.dir),
            "run_dir": str(run_dir),
            "environment": places.environment(),
            "mlflow_run": mlflow_run,
            "board": board,
            "scored_beside": beside,
            "is_trial": trial_board is not None,
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=launch.use_gpu, resources_per_worker=resources),
        torch_config=ListeningTorchConfig(
            backend="nccl" if launch.use_gpu else "gloo", timeout_s=int(launch.collective_timeout_s)
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(ray_folder),
            callbacks=[StartWatch(max(_START_S, launch.collective_timeout_s))],
            failure_config=FailureConfig(
                max_failures=launch.max_failures,
                controller_failure_limit=launch.max_failures,
                max_preemption_failures=max(launch.max_failures, _MOST_NOTICES),
            ),
        ),
    )
    scorer = BesideScorer(recipe, run_dir, places, mlflow_run)
    with (
        nullcontext() if trial_board is not None else shown(title, board),
        scorer.watching(beside),
        heeded() if told is None else nullcontext(told) as told,
        _leaving_when(told, board),
        _settings(launch.collective_timeout_s),
    ):
        for _ in range(1 + max(launch.max_failures, _MOST_NOTICES)):
            shutil.rmtree(ray_folder, ignore_errors=True)
            error: Exception | None = None
            try:
                trainer().fit()
            except Exception as caught:
                error = caught
            failure, left = ray.get([board.failure.remote(), board.take_left.remote()])
            # Workers that heard of their own end left after a checkpoint: others go on from it.
            if left is None or told.is_set():
                break
    if failure is not None or error is not None or left is not None or told.is_set():
        scorer.stop()
    if failure is not None:
        raise UserError(failure)
    if told.is_set():
        where = "at its last checkpoint" if left is None else f"after step {left}"
        raise Terminated(f"{title} was stopped by SIGTERM {where}. The same command goes on from there.")
    if left is not None:
        raise Terminated(
            f"The workers of {title} were told to leave again and again, last after step {left}. "
            "The same command goes on from there."
        )
    if error is not None:
        raise UserError(
            f"{title} failed, and {launch.max_failures} replacements of its workers did not help:\n"
            f"{_last_lines(error)}\nIts checkpoints are kept in {run_dir}: the same command goes on from the last one."
        ) from error
    shutil.rmtree(ray_folder, ignore_errors=True)
    scorer.finish()


@contextmanager
def _leaving_when(told: threading.Event, board: Any) -> Iterator[None]:
    """Within the block the workers are let leave when ``told`` is set."""
    over = threading.Event()

    def pass_on() -> None:
        while not over.wait(0.2):
            if told.is_set():
                ray.get(board.leave.remote())
                return

    thread = threading.Thread(target=pass_on, name="hgrnx-sigterm", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def _settings(patience_s: float) -> Iterator[None]:
    """Settings of Ray Train, which it reads from the driver's environment; what the user has set there stays.

    A worker that does not answer for ``patience_s`` is replaced, as by a collective operation; a single worker takes
    part in none. Nothing here listens to Ray's watcher of preemptions, a process of its own: workers hear SIGTERM.
    """
    wanted = {_HEALTH_TIMEOUT: str(max(1, round(patience_s))), _PREEMPTION_WATCHER: "0"}
    added = wanted.keys() - os.environ.keys()
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


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
    from hgrnx.launch.metrics import RayMetrics
    from hgrnx.tracking.mlflow import MlflowPublisher
    from hgrnx.training.notice import Left
    from hgrnx.training.run import run_training

    reporter = Reporter(board)
    recipe = recipe_from_dict(config["recipe"])
    assert isinstance(recipe, Recipe)
    torch.set_num_threads(recipe.launch.cpus_per_worker)

    def open_trackers(metrics: Path) -> list[Any]:
        trackers: list[Any] = [RayMetrics(metrics.parent.name)]
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
            listener=reporter,
            open_trackers=open_trackers,
            scored_beside=config["scored_beside"],
            signals=resolve_places().signals,
            go_on=(lambda: wait_for_decision(board)) if config["is_trial"] else None,
            asked=reporter.asked,
        )
    except Left as left:
        ray.get(board.left.remote(left.step))
    except UserError as error:
        ray.get(board.fail.remote(str(error)))
        raise
    except Exception as error:
        if _out_of_memory(error):
            message = str(error).strip().partition("\n")[0]
            ray.get(
                board.fail.remote(
                    f"A worker ran out of memory ({message}). Set launch.micro_batch_size, or "
                    "launch.activation_checkpointing=true, or choose a smaller model."
                )
            )
            raise
        same = signature(error)
        if same is not None and ray.get(board.crash.remote(same)):
            again = f"The same error came twice at the same place ({place_of(error)}), so it is not tried again:"
            ray.get(board.fail.remote(f"{again}\n  {same}\nThe checkpoints before it are kept."))
        raise


def _out_of_memory(error: Exception) -> bool:
    """Whether it would happen again to the worker's replacement: there is no room for one tensor."""
    import torch

    if not isinstance(error, MemoryError | RuntimeError):
        return False
    known = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in str(error) for part in known)
