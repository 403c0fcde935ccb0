"""What the report of an experiment says: its tables and figures, for the page and for Markdown alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hgrnx.report import paper
from hgrnx.report.experiment_files import BITS, PAIRS, ExperimentRecord, RunRecord, TaskRecord
from hgrnx.report.summary import count, duration
from hgrnx.report.svg import Point, Series, dot_chart, line_chart
from hgrnx.report.task_scores import TITLES

_NAMES = {**TITLES, PAIRS: "minimal pairs", BITS: "bits per byte"}
_CHANCE = {"blimp", "supplement", "ewok", PAIRS}
_PAPER_SCALES = {"gpu", "paper"}


class ArmDifference(NamedTuple):
    """One arm's mean score on a measure minus another's: percentage points, or bits per byte."""

    first: str
    second: str
    measure: str
    difference: float
    interval: tuple[float, float]
    p: float
    seeds: tuple[int, int]
    paradigms: int


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is a name, the others are numbers."""

    header: list[str]
    rows: list[list[str]]
    note: str = ""
    names: int = 1
    """Columns on the left that are names."""


@dataclass(frozen=True)
class Figure:
    """A chart with the names of its colours."""

    title: str
    svg: str
    legend: list[tuple[int, str]]
    note: str = ""


@dataclass(frozen=True)
class Part:
    """A section of the report."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    code: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """All of it."""

    name: str
    title: str
    question: str
    status: str
    missing: list[str]
    """Runs that are not finished, each with how far it is."""
    parts: list[Part]


class _Arm(NamedTuple):
    """An arm with its finished runs and its place among the arms, which is its colour."""

    name: str
    facts: dict[str, Any]
    runs: list[RunRecord]
    colour: int

    @property
    def title(self) -> str:
        return str(self.facts["title"])


def build_report(record: ExperimentRecord, differences: Sequence[ArmDifference]) -> Report:
    """The report of an experiment, finished or on its way."""
    plan = record.plan
    arms = [_Arm(name, facts, record.of(name), index) for index, (name, facts) in enumerate(plan["arms"].items())]
    done = sum(run.finished for run in record.runs)
    titles = {arm.name: arm.title for arm in arms}
    missing = [f"{titles[run.arm]}, seed {run.seed}: {run.state}" for run in record.runs if run.state != "finished"]
    parts = [
        _results(record, arms),
        _differences(titles, differences),
        _curves(arms),
        _dynamics(arms, record),
        _varied(arms, record),
        *_phenomena(arms, record),
        _cost(arms),
        _ledger(arms),
        _environment(record),
        _again(record),
    ]
    return Report(
        name=f"{plan['name']} --scale {plan['scale']}",
        title=plan["title"],
        question=plan["question"],
        status=f"{done} of {len(record.runs)} runs finished; {len(plan['seeds'])} "
        f"{'seed' if len(plan['seeds']) == 1 else 'seeds'} ({', '.join(map(str, plan['seeds']))})",
        missing=missing,
        parts=[part for part in parts if part is not None],
    )


def _results(record: ExperimentRecord, arms: Sequence[_Arm]) -> Part:
    tasks = record.tasks()
    header = ["", *map(_name, tasks), "bits per byte", "parameters", "besides embeddings", "words seen", "runs"]
    rows = []
    for arm in arms:
        bits = [run.bits_per_byte for run in arm.runs if run.bits_per_byte is not None]
        parameters = arm.facts["parameters"]
        rows.append(
            [
                arm.title,
                *(_score([run.tasks[task] for run in arm.runs if task in run.tasks]) for task in tasks),
                _mean(bits, 4),
                count(parameters["total"]),
                count(parameters["other"]),
                count(arm.facts["words"]),
                f"{len(arm.runs)} of {len(arm.facts['runs'])}",
            ]
        )
    note = (
        "Means over seeds ± their standard error over seeds (none with one seed); in brackets the standard error over "
        "items of a single run. Tasks in percent, a tie counts half; bits per byte of the development text."
    )
    tables = [Table(header, rows, note)]
    table = _paper_rows(record.plan, tasks)
    if table is not None:
        tables.append(table)
    return Part("Results", tables=tables)


def _paper_rows(plan: dict[str, Any], tasks: Sequence[str]) -> Table | None:
    """The paper's table of this experiment, where the scale makes them comparable."""
    if plan["scale"] not in _PAPER_SCALES or plan["paper"] is None:
        return None
    rows = {
        "architectures": paper.ARCHITECTURES_10M,
        "data": paper.DATA,
        "distillation": tuple(row for row in paper.FINAL if row.model.startswith("BabyHGRN")),
    }[plan["paper"]]
    known = [task for task in (tasks or plan["tasks"]) if any(task in row.scores for row in rows)]
    return Table(
        ["the paper", "text", *map(_name, known)],
        [[row.model, row.track, *(f"{row.scores[task]:.2f}" for task in known)] for row in rows],
        "As printed in arXiv 2412.15978: one run each, the best epoch of up to five chosen on these scores. "
        "Ours are the last weights.",
        names=2,
    )


def _differences(titles: dict[str, str], differences: Sequence[ArmDifference]) -> Part | None:
    if not differences:
        return None
    rows = []
    for item in differences:
        digits = 4 if item.measure == BITS else 1
        seeds = " and ".join(map(str, item.seeds)) if item.seeds[0] != item.seeds[1] else str(item.seeds[0])
        interval = f"{_signed(item.interval[0], digits)} to {_signed(item.interval[1], digits)}"
        paradigms = str(item.paradigms) if item.paradigms > 1 else "–"
        rows.append(
            [
                f"{titles[item.first]} − {titles[item.second]}",
                _name(item.measure),
                _signed(item.difference, digits),
                interval,
                _p(item.p),
                seeds + (" *" if min(item.seeds) == 1 else ""),
                paradigms,
            ]
        )
    note = (
        "Percentage points, or bits per byte (less is better). Intervals (95%) and two-sided p by a bootstrap over "
        "seeds and paradigms: paradigms are drawn anew with their items, the mean over the few seeds by Student's t. "
        "Each p is of one comparison alone; among twenty of nothing one is below 0.05."
    )
    if any(min(item.seeds) == 1 for item in differences):
        note += " * One seed: what another seed would change is not in the interval and cannot be known from it."
    header = ["difference", "measure", "difference", "95%", "p", "seeds", "paradigms"]
    return Part("Differences", tables=[Table(header, rows, note, names=2)])


def _curves(arms: Sequence[_Arm]) -> Part | None:
    series = [Series(arm.title, arm.colour, _band([run.curve for run in arm.runs])) for arm in arms]
    figure = _lines("Development text", [item for item in series if item.points], "bits per byte")
    if figure is None:
        return None
    return Part("Learning curves", figures=[figure])


def _dynamics(arms: Sequence[_Arm], record: ExperimentRecord) -> Part | None:
    figures = []
    for task in record.plan["tasks"]:
        series = []
        for arm in arms:
            curves = [[(words, scores[task]) for words, scores in run.points if task in scores] for run in arm.runs]
            series.append(Series(arm.title, arm.colour, _band(curves)))
        level = (50.0, "chance") if task in _CHANCE else None
        figure = _lines(_name(task), [item for item in series if item.points], "accuracy, %", level)
        if figure is not None:
            figures.append(figure)
    if not figures:
        return None
    return Part("Scores during training", ["Of the weights kept at the word milestones."], figures=figures)


def _varied(arms: Sequence[_Arm], record: ExperimentRecord) -> Part | None:
    """Scores over the values of a varied key: the temperature, the learning rate."""
    families: dict[str, list[_Arm]] = {}
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
        figures.append(figure(_name(task), "accuracy, %", lambda run, task=task: _overall(run, task)))  # type: ignore[misc]
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


def _phenomena(arms: Sequence[_Arm], record: ExperimentRecord) -> list[Part]:
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
            figures.append(Figure(_name(task), chart, legend, "Means over seeds; bars are ± one standard error."))
        note = "In percent, ± standard error: over seeds where there are several, else over items."
        parts.append(
            Part(
                f"{_name(task)} by phenomenon",
                tables=[Table(["", *(arm.title for arm, _ in scored)], rows, note)],
                figures=figures,
            )
        )
    return parts


def _cost(arms: Sequence[_Arm]) -> Part:
    rows = []
    for arm in arms:
        flops, results = arm.facts["flops"], [run.result for run in arm.runs]
        speed = statistics.fmean(result["tokens_per_second"] for result in results) if results else None
        rows.append(
            [arm.title, count(arm.facts["words"]), count(arm.facts["tokens"]), f"{flops / 1e12:,.1f}"]
            + ([duration(statistics.fmean(result["seconds"] for result in results))] if results else ["–"])
            + (
                [f"{speed:,.0f}", f"{flops / arm.facts['tokens'] * speed / 1e9:,.0f}"]
                if speed is not None
                else ["–", "–"]
            )
            + ([f"{max(result['peak_memory_mb'] for result in results):,.0f}"] if results else ["–"])
        )
    finished = [run for arm in arms for run in arm.runs]
    total = sum(arm.facts["flops"] * len(arm.runs) for arm in arms)
    text = [
        f"All {len(finished)} finished runs together: {duration(sum(run.result['seconds'] for run in finished))} of "
        f"training, {total / 1e15:,.3f} PFLOP."
    ]
    header = ["", "words", "tokens", "TFLOP", "time", "tokens/s", "GFLOP/s", "memory, MB"]
    note = (
        "Per run. FLOPs by arithmetic from the model (forward, backward and the teachers' forwards); time, speed and "
        "the peak memory of a worker are measured, without evaluation. Times of runs that shared a machine with other "
        "work say as much of that work."
    )
    return Part("Cost", text, [Table(header, rows, note)])


def _ledger(arms: Sequence[_Arm]) -> Part | None:
    rows = []
    for arm in arms:
        for run in arm.runs[:1]:
            ledger = run.ledger
            readers = ", ".join(f"{reader['name']} {reader['passes']:.2f} x" for reader in ledger["readers"])
            rows.append([arm.title, ledger["track"], count(ledger["words"]), count(ledger["budget"]), readers])
    if not rows:
        return None
    note = "Different words that a run, its tokenizer and its teachers have read, and how often each read its text."
    return Part(
        "Ledger", tables=[Table(["", "track", "words read", "allowed", "readers (passes)"], rows, note, names=2)]
    )


def _environment(record: ExperimentRecord) -> Part | None:
    found: dict[str, list[str]] = {}
    for run in record.runs:
        for key, value in _facts(run.environment).items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    if not found:
        return None
    rows = [[key, "; ".join(values)] for key, values in found.items()]
    return Part("Environment", tables=[Table(["", "of the finished runs"], rows, names=2)])


def _facts(environment: dict[str, Any]) -> dict[str, str]:
    if not environment:
        return {}
    git = environment["git"] or {}
    versions = environment["versions"]
    gpus = ", ".join(str(gpu.get("name", gpu)) for gpu in environment["gpus"]) or "none"
    return {
        "commit": f"{git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git else "not a git checkout",
        "processor": f"{environment['cpu']}, {environment['cpu_cores']} cores, {environment['memory_gb']} GB",
        "GPU": gpus,
        "Python": environment["python"],
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "data": environment["data_hash"][:16],
        "recurrence": str(environment.get("recurrence", "–")),
    }


def _again(record: ExperimentRecord) -> Part:
    rows = [[run.name, run.arm, str(run.seed), run.state] for run in record.runs]
    table = Table(["run", "arm", "seed", "state"], rows, "Each has its whole recipe: hgrnx runs RUN.", names=4)
    code = [record.plan["command"] or f"hgrnx reproduce {record.plan['name']} --scale {record.plan['scale']}"]
    code.append(f"hgrnx report {record.folder.name}")
    return Part(
        "To repeat it", ["The first command also goes on where an earlier one was stopped."], [table], code=code
    )


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


def _name(measure: str) -> str:
    return _NAMES.get(measure, measure)


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{error}"


def _score(tasks: Sequence[TaskRecord]) -> str:
    if not tasks:
        return "–"
    return (
        f"{_mean([task.overall.score for task in tasks], 1)} ({statistics.fmean(t.overall.stderr for t in tasks):.1f})"
    )


def _group(tasks: Sequence[TaskRecord], group: str) -> str:
    shares = [task.groups[group] for task in tasks if group in task.groups]
    if not shares:
        return "–"
    mean, error = _mean_error(shares)
    return f"{mean:.1f} ± {error:.1f}"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _p(p: float) -> str:
    return "<0.001" if p < 1e-3 else f"{p:.3f}"
