"""Benchmark tasks on the screen: a live bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from hgrnx.evaluation.shares import Share, cut
from hgrnx.evaluation.task import Task

_PERIOD_S = 30.0


class TaskProgress:
    """Counts the texts of finished shares; the rate, and with it the time left, is of those asked in this call."""

    def __init__(self, tasks: Sequence[Task], console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        shares = [share for task in tasks for name in task.subtasks for share in cut(task, name)]
        self._texts = sum(share.texts for share in shares)
        self._left = Counter(share.task for share in shares)
        self._asked: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._task = ""
        self._started = self._shown = time.monotonic()
        self._line = bar.add_task("", total=self._texts)

    def add(self, share: Share, kept: bool) -> None:
        """A share is finished, in this call or (``kept``) an earlier one."""
        (self._kept if kept else self._asked)[share.task] += share.texts
        self._left[share.task] -= 1
        self._task = share.task
        self.show()
        if self._left[share.task] == 0:
            self._console.print(self._finished(share.task), highlight=False)

    def show(self, workers: str = "") -> None:
        """Bring what is shown up to date; ``workers`` says who is at work."""
        done = self._asked.total() + self._kept.total()
        text = f"{self._task} | {done:,} of {self._texts:,} texts{self._rate()}" + (f" | {workers}" if workers else "")
        self._bar.update(self._line, completed=done, description=text)
        if not self._console.is_terminal and time.monotonic() - self._shown > _PERIOD_S and done < self._texts:
            self._shown = time.monotonic()
            self._console.print(text, highlight=False)

    def _rate(self) -> str:
        asked = self._asked.total()
        if not asked:
            return ""
        rate = asked / (time.monotonic() - self._started)
        left = round((self._texts - asked - self._kept.total()) / rate)
        return f" | {rate:,.0f} texts/s | {left // 60}:{left % 60:02d} left"

    def _finished(self, task: str) -> str:
        parts = [f"{self._asked[task]:,} texts asked"] if self._asked[task] or not self._kept[task] else []
        parts += [f"{self._kept[task]:,} kept from before"] if self._kept[task] else []
        return f"{task}: {', '.join(parts)}; {time.monotonic() - self._started:.0f} s since the start"


@contextmanager
def task_progress(tasks: Sequence[Task], console: Console) -> Iterator[TaskProgress]:
    """Show how far ``tasks`` are while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield TaskProgress(tasks, console, bar)
