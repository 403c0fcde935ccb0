"""`hgrnx compare`: finished runs side by side, and models' benchmark scores beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from rich.console import Console

from hgrnx.errors import UserError
from hgrnx.evaluation.files import read_gzip
from hgrnx.evaluation.results import PREDICTIONS, read_scores
from hgrnx.evaluation.significance import paired_task
from hgrnx.paths import Places
from hgrnx.report.tables import print_summary, summary_csv, summary_markdown
from hgrnx.report.task_comparison import (
    Difference,
    Format,
    TaskComparison,
    formatted,
    print_comparison,
    table_rows,
)
from hgrnx.report.task_scores import TITLES
from hgrnx.runs import evaluation_folder, find_run


def compare_runs(names: Sequence[str], places: Places, console: Console, form: Format = "text") -> None:
    """Print the comparison of runs and Hugging Face folders.

    ``text`` and ``markdown`` have the summary of those that are runs, and the benchmark tasks of all that were scored
    on some (``hgrnx eval --tasks``). ``csv`` and ``latex`` have one table: the tasks, or without tasks the summary.

    Raises:
        UserError: there is no such run, it has not finished, or there is nothing to compare it by.
    """
    folders = {Path(name).name: find_run(name, places) for name in names}
    comparison = compare_tasks({label: evaluation_folder(folder, places) for label, folder in folders.items()})
    # What was only scored on tasks, as an exported folder, has no summary; what has neither is told so by name.
    scored = {label for label, folder in folders.items() if _has_tasks(folder, places)}
    runs = {label: folder for label, folder in folders.items() if label not in scored or _finished(folder)}
    if form == "text":
        if runs:
            print_summary(runs, console)
        if comparison is not None:
            console.print()
            print_comparison(comparison, console)
    elif form == "markdown":
        parts = [summary_markdown(runs)] if runs else []
        print("\n".join([*parts, *([formatted(comparison, form)] if comparison is not None else [])]), end="")
    elif comparison is not None:
        print(formatted(comparison, form), end="")
    elif form == "csv":
        print(summary_csv(runs), end="")
    else:
        raise UserError(
            f"None of {', '.join(folders)} was scored on benchmark tasks, which the LaTeX table is of: "
            "hgrnx eval RUN --tasks ... --data DIR"
        )


def compare_tasks(folders: Mapping[str, Path]) -> TaskComparison | None:
    """The benchmark scores in evaluation folders, by label; None where there are none at all."""
    contents = {label: read_scores(folder) for label, folder in folders.items()}
    scored = {label: content for label, content in contents.items() if content is not None}
    if not scored:
        return None
    tasks, rows = table_rows(scored)
    predictions = {label: read_gzip(folders[label] / PREDICTIONS) or {} for label in scored}
    differences: list[Difference] = []
    notes = [f"{label} was not scored on any task." for label in folders if label not in scored]
    for task in TITLES:
        having = [label for label in scored if task in scored[label]["tasks"]]
        chosen = combinations(having, 2) if len(having) <= 3 else ((label, having[0]) for label in having[1:])
        for first, second in chosen:
            found = paired_task(task, predictions[first].get(task, {}), predictions[second].get(task, {}))
            if found is None:
                notes.append(f"{first} and {second} were not asked the same items of {TITLES[task]}.")
                continue
            inner = found.subtask_interval
            differences.append(
                Difference(
                    first,
                    second,
                    task,
                    100 * found.difference,
                    (100 * found.interval[0], 100 * found.interval[1]),
                    (100 * inner[0], 100 * inner[1]) if inner is not None else None,
                    found.better,
                    found.worse,
                    found.p,
                    found.items,
                )
            )
    precisions = {content["precision"] for content in scored.values()}
    if len(precisions) > 1:
        notes.append(f"The models were scored with different precisions: {', '.join(sorted(precisions))}.")
    return TaskComparison(tasks, rows, differences, notes)


def _has_tasks(folder: Path, places: Places) -> bool:
    return read_scores(evaluation_folder(folder, places)) is not None


def _finished(folder: Path) -> bool:
    return (folder / "result.json").is_file()
