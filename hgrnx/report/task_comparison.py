"""Models' benchmark scores in one table with the paper's rows, and what of their differences is more than chance.

As text, Markdown, CSV and LaTeX. Scores are ours (a tie counts half), in percent, with standard errors over items; the
paper's are as it prints them. The mean is that of the challenge's tasks, of a row's own cells.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hgrnx.report.paper import FINAL, TASKS
from hgrnx.report.task_scores import TITLES

if TYPE_CHECKING:
    from rich.console import Console

Format = Literal["text", "markdown", "csv", "latex"]
_MEAN = ("blimp", "supplement", "ewok", "glue")


class Cell(NamedTuple):
    """A score in percent, and its standard error where it is known."""

    score: float
    stderr: float | None


@dataclass(frozen=True)
class Row:
    """A model's scores by task; a task that it lacks is absent."""

    model: str
    source: str
    """``paper`` and the words it was trained on, or ``hgrnx``."""
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Difference:
    """One run's score minus another's, in percentage points."""

    first: str
    second: str
    task: str
    points: float
    interval: tuple[float, float]
    subtask_interval: tuple[float, float] | None
    better: int
    worse: int
    p: float
    items: int


@dataclass(frozen=True)
class TaskComparison:
    """What there is to say of several models' tasks."""

    tasks: list[str]
    rows: list[Row]
    differences: list[Difference]
    notes: list[str]


def table_rows(contents: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[Row]]:
    """The tasks that any of the models was scored on, the paper's rows of them, and the models'.

    Args:
        contents: of ``tasks.json``, by label.
    """
    found = {
        label: {
            task: Cell(100 * tables["overall"]["accuracy_ties_half"], 100 * tables["overall"]["stderr"])
            for task, tables in content["tasks"].items()
            if tables["overall"] is not None
        }
        for label, content in contents.items()
    }
    named = {task for cells in found.values() for task in cells}
    tasks = [task for task in TITLES if task in named]
    paper = [
        Row(row.model, f"paper, {row.track}", {task: Cell(row.scores[task], None) for task in tasks if task in TASKS})
        for row in FINAL
    ]
    ours = [Row(label, "hgrnx", cells) for label, cells in found.items()]
    return tasks, ([*paper, *ours] if any(row.cells for row in paper) else ours)


def formatted(comparison: TaskComparison, form: Literal["markdown", "csv", "latex"]) -> str:
    """The tables and notes as a text."""
    return {"markdown": _markdown, "csv": _csv, "latex": _latex}[form](comparison)


def print_comparison(comparison: TaskComparison, console: Console) -> None:
    """Print the tables and notes."""
    from rich.table import Table
    from rich.text import Text

    for header, lines in _tables(comparison):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index < 2 else "right")
        for line in lines:
            table.add_row(*(Text(cell, overflow="fold") for cell in line))
        console.print(table)
        console.print()
    for note in _notes(comparison):
        console.print(Text(note, style="dim"))


def _tables(comparison: TaskComparison) -> list[tuple[list[str], list[list[str]]]]:
    """Header and cells of the scores, and of the differences if there are any."""
    means = [_mean(row) for row in comparison.rows]
    with_mean = any(mean is not None for mean in means)
    header = ["model", "source", *(TITLES[task] for task in comparison.tasks), *(["mean of 4"] if with_mean else [])]
    lines = [
        [row.model, row.source, *(_shown(row.cells.get(task)) for task in comparison.tasks)]
        + ([_shown(mean)] if with_mean else [])
        for row, mean in zip(comparison.rows, means, strict=True)
    ]
    tables = [(header, lines)]
    if comparison.differences:
        tables.append((_DIFFERENCE_HEADER, [_difference_cells(item) for item in comparison.differences]))
    return tables


_DIFFERENCE_HEADER = ["difference", "task", "points", "95% (items)", "95% (subtasks)", "better/worse", "p (McNemar)"]


def _difference_cells(item: Difference) -> list[str]:
    return [
        f"{item.first} − {item.second}",
        TITLES[item.task],
        _signed(item.points),
        _range(item.interval),
        _range(item.subtask_interval) if item.subtask_interval is not None else "–",
        f"{item.better}/{item.worse}",
        "<0.0001" if item.p < 1e-4 else f"{item.p:.4f}",
    ]


def _notes(comparison: TaskComparison) -> list[str]:
    notes = ["± is one standard error over items."]
    if any(_mean(row) is not None for row in comparison.rows):
        notes[0] += " Mean of 4: BLiMP, Supplement, EWoK and GLUE, of the row's own cells."
    if comparison.differences:
        notes.append(
            "Differences are paired by item: bootstrap intervals over items (and over subtasks with their items), "
            "McNemar's test (mid-p) of the items that only one of the two got right. Points are means over subtasks, "
            "McNemar's test counts every item alike, so the two can point apart. Other seeds vary more."
        )
    return notes + comparison.notes


def _markdown(comparison: TaskComparison) -> str:
    parts = []
    for header, lines in _tables(comparison):
        rule = "|" + "|".join("---" if index < 2 else "---:" for index in range(len(header))) + "|"
        parts.append("\n".join([_piped(header), rule, *map(_piped, lines)]))
    parts.append("\n".join(f"- {note}" for note in _notes(comparison)))
    return "\n\n".join(parts) + "\n"


def _csv(comparison: TaskComparison) -> str:
    """One row a number: ``kind`` is ``score`` or ``difference``; in percent and percentage points, not rounded."""
    text = io.StringIO()
    columns = ["kind", "model", "source", "other", "task", "value", "stderr", "low", "high", "subtasks_low"]
    columns += ["subtasks_high", "better", "worse", "p", "items"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in comparison.rows:
        for task in comparison.tasks:
            if task in row.cells:
                score, stderr = row.cells[task]
                facts = {"model": row.model, "source": row.source, "task": task}
                writer.writerow({"kind": "score", **facts, "value": score, "stderr": stderr})
    for item in comparison.differences:
        inner = item.subtask_interval or (None, None)
        writer.writerow(
            {"kind": "difference", "model": item.first, "source": "hgrnx", "other": item.second, "task": item.task}
            | {"value": item.points, "low": item.interval[0], "high": item.interval[1]}
            | {"subtasks_low": inner[0], "subtasks_high": inner[1], "better": item.better, "worse": item.worse}
            | {"p": item.p, "items": item.items}
        )
    return text.getvalue()


def _latex(comparison: TaskComparison) -> str:
    """Tables for the package booktabs."""
    parts = []
    for header, lines in _tables(comparison):
        body = [" & ".join(map(_tex, line)) + r" \\" for line in lines]
        breaks = [
            index for index in range(1, len(lines)) if header[1] == "source" and lines[index][1] != lines[index - 1][1]
        ]
        for index in reversed(breaks):
            body.insert(index, r"\midrule")
        parts.append(
            "\n".join(
                [
                    r"\begin{tabular}{ll" + "r" * (len(header) - 2) + "}",
                    r"\toprule",
                    " & ".join(map(_tex, header)) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    parts.append("\n".join(f"% {note}" for note in _notes(comparison)))
    return "\n\n".join(parts) + "\n"


def _mean(row: Row) -> Cell | None:
    if not all(task in row.cells for task in _MEAN):
        return None
    cells = [row.cells[task] for task in _MEAN]
    errors = [cell.stderr for cell in cells if cell.stderr is not None]
    stderr = math.hypot(*errors) / len(cells) if len(errors) == len(cells) else None
    return Cell(math.fsum(cell.score for cell in cells) / len(cells), stderr)


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"{cell.score:.1f}" + (f" ± {cell.stderr:.1f}" if cell.stderr is not None else "")


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def _range(interval: tuple[float, float]) -> str:
    return f"{_signed(interval[0])} to {_signed(interval[1])}"


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _tex(text: str) -> str:
    for plain, written in _TEX.items():
        text = text.replace(plain, written)
    return text


_TEX = {
    "\\": r"\textbackslash ",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "±": r"$\pm$",
    "−": "$-$",
    "<": "$<$",
    "–": "--",
}
