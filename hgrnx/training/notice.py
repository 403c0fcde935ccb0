"""Notice to leave soon: SIGTERM, as a cluster sends it before it takes a machine away.

The process's own: signals reach its main thread, while Ray trains in another one.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

GRACE_S = 60.0
"""Seconds after which a process that was told to leave, and did not, ends as if it had not been listening."""

_asked = threading.Event()


class Left(Exception):
    """The run saved a checkpoint of ``step`` and ended, because it was asked to."""

    def __init__(self, step: int) -> None:
        super().__init__(f"left after step {step}")
        self.step = step


def ask() -> None:
    """Ask the training in this process to save a checkpoint at the end of its step, and to leave."""
    _asked.set()


def asked() -> bool:
    """Whether it was asked."""
    return _asked.is_set()


def forget() -> None:
    """Take the request back."""
    _asked.clear()


def listen() -> None:
    """From now on the first SIGTERM asks; a second, or :data:`GRACE_S` seconds, does what it did before.

    Only in the main thread.
    """
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        ask()
        late = threading.Timer(GRACE_S, os.kill, (os.getpid(), signal.SIGTERM))
        late.daemon = True
        late.start()

    signal.signal(signal.SIGTERM, on_sigterm)
