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
    """Between the workers of a run and its driver: progress and notes, the error that ends it, and when to leave."""

    def __init__(self) -> None:
        self.message: dict[str, Any] = {}
        self.notes: list[str] = []
        self.error: str | None = None
        self.leaving = False
        self.left_after: int | None = None
        self.crashes: set[str] = set()

    def post(self, message: dict[str, Any]) -> bool:
        """Takes rank 0's message; answers whether to leave."""
        if "note" in message:
            self.notes.append(message["note"])
        else:
            self.message = message
        return self.leaving

    def read(self) -> dict[str, Any]:
        return self.message

    def take_notes(self) -> list[str]:
        """The notes that came since the last call."""
        notes, self.notes = self.notes, []
        return notes

    def fail(self, error: str) -> None:
        self.error = self.error or error

    def failure(self) -> str | None:
        return self.error

    def crash(self, signature: str) -> bool:
        """Takes what is the same in two equal errors; answers whether it came before."""
        again = signature in self.crashes
        self.crashes.add(signature)
        return again

    def leave(self) -> None:
        self.leaving = True

    def left(self, step: int) -> None:
        self.left_after = step

    def take_left(self) -> int | None:
        """The step after which the workers left because they were asked to; None when they did not."""
        step, self.left_after = self.left_after, None
        return step


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
            message, notes = ray.get([board.read.remote(), board.take_notes.remote()], timeout=10)
        except Exception:  # the bar must not end the job: the cluster's own errors surface where the job waits
            message, notes = {}, []
        for note in notes:
            yield {"note": note}
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
            if "note" in message:
                progress.console.print(f"{title}: {message['note']}", highlight=False, markup=False)
            elif "step" in message:
                progress.update(task, completed=message["step"], total=message["total_steps"], facts=describe(message))
            else:
                progress.update(task, facts=describe(message))


def _show_lines(title: str, board: Any, stop: threading.Event) -> None:
    started: tuple[float, int] | None = None
    print(f"{title}: starting workers", flush=True)
    for message in _messages(board, stop, 10.0):
        if "note" in message:
            print(f"{title}: {message['note']}", flush=True)
            continue
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
