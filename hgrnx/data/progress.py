"""Preparing with a progress bar for each stage."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from hgrnx.config import DataConfig
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.prepare import prepare
from hgrnx.paths import Places


def prepare_with_progress(
    config: DataConfig, places: Places, console: Console, *, fresh: bool = False, workers: int | None = None
) -> PreparedDataset:
    """:func:`hgrnx.data.prepare.prepare` with bars, rates and the time left where there is a terminal."""
    columns = (
        TextColumn("{task.description:9}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        return prepare(config, places.data, fresh=fresh, workers=workers, on_progress=show)
