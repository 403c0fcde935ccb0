"""An experiment as its files tell it: the plan, and what every run has left so far. Reads files only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hgrnx.errors import UserError
from hgrnx.report.summary import read_metrics

PLAN = "experiment.json"
FAILURES = "failures.json"
PAIRS = "pairs"
"""Stands for the minimal pairs that a dataset comes with, which every run is scored on, where it has any."""
BITS = "bits"
"""Bits per byte of the development text."""


class Share(NamedTuple):
    """A score in percent with its standard error over items, and how many those are."""

    score: float
    stderr: float
    items: int


@dataclass(frozen=True)
class TaskRecord:
    """One run's scores on a task, ties half right."""

    overall: Share
    subtasks: dict[str, Share]
    groups: dict[str, Share]


@dataclass(frozen=True)
class RunRecord:
    """One run of an experiment."""

    name: str
    arm: str
    seed: int
    state: str
    """``finished``, how far it is, or why it failed."""
    result: dict[str, Any] = field(default_factory=dict)
    """``result.json``; empty unless finished."""
    bits_per_byte: float | None = None
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Words seen, and bits per byte of the development text."""
    points: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    """Words seen, and scores by task, of weights that were scored along the way."""
    environment: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.result)


@dataclass(frozen=True)
class ExperimentRecord:
    """An experiment, finished or on its way."""

    folder: Path
    plan: dict[str, Any]
    """``experiment.json``."""
    runs: list[RunRecord]

    def of(self, arm: str) -> list[RunRecord]:
        """The finished runs of an arm, by seed."""
        return [run for run in self.runs if run.arm == arm and run.finished]

    def tasks(self) -> list[str]:
        """The tasks that any run was scored on, in the plan's order, the dataset's own pairs first."""
        known = [PAIRS, *self.plan["tasks"]]
        return [task for task in known if any(task in run.tasks for run in self.runs)]


def read_experiment(folder: Path, runs: Path) -> ExperimentRecord:
    """Read an experiment's folder, and what there is of its runs in the folder ``runs``.

    Raises:
        UserError: ``experiment.json``, or a file that a finished run must have, is missing, damaged or of an
            earlier hgrnx.
    """
    plan = _read(folder / PLAN)
    if any("dev_documents" not in facts for facts in plan["arms"].values()):
        raise UserError(
            f"{folder / PLAN} is of an earlier hgrnx. Run the experiment's command again: it goes on from there."
        )
    failures = _read(folder / FAILURES) if (folder / FAILURES).is_file() else {}
    found = [
        _read_run(runs / name, arm, int(seed), failures.get(name))
        for arm, facts in plan["arms"].items()
        for seed, name in facts["runs"].items()
    ]
    return ExperimentRecord(folder, plan, found)


def _read_run(folder: Path, arm: str, seed: int, failure: str | None) -> RunRecord:
    curve = [
        (record["words"], record["dev/bits_per_byte"])
        for record in read_metrics(folder / "metrics.jsonl")
        if "dev/bits_per_byte" in record and "words" in record
    ]
    if not (folder / "result.json").is_file():
        state = f"failed: {failure}" if failure else _progress(folder)
        return RunRecord(folder.name, arm, seed, state, curve=curve)
    final = _read(folder / "eval" / "final.json")
    tasks = {}
    if "pairs/accuracy" in final["metrics"]:
        tables = final["tables"]
        overall = {
            "accuracy_ties_half": final["metrics"]["pairs/accuracy_ties_half"],
            "stderr": final["metrics"]["pairs/accuracy_stderr"],
            "items": sum(row["items"] for row in tables["files"]),
        }
        tasks[PAIRS] = TaskRecord(_share(overall), _shares(tables["files"]), _shares(tables["groups"]))
    if (folder / "eval" / "tasks.json").is_file():
        tasks |= _tasks(_read(folder / "eval" / "tasks.json"))
    points = []
    for path in sorted((folder / "eval" / "points").glob("step-*/tasks.json")):
        content = _read(path)
        points.append((content["words"], {name: task.overall.score for name, task in _tasks(content).items()}))
    return RunRecord(
        name=folder.name,
        arm=arm,
        seed=seed,
        state=f"finished, but scoring failed: {failure}" if failure else "finished",
        result=_read(folder / "result.json"),
        bits_per_byte=final["metrics"].get("dev/bits_per_byte"),
        tasks=tasks,
        curve=curve,
        points=sorted(points, key=lambda point: point[0]),
        environment=_read(folder / "environment.json"),
        ledger=_read(folder / "ledger.json"),
    )


def _progress(folder: Path) -> str:
    lines = read_metrics(folder / "metrics.jsonl")
    words = [record["words"] for record in lines if "words" in record]
    return f"at {words[-1] / 1e6:.2f}M words" if words else "not started"


def _tasks(content: dict[str, Any]) -> dict[str, TaskRecord]:
    return {
        name: TaskRecord(_share(tables["overall"]), _shares(tables["subtasks"]), _shares(tables["groups"]))
        for name, tables in content["tasks"].items()
        if tables["overall"] is not None
    }


def _shares(rows: list[dict[str, Any]]) -> dict[str, Share]:
    return {row["name"]: _share(row) for row in rows}


def _share(row: dict[str, Any]) -> Share:
    return Share(100 * row["accuracy_ties_half"], 100 * row["stderr"], row["items"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). Run the experiment again: it goes on from there.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it should hold a mapping.")
    return content
