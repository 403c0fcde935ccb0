"""How a trial's workers and its driver talk: evaluations one way, the decision to go on or to stop the other."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from hgrnx.launch.progress import BoardBase
from hgrnx.tracking.tracker import NullTracker, read_metrics
from hgrnx.training.memory import peak_memory_mb

_POLL_S = 0.1


class _TrialBoard(BoardBase):
    """A board that also holds a trial's evaluations, each once, and what was decided after them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """For the next trial: a process of its own for each would cost seconds."""
        super().__init__()
        self.scores: list[dict[str, float]] = []
        self.decided = 0
        self.stopped = False

    def post_scores(self, record: dict[str, float]) -> None:
        # Whoever goes on from a checkpoint, or replaces a lost worker, brings what it has been through again.
        if not any(known["step"] == record["step"] and known.keys() >= record.keys() for known in self.scores):
            self.scores.append(record)

    def scores_after(self, count: int) -> list[dict[str, float]]:
        return self.scores[count:]

    def decide(self, count: int, stop: bool) -> None:
        self.decided = count
        self.stopped = self.stopped or stop

    def go_on(self) -> bool | None:
        """Whether the run shall go on; None as long as an evaluation has not been judged."""
        if self.stopped:
            return False
        return None if self.decided < len(self.scores) else True

    def was_stopped(self) -> bool:
        return self.stopped


TrialBoard = ray.remote(num_cpus=0)(_TrialBoard)


class BoardTracker(NullTracker):
    """Brings the evaluations of a run to its board: those of ``metrics_file`` first, from before a restart."""

    def __init__(self, board: Any, metrics_file: Path, use_gpu: bool) -> None:
        self.board = board
        self.device = torch.device("cuda" if use_gpu else "cpu")
        for record in read_metrics(metrics_file):
            self._post(record["step"], {key: value for key, value in record.items() if key not in {"step", "time"}})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Post what is an evaluation."""
        self._post(step, metrics)

    def _post(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            return
        memory = {"memory_mb": peak_memory_mb(self.device)}
        values = {key: float(value) for key, value in metrics.items()}
        ray.get(self.board.post_scores.remote({"step": step, **values, **memory}))


def wait_for_decision(board: Any) -> bool:
    """Whether to go on; waits until every evaluation that was posted is judged."""
    while True:
        decision = ray.get(board.go_on.remote())
        if decision is not None:
            return bool(decision)
        time.sleep(_POLL_S)
