"""SIGTERM to a driver: the first asks it to stop in an orderly way, a second ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_outer: threading.Event | None = None


@contextmanager
def heeded() -> Iterator[threading.Event]:
    """Within the block the first SIGTERM to this process sets the event; a second does what it did before.

    A block inside another one, in any thread, has the outer one's event. Without an outer one the event of a thread
    that is not the main one is never set: signals are the main thread's.
    """
    global _outer
    if _outer is not None:
        yield _outer
        return
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        told.set()  # no more: the main thread may be in the middle of a call of Ray, which forbids another one here

    signal.signal(signal.SIGTERM, on_sigterm)
    _outer = told
    try:
        yield told
    finally:
        _outer = None
        signal.signal(signal.SIGTERM, before)
