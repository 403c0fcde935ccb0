"""Fine-tunings on the screen: live bars on a terminal, a line for each epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hgrnx.evaluation.glue import GlueProgress


@contextmanager
def glue_bar(console: Console) -> Iterator[Callable[[GlueProgress], None]]:
    """Gives what a ``Tuner`` wants as ``on_progress``, of several fine-tunings at once too.

    The rate is in training rows, epochs' ends included.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        lines: dict[tuple[str, int], _Line] = {}

        def show(now: GlueProgress) -> None:
            line = lines.get((now.task, now.seed))
            if line is None:
                line = lines[now.task, now.seed] = _Line(bar.add_task("", total=now.total), now.done)
            text = _describe(now, (now.done - line.done_before) / max(time.monotonic() - line.since, 1e-9))
            running = now.done < now.total  # a finished one makes room
            bar.update(line.id, completed=now.done, total=now.total, description=text, visible=running)
            if now.epochs > line.epochs and not console.is_terminal:
                console.print(text, highlight=False)
            line.epochs = now.epochs

        yield show


@dataclass
class _Line:
    """A fine-tuning on the screen, from when it was first heard of."""

    id: TaskID
    done_before: int
    since: float = field(default_factory=time.monotonic)
    epochs: int = 0


def _describe(now: GlueProgress, rate: float) -> str:
    score = f" | score {now.score:.3f}" if now.score is not None else ""
    return f"{now.task}, seed {now.seed}, epoch {now.epochs}{score} | {rate:,.0f} rows/s"
