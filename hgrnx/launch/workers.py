"""What a Ray Train worker does around the training: signals, and errors that would come again."""

from __future__ import annotations

import dataclasses
import os
import threading
import traceback
from typing import Any

import ray
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from hgrnx.training import notice
from hgrnx.training.distributed import rank_and_world

_COLLATERAL = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe", "timed out")
"""In the messages of errors that come of another worker's end."""


@dataclasses.dataclass
class ListeningTorchConfig(TorchConfig):
    """Ray's set-up of torch.distributed; before it, every worker learns to heed SIGTERM.

    The training runs in a thread of the worker, and only the main thread, where this set-up runs, may do that.
    """

    @property
    def backend_cls(self) -> Any:
        return _ListeningBackend


class _ListeningBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(notice.listen)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        # In Ray Train's controller. Leaving the process group takes no time, but for a worker that hangs; the others
        # and their replacements would wait for it for half a minute.
        os.environ.setdefault(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, "5")
        super().on_shutdown(worker_group, backend_config)


class StartWatch(WorkerGroupCallback):
    """Ends workers that have not begun to train ``patience_s`` after they were there, so that others are started.

    Ray Train waits without end for a worker that hangs before its training; from there on it looks after it.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._timer: threading.Timer | None = None  # only ever in Ray Train's controller

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        self._rest()
        self._timer = threading.Timer(self._patience_s, _end, [[worker.actor for worker in workers]])
        self._timer.daemon = True
        self._timer.start()
        return {}

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._rest()

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._rest()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _end(actors: list[Any]) -> None:
    for actor in actors:
        ray.kill(actor)


class Reporter:
    """Sends the training's messages to the board without waiting, and hears from it whether to leave."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._answer: Any = None
        self._leave = False

    def __call__(self, message: dict[str, Any]) -> None:
        answer = self._board.post.remote(message)
        if self._answer is None:
            self._answer = answer

    def asked(self) -> bool:
        """Whether this process, or the driver, was asked to leave. Never waits."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._leave = self._leave or ray.get(self._answer)
            self._answer = None
        return self._leave or notice.asked()


def signature(error: Exception) -> str | None:
    """What makes two errors the same one: type, message and step. None for one that comes of another's failure."""
    text = "\n".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, ray.exceptions.RayError):
        return None
    if rank_and_world()[1] > 1 and any(word in text.lower() for word in _COLLATERAL):
        return None
    return text


def place_of(error: Exception) -> str:
    """File and line where ``error`` was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
