"""Fine-tuning on the screen: a live bar on a terminal, a line for each epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hgrnx.evaluation.glue import GlueProgress


@contextmanager
def glue_bar(console: Console) -> Iterator[Callable[[GlueProgress], None]]:
    """Gives what ``run_glue`` wants as ``on_progress``; the rate is in training rows, epochs' ends included."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        line = bar.add_task("fine-tuning", total=None)
        running: tuple[str, int] | None = None
        started, epochs = 0.0, 0

        def show(now: GlueProgress) -> None:
            nonlocal running, started, epochs
            if running != (now.task, now.seed):
                running, started, epochs = (now.task, now.seed), time.monotonic(), 0
                bar.reset(line, total=now.total)
            text = _describe(now, now.done / max(time.monotonic() - started, 1e-9))
            bar.update(line, completed=now.done, description=text)
            if now.epochs > epochs and not console.is_terminal:
                console.print(text, highlight=False)
            epochs = now.epochs

        yield show


def _describe(now: GlueProgress, rate: float) -> str:
    score = f" | score {now.score:.3f}" if now.score is not None else ""
    return f"{now.task}, seed {now.seed}, epoch {now.epochs}{score} | {rate:,.0f} rows/s"
