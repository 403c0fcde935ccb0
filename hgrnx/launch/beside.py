"""Benchmark scores beside a training: a Ray task scores the weights that the training leaves on disk.

The training knows nothing of it. The driver looks every second for weights that wait, has one set at a time scored by
a process of its own, and removes it when its scores are on disk. A process that dies is replaced; what has no score
when all end is scored after the training, or by the same command given again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from hgrnx.config import LaunchConfig, Recipe, recipe_from_dict
from hgrnx.errors import UserError
from hgrnx.evaluation.points import CURVE, read_point, score_point, write_curve, zero_shot_tasks
from hgrnx.paths import Places
from hgrnx.tracking import mlflow
from hgrnx.training.best import BestWeights
from hgrnx.training.checkpoint import last_saved_step, load_weights, read_meta
from hgrnx.training.snapshots import Snapshots

_LOOK_EVERY_S = 1.0
_ATTEMPTS = 3
"""Processes that may die over one set of weights."""
_log = logging.getLogger(__name__)


def has_room_beside(launch: LaunchConfig) -> bool:
    """Whether the connected cluster has room for one more worker than the training needs."""
    have = ray.cluster_resources()
    workers = launch.num_workers + 1
    return bool(
        workers * launch.cpus_per_worker <= have.get("CPU", 0) and workers * launch.use_gpu <= have.get("GPU", 0)
    )


class BesideScorer:
    """Scores the weights that wait in a run's folder, and tells MLflow of all points that there are.

    Args:
        run_dir: must be reachable from every node.
        mlflow_run: id of the run's MLflow run; None without one.
    """

    def __init__(self, recipe: Recipe, run_dir: Path, places: Places, mlflow_run: str | None) -> None:
        self.recipe, self.run_dir, self.places, self.mlflow_run = recipe, run_dir, places, mlflow_run
        self.snapshots = Snapshots(run_dir)
        self.best = BestWeights(run_dir, recipe.evaluation.best)
        self.problems: dict[int, str] = {}
        """Why weights could not be scored, by step; they are still on disk."""
        self._deaths: dict[int, int] = {}
        self._running: tuple[int, Any] | None = None
        self._sent = (0, 0)

    @contextmanager
    def watching(self, beside: bool) -> Iterator[None]:
        """Look for weights while the block runs; without ``beside`` the training scores, and MLflow is told only."""
        if not self.recipe.evaluation.tasks:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(beside, ended), name="hgrnx-beside", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            self.stop()
            raise
        ended.set()
        thread.join()

    def stop(self) -> None:
        """Give up what is being scored, as after a training that failed: it waits again."""
        if self._running is not None:
            ray.cancel(self._running[1], force=True)
            self._running = None

    def finish(self) -> None:
        """Score all that waits, then return. What cannot be scored is said, and stays on disk."""
        if not self.recipe.evaluation.tasks:
            return
        waiting = len(self.snapshots.waiting())
        if waiting:
            print(f"{self.run_dir.name}: scoring the weights of {waiting} more points", flush=True)
        while self.step():
            assert self._running is not None
            ray.wait([self._running[1]])
        self._publish(final=True)
        for step, problem in self.problems.items():
            print(
                f"{self.run_dir.name}: the weights of step {step} have no scores: {problem}\n"
                f"They are kept in {self.snapshots.path(step)}; the same command tries them again.",
                file=sys.stderr,
            )
        left_out = [step for step in self.snapshots.left_out() if not read_point(self.run_dir, step)]
        if left_out:
            steps = ", ".join(map(str, left_out[:10])) + (", ..." if len(left_out) > 10 else "")
            print(
                f"{self.run_dir.name}: no scores for {len(left_out)} of its points (steps {steps}), because points "
                "came faster than scores. A longer evaluation.tasks_every, or more evaluation.tasks_waiting, helps.",
                file=sys.stderr,
            )

    def step(self, begin: bool = True) -> bool:
        """Take what has been scored, ``begin`` with the next, and say whether something is being scored now."""
        if self._running is not None:
            step, task = self._running
            if not ray.wait([task], timeout=0)[0]:
                return True
            self._running = None
            self._take(step, task)
        todo = [step for step in self.snapshots.waiting() if step not in self.problems]
        if todo and begin:
            self.snapshots.take(todo[0])
            self._running = (todo[0], self._submit(todo[0]))
        return self._running is not None

    def _watch(self, beside: bool, ended: threading.Event) -> None:
        said = ""
        while not ended.wait(_LOOK_EVERY_S):
            try:
                if beside:  # a node that was lost leaves its room to the training
                    self.step(begin=has_room_beside(self.recipe.launch))
                self._publish(final=False)
            except Exception as error:  # whatever it is, the training goes on; what waits is scored after it
                if str(error) != said:
                    _log.warning("Scoring beside the training: %s", error)
                said = str(error)

    def _submit(self, step: int) -> Any:
        launch = self.recipe.launch
        options = {"num_cpus": launch.cpus_per_worker, "num_gpus": int(launch.use_gpu), "name": "score_snapshot"}
        return _score_snapshot.options(**options).remote(
            self.recipe.model_dump(mode="json"), str(self.run_dir), step, self.places.environment()
        )

    def _take(self, step: int, task: Any) -> None:
        try:
            result = ray.get(task)
        except RayError as error:
            if step in self.snapshots.waiting():
                self._died(step, str(error).strip().partition("\n")[0])
            return
        if "problem" in result:
            if step in self.snapshots.waiting():  # and was not left out in the meantime
                self.problems[step] = result["problem"]
            return
        path = self.snapshots.path(step)
        try:
            self.best.offer(step, result["words"], result["metrics"], lambda: load_weights(path))
        except UserError as error:
            self.problems[step] = str(error)
            return
        self.snapshots.remove(step)

    def _died(self, step: int, reason: str) -> None:
        self._deaths[step] = self._deaths.get(step, 0) + 1
        _log.warning("The process that scored the weights of step %d died (%s).", step, reason)
        if self._deaths[step] >= _ATTEMPTS:
            self.problems[step] = f"{_ATTEMPTS} processes died over them, the last one so: {reason}"

    def _publish(self, final: bool) -> None:
        """Send MLflow the points that no restart will make again and before which none is missing."""
        if self.mlflow_run is None:
            return
        curve = self.run_dir / CURVE
        limits = [step - 1 for step in self.snapshots.waiting()[:1]]
        if not final:
            limits.append(last_saved_step(self.run_dir / "checkpoints"))
        limit = min(limits) if limits else None
        try:
            state = (curve.stat().st_mtime_ns, -1 if limit is None else limit)
        except FileNotFoundError:
            return
        if final or state != self._sent:
            patience = 60.0 if final else 5.0
            mlflow.replay(
                self.places.mlflow_uri, self.mlflow_run, self.run_dir, durable_step=limit, timeout=patience, file=CURVE
            )
            self._sent = state


@ray.remote(max_retries=0)
def _score_snapshot(recipe: dict[str, Any], run_dir: str, step: int, environment: dict[str, str]) -> dict[str, Any]:
    """Score the weights of one step; returns their ``metrics`` and ``words``, or a ``problem`` for the person."""
    os.environ.update(environment)
    import torch

    from hgrnx.data.tokenizer import BOS
    from hgrnx.runs import open_folder

    chosen, folder = recipe_from_dict(recipe), Path(run_dir)
    torch.set_num_threads(chosen.launch.cpus_per_worker)
    path = Snapshots(folder).path(step)
    try:
        tasks = zero_shot_tasks(chosen.evaluation)
        words = read_meta(path)["words"]
        opened = open_folder(folder, path)
        tokenizer = opened.tokenizer()
        model = opened.model.to("cuda" if chosen.launch.use_gpu else "cpu")
        score_point(model, tokenizer, tokenizer.token_to_id(BOS), tasks, folder, step, words)
        write_curve(folder)
    except UserError as error:
        return {"problem": str(error)}
    return {"words": words, "metrics": read_point(folder, step)}
