"""Tasks in a pool of processes that never outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import TracebackType
from typing import Any, TypeVar

from hgrnx.errors import UserError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

Tick = Callable[[int], None]
"""Called by a task with the work it has done since the last call, often: it is also where a task is stopped."""

_MOST_WORKERS = 8  # each takes about 100 MB, and a few already read faster than most disks write
_POLL_S = 0.2


def default_workers() -> int:
    """The cores that this process may use, but no more than memory below 1 GB allows."""
    return min(_MOST_WORKERS, usable_cores())


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of ``count`` processes, started at the first use; with one, tasks run in this process."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._done: Any = None
        self._stop: Any = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._stop.value = kind is not None
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, function: Callable[[_Task, Tick], _Result], tasks: Sequence[_Task], on_progress: Callable[[int], None]
    ) -> Iterator[tuple[_Task, _Result]]:
        """Yield every task with its result, in the order in which they are done; the first ones start first.

        ``function`` belongs to a module, and it, tasks and results can be pickled. ``on_progress`` is called
        with the work that all tasks together have reported.

        Raises:
            UserError: a process was killed from outside. What a task raises, is raised.
        """
        if self._count == 1 or len(tasks) <= 1:
            done = 0

            def tick(amount: int) -> None:
                nonlocal done
                done += amount
                on_progress(done)

            for task in tasks:
                yield task, function(task, tick)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # safe beside the threads of torch and Ray
            self._done, self._stop = context.Value("q", 0), context.Value("b", 0)
            self._pool = ProcessPoolExecutor(self._count, context, _start, (self._done, self._stop))
        self._done.value = 0
        waiting: dict[Future[_Result], _Task] = {self._pool.submit(_call, function, task): task for task in tasks}
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                on_progress(self._done.value)
                for future in finished:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool:
            raise UserError(
                "A process that prepared the text was ended from outside, most likely for want of memory (or a script "
                "that calls prepare does its work outside of `if __name__ == '__main__'`). Run it again, with one "
                "worker if it happens twice."
            ) from None


class _Stopped(Exception):
    pass


_shared: tuple[Any, Any] | None = None


def _start(done: Any, stop: Any) -> None:
    """In a new process."""
    global _shared
    _shared = (done, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and tells
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as many processes as cores already
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _call(function: Callable[[Any, Tick], Any], task: Any) -> Any:
    return function(task, _tick)


def _tick(amount: int) -> None:
    assert _shared is not None
    done, stop = _shared
    with done.get_lock():
        done.value += amount
    if stop.value:
        raise _Stopped
