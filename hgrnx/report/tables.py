"""The summary of several runs side by side: on the terminal, as Markdown, as CSV, as plain rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrnx.report.paired import paired_difference
from hgrnx.report.summary import FinishedRun, Measure, measures, read_run

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 100
_ROW_NAME = 32
_CELL = 14


def summary_rows(runs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One dict a measure: ``measure``, ``unit``, and for each label its value and ``LABEL stderr`` (or None).

    Args:
        runs: run folders by label, in the order of the columns.

    Raises:
        UserError: a run has not finished, or its files are damaged.
    """
    rows = []
    for measure in measures(_read_all(runs)):
        row: dict[str, Any] = {"measure": measure.name.strip(), "unit": measure.unit}
        for label, value, error in zip(runs, measure.values, measure.errors, strict=True):
            row |= {label: value, f"{label} stderr": error}
        rows.append(row)
    return rows


def print_summary(runs: Mapping[str, Path], console: Console) -> None:
    """Print the table, at most 100 columns wide (several tables below one another when there are many runs)."""
    from rich.table import Table
    from rich.text import Text

    found = _read_all(runs)
    rows = measures(found)
    labels = list(runs)
    cell = max([_CELL, *(len(row.text(index)) for row in rows for index in range(len(labels)))])
    fitting = max(1, (min(console.width, _WIDTH) - _ROW_NAME - 2) // (cell + 2))
    for start in range(0, len(labels), fitting):
        shown = range(start, min(start + fitting, len(labels)))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("", max_width=_ROW_NAME)
        for index in shown:
            table.add_column(Text(labels[index], overflow="fold"), justify="right", max_width=cell)
        for row in rows:
            best = row.winners()
            cells = [Text(row.text(index), style="bold" if index in best else "") for index in shown]
            table.add_row(Text(_name(row)), *cells)
        console.print(table)
        console.print()
    for note in _notes(found):
        console.print(Text(note, style="dim"))


def summary_markdown(runs: Mapping[str, Path]) -> str:
    """The table and its notes as Markdown."""
    found = _read_all(runs)
    lines = ["| | " + " | ".join(_escape(label) for label in runs) + " |", "|---|" + "---:|" * len(runs)]
    for row in measures(found):
        best = row.winners()
        cells = [f"**{row.text(index)}**" if index in best else row.text(index) for index in range(len(runs))]
        name = _escape(_name(row).strip())
        lines.append(f"| {'&nbsp;&nbsp;' + name if row.indent else name} | " + " | ".join(cells) + " |")
    notes = [f"- {note}" for note in _notes(found)]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def summary_csv(runs: Mapping[str, Path]) -> str:
    """:func:`summary_rows` as CSV with a header."""
    rows = summary_rows(runs)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_all(runs: Mapping[str, Path]) -> dict[str, FinishedRun]:
    return {label: read_run(folder) for label, folder in runs.items()}


def _name(row: Measure) -> str:
    if row.indent:  # in the unit of the row above
        return f"  {row.name}"
    return f"{row.name}, {row.unit}" if row.unit not in {"", "s"} else row.name


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _notes(runs: Mapping[str, FinishedRun]) -> list[str]:
    """What a reader must know to compare: differences with their errors, and what is not comparable."""
    notes = []
    if any(run.groups for run in runs.values()):
        notes.append("± is one standard error over pairs (other seeds vary more); a random choice gets 50%.")
    if len({run.pairs_name for run in runs.values() if run.groups}) > 1:
        notes.append("The runs were scored on different minimal pairs: their accuracies can't be compared.")
    if len({run.environment["data_hash"] for run in runs.values()}) > 1:
        notes.append("The runs have different data: bits per byte can't be compared.")
    labels = list(runs)
    chosen = combinations(labels, 2) if len(labels) <= 3 else ((label, labels[0]) for label in labels[1:])
    for label, other in chosen:
        one, two = runs[label], runs[other]
        same = one.pairs_name == two.pairs_name and (
            one.recipe["evaluation"]["minimal_pairs"] or one.environment["data_hash"] == two.environment["data_hash"]
        )
        gap = paired_difference(one.folder, two.folder) if same else None
        if gap is not None:
            points = f"{gap.points:+.1f}".replace("-", "−")
            notes.append(f"{label} − {other}: {points} ± {gap.stderr:.1f} points, compared pair by pair.")
    return notes
