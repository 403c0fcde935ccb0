"""Progress travels from rank 0 to the driver through a small Ray actor; a fatal message of a worker as well."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class BoardBase:
    """Holds the newest message of a run's rank 0, and the message of the error that ends it."""

    def __init__(self) -> None:
        self.message: dict[str, Any] = {}
        self.error: str | None = None

    def post(self, message: dict[str, Any]) -> None:
        self.message = message

    def read(self) -> dict[str, Any]:
        return self.message

    def fail(self, error: str) -> None:
        self.error = self.error or error

    def failure(self) -> str | None:
        return self.error


Board = ray.remote(num_cpus=0)(BoardBase)


@contextmanager
def shown(title: str, board: Any) -> Iterator[None]:
    """Show what ``board`` holds while the block runs: a live bar on a terminal, plain lines elsewhere.

    Several runs at a time are waited for in threads, and only one bar can have the terminal: theirs are lines too.
    """
    stop = threading.Event()
    alone = threading.current_thread() is threading.main_thread()
    show = _show_bar if sys.stdout.isatty() and alone else _show_lines
    thread = threading.Thread(target=show, args=(title, board, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _messages(board: Any, stop: threading.Event, period_s: float) -> Iterator[dict[str, Any]]:
    last: dict[str, Any] = {}
    while True:
        stopping = stop.wait(period_s)
        try:
            message = ray.get(board.read.remote(), timeout=10)
        except Exception:  # the bar must not end the job: the cluster's own errors surface where the job waits
            message = {}
        if message and message != last:
            last = message
            yield message
        if stopping:
            return


def describe(message: dict[str, Any]) -> str:
    """One line for a message of the training loop or of the evaluation."""
    if "items" in message:
        return f"evaluating {message['evaluated']:,}/{message['items']:,}"
    return (
        f"loss {message['loss']:.3f} | {message['words'] / 1e6:.2f}M words | epoch {message['epoch']:.2f} | "
        f"{message['tokens_per_second']:,.0f} tokens/s"
    )


def _show_bar(title: str, board: Any, stop: threading.Event) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(width=None)) as progress:
        task = progress.add_task(title, total=None, facts="starting workers")
        for message in _messages(board, stop, 0.5):
            if "step" in message:
                progress.update(task, completed=message["step"], total=message["total_steps"], facts=describe(message))
            else:
                progress.update(task, facts=describe(message))


def _show_lines(title: str, board: Any, stop: threading.Event) -> None:
    started: tuple[float, int] | None = None
    print(f"{title}: starting workers", flush=True)
    for message in _messages(board, stop, 10.0):
        if "step" not in message:
            print(f"{title}: {describe(message)}", flush=True)
            continue
        now, step, total = time.monotonic(), message["step"], message["total_steps"]
        left = ""
        if started is None:
            started = (now, step)
        elif step > started[1]:
            seconds = (now - started[0]) / (step - started[1]) * (total - step)
            left = f" | {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        print(f"{title}: step {step}/{total} | {describe(message)}{left}", flush=True)
