"""What a person sees of a search while it runs: a live table, or a line for each trial that ends."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from hgrnx.config.spaces import SpaceConfig
from hgrnx.report.search_tables import trial_rows, trials_table
from hgrnx.search.trials import Trial

_EVERY_S = 1.0
_TAIL = 4096


@contextmanager
def shown_search(
    trials: Callable[[], list[Trial]],
    space: SpaceConfig,
    state: Callable[[], str],
    runs: Path,
    console: Console,
) -> Iterator[None]:
    """Keep a table of ``trials`` on a terminal, best first, under it ``state``; elsewhere nothing."""
    if not console.is_terminal:
        yield
        return
    began = time.monotonic()

    def table() -> Group:
        rows = trial_rows(trials(), space, set())
        for row in rows:
            if row["status"] == "running":  # nearer than the last evaluation
                row["words"] = max(row["words"], words_so_far(runs / row["run"] / "metrics.jsonl"))
        most = max(4, console.height - 6)
        hidden = f", {len(rows) - most} more trials" if len(rows) > most else ""
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        return Group(trials_table(rows[:most], space), Text(f"{state()}, {minutes}:{seconds:02d}{hidden}", style="dim"))

    stop = threading.Event()
    with Live(table(), console=console, auto_refresh=False, transient=True) as live:

        def refresh() -> None:
            while not stop.wait(_EVERY_S):
                live.update(table(), refresh=True)

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5)


def words_so_far(metrics: Path) -> int:
    """Words of the last whole line of a run's metrics; 0 before the first."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["words"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
