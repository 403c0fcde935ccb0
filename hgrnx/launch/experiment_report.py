"""`hgrnx report`: what an experiment's runs say together, with every difference tested, as a page and as Markdown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from hgrnx.errors import UserError
from hgrnx.evaluation.files import write_whole
from hgrnx.evaluation.seeds import seed_difference
from hgrnx.paths import Places
from hgrnx.report.experiment import build_report
from hgrnx.report.experiment_files import BITS, PLAN, ExperimentRecord, read_experiment
from hgrnx.report.experiment_page import as_html, as_markdown
from hgrnx.report.experiment_parts import ArmDifference
from hgrnx.tracking import mlflow

HTML = "report.html"
MARKDOWN = "report.md"
_OVER_ITEMS = {"bear"}
"""Tasks whose score is the mean over items, not over subtasks."""


def report_experiment(name: str, places: Places, console: Console) -> None:
    """Write the report of an experiment anew, finished or not, print its Markdown, and send both to MLflow.

    Raises:
        UserError: there is no such experiment, or its files are damaged.
    """
    folder = find_experiment(name, places)
    html, markdown = write_report(folder, places)
    run = mlflow.stored_run_id(folder)
    if run is not None:
        try:
            mlflow.log_artifacts(places.mlflow_uri, run, [html, markdown])
        except UserError as error:
            console.print(f"MLflow did not take the report: {error}", highlight=False)
    console.print(markdown.read_text(encoding="utf-8"), highlight=False, markup=False)
    console.print(f"Report {html}\n       {markdown}", highlight=False)


def find_experiment(name: str, places: Places) -> Path:
    """The folder of an experiment by its name (``table2-cpu``), the start of it, or as a path; the newest of several.

    Raises:
        UserError: there is none.
    """
    given = Path(name).expanduser()
    if (given / PLAN).is_file():
        return given.resolve()
    known = sorted(places.runs.glob(f"*/{PLAN}"), key=lambda path: path.stat().st_mtime)
    found = [path.parent for path in known if path.parent.name.startswith(name)]
    if not found:
        names = ", ".join(path.parent.name for path in known) or "none yet"
        raise UserError(
            f"There is no experiment '{name}' in {places.runs} (experiments there: {names}). "
            "Run one first: hgrnx reproduce table2 --scale demo"
        )
    return found[-1]


def write_report(folder: Path, places: Places) -> list[Path]:
    """Write ``report.html`` and ``report.md`` of an experiment's folder; returns both."""
    record = read_experiment(folder, places.runs)
    report = build_report(record, compare_arms(record))
    write_whole(folder / HTML, as_html(report).encode())
    write_whole(folder / MARKDOWN, as_markdown(report).encode())
    return [folder / HTML, folder / MARKDOWN]


def compare_arms(record: ExperimentRecord) -> list[ArmDifference]:
    """Every comparison of the experiment, on every measure that the finished runs of both arms have."""
    differences = []
    for first, second in record.plan["comparisons"]:
        texts = {
            (run.environment.get("data_hash"), record.plan["arms"][arm]["dev_documents"])
            for arm in (first, second)
            for run in record.of(arm)
        }
        measures = [*([BITS] if len(texts) == 1 else []), *record.tasks()]
        for measure in measures:
            found = _compare(record, first, second, measure)
            if found is not None:
                differences.append(found)
    return differences


def _compare(record: ExperimentRecord, first: str, second: str, measure: str) -> ArmDifference | None:
    scores = [_scores(record, arm, measure) for arm in (first, second)]
    if any(names is None for names, _ in scores) or scores[0][0] != scores[1][0]:
        return None
    weights = None
    if measure in _OVER_ITEMS:
        task = record.of(first)[0].tasks[measure]
        weights = [task.subtasks[name].items for name in scores[0][0] or ()]
    found = seed_difference(scores[0][1], scores[1][1], weights)
    if found is None:
        return None
    return ArmDifference(
        first, second, measure, found.difference, found.interval, found.p, found.seeds, found.paradigms
    )


def _scores(record: ExperimentRecord, arm: str, measure: str) -> tuple[list[str] | None, np.ndarray]:
    """Names of the paradigms and scores [S, P] of an arm; None where its runs lack the measure or disagree."""
    runs = record.of(arm)
    if measure == BITS:
        bits = [run.bits_per_byte for run in runs if run.bits_per_byte is not None]
        return ([BITS] if bits else None), np.array(bits, dtype=np.float64)[:, None]
    tasks = [run.tasks[measure] for run in runs if measure in run.tasks]
    names = sorted(tasks[0].subtasks) if tasks else []
    if not names or any(sorted(task.subtasks) != names for task in tasks):
        return None, np.empty((0, 0))
    return names, np.array([[task.subtasks[name].score for name in names] for task in tasks])
