"""What the report of an experiment says: its tables and figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from hgrnx.report import paper
from hgrnx.report.experiment_charts import by_phenomenon, learning_curves, over_values, scores_during_training
from hgrnx.report.experiment_files import BITS, ExperimentRecord, TaskRecord
from hgrnx.report.experiment_parts import Arm, ArmDifference, Part, Report, Table, measure_name
from hgrnx.report.summary import count, duration

_PAPER_SCALES = {"gpu", "paper"}


def build_report(record: ExperimentRecord, differences: Sequence[ArmDifference]) -> Report:
    """The report of an experiment, finished or on its way."""
    plan = record.plan
    arms = [Arm(name, facts, record.of(name), index) for index, (name, facts) in enumerate(plan["arms"].items())]
    done = sum(run.finished for run in record.runs)
    titles = {arm.name: arm.title for arm in arms}
    missing = [f"{titles[run.arm]}, seed {run.seed}: {run.state}" for run in record.runs if run.state != "finished"]
    parts = [
        _results(record, arms),
        _differences(titles, differences),
        learning_curves(arms),
        scores_during_training(arms, record),
        over_values(arms, record),
        *by_phenomenon(arms, record),
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


def _results(record: ExperimentRecord, arms: Sequence[Arm]) -> Part:
    tasks = record.tasks()
    header = ["", *map(measure_name, tasks), "bits per byte", "parameters", "besides embeddings", "words seen", "runs"]
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
        f"items of a single run. Tasks in percent, a tie counts half; bits per byte of {_development_text(arms)}."
    )
    tables = [Table(header, rows, note)]
    table = _paper_rows(record.plan, tasks)
    if table is not None:
        tables.append(table)
    return Part("Results", tables=tables)


def _development_text(arms: Sequence[Arm]) -> str:
    """What the last weights were asked to predict."""
    parts = {arm.facts["dev_documents"] for arm in arms}
    if parts == {None}:
        return "the whole development text"
    names = ["all" if part is None else f"{part:,}" for part in sorted(parts, key=lambda part: (part is None, part))]
    return f"the development text, of which {' or '.join(names)} documents, evenly spaced, are read"


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
        ["the paper", "text", *map(measure_name, known)],
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
                measure_name(item.measure),
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


def _cost(arms: Sequence[Arm]) -> Part:
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


def _ledger(arms: Sequence[Arm]) -> Part | None:
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


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _p(p: float) -> str:
    return "<0.001" if p < 1e-3 else f"{p:.3f}"
