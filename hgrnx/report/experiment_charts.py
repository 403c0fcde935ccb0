"""The parts of an experiment's report that show something over words, values or phenomena."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from hgrnx.report.experiment_files import PAIRS, ExperimentRecord, RunRecord, TaskRecord
from hgrnx.report.experiment_parts import Arm, Figure, Part, Table, measure_name
from hgrnx.report.svg import Point, Series, dot_chart, line_chart

_CHANCE = {"blimp", "supplement", "ewok", PAIRS}


def learning_curves(arms: Sequence[Arm]) -> Part | None:
    """Bits per byte of the development text over words."""
    series = [Series(arm.title, arm.colour, _band([run.curve for run in arm.runs])) for arm in arms]
    figure = _lines("Development text", [item for item in series if item.points], "bits per byte")
    if figure is None:
        return None
    return Part("Learning curves", figures=[figure])


def scores_during_training(arms: Sequence[Arm], record: ExperimentRecord) -> Part | None:
    """Task scores over words."""
    figures = []
    for task in record.plan["tasks"]:
        series = []
        for arm in arms:
            curves = [[(words, scores[task]) for words, scores in run.points if task in scores] for run in arm.runs]
            series.append(Series(arm.title, arm.colour, _band(curves)))
        level = (50.0, "chance") if task in _CHANCE else None
        figure = _lines(measure_name(task), [item for item in series if item.points], "accuracy, %", level)
        if figure is not None:
            figures.append(figure)
    if not figures:
        return None
    return Part("Scores during training", ["Of the weights kept at the word milestones."], figures=figures)


def over_values(arms: Sequence[Arm], record: ExperimentRecord) -> Part | None:
    """Scores over the values of a varied key: the temperature, the learning rate."""
    families: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.facts["key"] is not None:
            families.setdefault(arm.facts["family"], []).append(arm)
    if not families:
        return None
    key = next(iter(families.values()))[0].facts["key"].rpartition(".")[2].replace("_", " ")

    def figure(title: str, unit: str, values_of: Callable[[RunRecord], float | None]) -> Figure | None:
        series = []
        for colour, members in enumerate(families.values()):
            points = []
            for arm in members:
                values = [value for run in arm.runs if (value := values_of(run)) is not None]
                if values:
                    points.append(_point(float(arm.facts["value"]), values))
            name = members[0].title.partition(f", {key}")[0]
            if points:
                series.append(Series(name, colour, points))
        return _lines(title, series, unit, x_label=key, log_x=True)

    figures = [figure("Development text", "bits per byte", lambda run: run.bits_per_byte)]
    for task in record.tasks():
        figures.append(figure(measure_name(task), "accuracy, %", lambda run, task=task: _overall(run, task)))  # type: ignore[misc]
    rows = []
    for members in families.values():
        known = [
            (statistics.fmean(bits), arm)
            for arm in members
            if (bits := [run.bits_per_byte for run in arm.runs if run.bits_per_byte is not None])
        ]
        if known:
            best = min(known, key=lambda pair: pair[0])
            edge = (
                best[1].facts["value"] in (members[0].facts["value"], members[-1].facts["value"]) and len(members) > 1
            )
            title = best[1].title.partition(f", {key}")[0]
            rows.append([title, f"{best[1].facts['value']:g}" + (" (at the edge)" if edge else ""), f"{best[0]:.4f}"])
    tables = [Table(["", f"best {key}", "bits per byte"], rows, "The best of the values tried, on development text.")]
    return Part(key.capitalize(), tables=tables if rows else [], figures=[item for item in figures if item is not None])


def by_phenomenon(arms: Sequence[Arm], record: ExperimentRecord) -> list[Part]:
    """A part per task that has phenomena."""
    parts = []
    for task in record.tasks():
        scored = [(arm, [run.tasks[task] for run in arm.runs if task in run.tasks]) for arm in arms]
        scored = [(arm, tasks) for arm, tasks in scored if tasks]
        groups = sorted({group for _, tasks in scored for found in tasks for group in found.groups})
        if len(groups) < 2:
            continue
        rows = [[group.replace("_", " "), *(_group(tasks, group) for _, tasks in scored)] for group in groups]
        figures = []
        if len(scored) <= 7:
            series = [
                Series(
                    arm.title,
                    arm.colour,
                    [
                        _row_point(number, [found.groups[group] for found in tasks if group in found.groups])
                        for number, group in enumerate(groups)
                        if any(group in found.groups for found in tasks)
                    ],
                )
                for arm, tasks in scored
            ]
            chart = dot_chart(
                [group.replace("_", " ") for group in groups],
                series,
                "accuracy, %",
                level=50 if task in _CHANCE else None,
            )
            legend = [(arm.colour, arm.title) for arm, _ in scored]
            figures.append(
                Figure(measure_name(task), chart, legend, "Means over seeds; bars are ± one standard error.")
            )
        note = "In percent, ± standard error: over seeds where there are several, else over items."
        parts.append(
            Part(
                f"{measure_name(task)} by phenomenon",
                tables=[Table(["", *(arm.title for arm, _ in scored)], rows, note)],
                figures=figures,
            )
        )
    return parts


def _lines(
    title: str,
    series: Sequence[Series],
    y_label: str,
    level: tuple[float, str] | None = None,
    *,
    x_label: str = "words seen, millions",
    log_x: bool = False,
) -> Figure | None:
    if not series:
        return None
    chart = line_chart(series, x_label, y_label, log_x=log_x, level=level)
    note = (
        "Means over seeds, with the lowest and the highest as a band."
        if any(point.low is not None for item in series for point in item.points)
        else ""
    )
    return Figure(title, chart, [(item.colour, item.label) for item in series], note)


def _band(curves: Sequence[Sequence[tuple[float, float]]]) -> list[Point]:
    """The mean of curves of the same length at millions of words, between the lowest and the highest."""
    curves = [curve for curve in curves if curve]
    return [
        _point(statistics.fmean(words for words, _ in column) / 1e6, [value for _, value in column])
        for column in zip(*curves)
    ]


def _point(x: float, values: Sequence[float]) -> Point:
    several = len(values) > 1
    return Point(x, statistics.fmean(values), min(values) if several else None, max(values) if several else None)


def _row_point(row: int, shares: Sequence[Any]) -> Point:
    mean, error = _mean_error(shares)
    return Point(mean, row, mean - error, mean + error)


def _mean_error(shares: Sequence[Any]) -> tuple[float, float]:
    scores = [share.score for share in shares]
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else shares[0].stderr
    return statistics.fmean(scores), error


def _overall(run: RunRecord, task: str) -> float | None:
    return run.tasks[task].overall.score if task in run.tasks else None


def _group(tasks: Sequence[TaskRecord], group: str) -> str:
    shares = [task.groups[group] for task in tasks if group in task.groups]
    if not shares:
        return "–"
    mean, error = _mean_error(shares)
    return f"{mean:.1f} ± {error:.1f}"
