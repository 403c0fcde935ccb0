"""The result of a benchmark: a table, a JSON file and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrnx.report.plots import draw_bars

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]
"""``name``, ``seconds``, ``cpu_seconds``, ``spread``, ``memory_mb``, ``tokens_per_second`` and ``share_of_peak`` of a
case."""


def print_bench(title: str, rows: Sequence[Row], console: Console) -> None:
    """One line a case; ``time`` counts in times of the first one."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("ms", "±", "CPU, ms", "time", "tokens/s", "memory, MB", "of peak"):
        table.add_column(column, justify="right")
    first = rows[0]["seconds"]
    for row in rows:
        table.add_row(
            row["name"],
            f"{1e3 * row['seconds']:,.1f}",
            f"{row['spread']:.0%}",
            "" if row["cpu_seconds"] is None else f"{1e3 * row['cpu_seconds']:,.1f}",
            f"{row['seconds'] / first:.2f}x",
            _cell(row["tokens_per_second"], "{:,.0f}"),
            _cell(row["memory_mb"], "{:,.0f}"),
            _cell(row["share_of_peak"], "{:.0%}"),
        )
    console.print(table)
    console.print(
        "Medians; ± is half the distance between the quartiles; CPU is the time of all threads. Memory is what a "
        "step adds at its highest; the peak is that of a large matrix product in the same run.",
        highlight=False,
    )


def save_bench(folder: Path, name: str, settings: Mapping[str, Any], rows: Sequence[Row]) -> Path:
    """Write ``NAME.json`` (settings, every round of every case) and ``NAME.png`` into ``folder``; returns the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"settings": dict(settings), "cases": [dict(row) for row in rows]}, indent=2) + "\n")
    names = [row["name"] for row in rows]
    speed = [row["tokens_per_second"] or 1 / row["seconds"] for row in rows]
    panels = {"tokens/s": speed}
    if all(row["memory_mb"] is not None for row in rows):
        panels["memory that a step adds, MB"] = [row["memory_mb"] for row in rows]
    draw_bars(names, panels, folder / f"{name}.png", title=str(settings.get("title", name)))
    return path


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
