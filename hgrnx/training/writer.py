"""Writes checkpoints beside the training: a step waits for the copy of its weights, not for the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hgrnx.errors import UserError
from hgrnx.training.events import EventLog


class CheckpointWriter:
    """One write at a time, in a thread. A write that fails is told to ``events``.

    Args:
        tolerated: How many failures in a row are only told. One more is raised.
    """

    def __init__(self, events: EventLog, tolerated: int) -> None:
        self._events, self._tolerated = events, tolerated
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._failures = 0

    def write(self, step: int, work: Callable[[], None], *, must: bool = False) -> None:
        """Begin ``work``, which writes the checkpoint of ``step``, once the one before is written.

        ``must``: wait for it, and raise what it raises.

        Raises:
            UserError: the write before failed, as did too many in a row.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(step, work), name="hgrnx-checkpoint")
        self._thread.start()
        if must:
            self.wait(must=True)

    def check(self) -> None:
        """:meth:`wait`, if there is nothing to wait for."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self, *, must: bool = False) -> None:
        """Wait for the write under way. Raises what it raised if ``must``, or if too many failed in a row."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None and (must or self._failures > self._tolerated or not isinstance(failure, UserError)):
            raise failure

    def _run(self, step: int, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._failure = error
            self._failures += 1
            self._events.add("checkpoint_failed", str(error), step=step)
        else:
            self._failures = 0
