"""What run folders say of finished runs, as comparable measures. Reads files only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from hgrnx.errors import UserError


@dataclass(frozen=True)
class FinishedRun:
    """The files of one finished run."""

    folder: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    metrics: dict[str, float]
    groups: dict[str, dict[str, Any]]
    """Accuracy (0 to 1), standard error, pairs and ties of each group of minimal pairs."""

    @property
    def pairs_name(self) -> str:
        """On which minimal pairs it was scored: the name of their folder, or that of the track they come with."""
        folder = self.recipe["evaluation"]["minimal_pairs"]
        return Path(folder).name if folder else str(self.recipe["data"]["track"])


@dataclass(frozen=True)
class Measure:
    """One row of a summary: a value for each run, None where a run lacks it."""

    name: str
    unit: str
    values: list[float | None]
    errors: list[float | None]
    """Standard errors."""
    show: Callable[[float], str]
    best: Literal["high", "low"] | None = None
    indent: bool = False

    def text(self, index: int) -> str:
        """The value of run ``index`` for people, with its standard error."""
        value, error = self.values[index], self.errors[index]
        if value is None:
            return "–"
        return self.show(value) + (f" ± {self.show(error)}" if error is not None else "")

    def winners(self) -> set[int]:
        """The runs with the best value as printed; none when there is nothing to choose."""
        shown = {index: float(self.show(value)) for index, value in self._known() if self.best}
        if len(shown) < 2 or len(set(shown.values())) < 2:
            return set()
        top = max(shown.values()) if self.best == "high" else min(shown.values())
        return {index for index, value in shown.items() if value == top}

    def _known(self) -> list[tuple[int, float]]:
        return [(index, value) for index, value in enumerate(self.values) if value is not None]


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run's ``recipe.yaml``, ``environment.json``, ``result.json`` and ``eval/final.json``.

    Raises:
        UserError: one of them is missing or damaged.
    """
    final = _read(folder / "eval" / "final.json", json.loads)
    try:
        return FinishedRun(
            folder=folder,
            recipe=_read(folder / "recipe.yaml", yaml.safe_load),
            environment=_read(folder / "environment.json", json.loads),
            result=_read(folder / "result.json", json.loads),
            metrics=final["metrics"],
            groups={row["group"]: row for row in final["tables"].get("groups", [])},
        )
    except KeyError as error:
        raise UserError(
            f"{folder / 'eval' / 'final.json'} has no {error}. Score the run again: hgrnx eval {folder.name}"
        ) from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole records of a ``metrics.jsonl``; what a kill cut short, or a missing file, is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def measures(runs: Mapping[str, FinishedRun]) -> list[Measure]:
    """The rows of a summary of ``runs``, in order: size, quality, quality by phenomenon, cost."""
    found = list(runs.values())

    def row(
        name: str,
        unit: str,
        values: list[float | None],
        show: Callable[[float], str],
        best: Literal["high", "low"] | None = None,
        errors: list[float | None] | None = None,
        indent: bool = False,
    ) -> Measure:
        return Measure(name, unit, values, errors or [None] * len(values), show, best, indent)

    names = {run.pairs_name for run in found if run.groups}
    pairs = f"minimal pairs ({names.pop()})" if len(names) == 1 else "minimal pairs"
    rows = [
        row("parameters", "", [run.result["parameters"]["total"] for run in found], count),
        row("besides embeddings", "", [run.result["parameters"]["other"] for run in found], count, indent=True),
        row("words seen", "", [run.result["words"] for run in found], count),
        row("bits per byte (dev)", "", [run.metrics.get("dev/bits_per_byte") for run in found], _4f, "low"),
        row(
            pairs,
            "%",
            _percent([run.metrics.get("pairs/accuracy") for run in found]),
            _1f,
            "high",
            _percent([run.metrics.get("pairs/accuracy_stderr") for run in found]),
        ),
    ]
    if any(run.metrics.get("pairs/ties") for run in found):
        half = _percent([run.metrics.get("pairs/accuracy_ties_half") for run in found])
        rows.append(row("ties as half right", "%", half, _1f, "high", indent=True))
    for group in dict.fromkeys(group for run in found for group in run.groups):
        cells = [run.groups.get(group, {}) for run in found]
        accuracy = _percent([cell.get("accuracy") for cell in cells])
        errors = _percent([cell.get("stderr") for cell in cells])
        rows.append(row(group.replace("_", " "), "%", accuracy, _1f, "high", errors, indent=True))
    rows += [
        row("training speed", "tokens/s", [run.result["tokens_per_second"] for run in found], _0f, "high"),
        row("training time", "s", [run.result["seconds"] for run in found], duration),
    ]
    return [item for item in rows if any(value is not None for value in item.values)]


def count(number: float) -> str:
    """12_345_678 as ``12.3M``."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{suffix}" if number < 1_000 * size else f"{number / size:,.0f}{suffix}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Seconds as ``45 s``, ``12 min 30 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _0f(value: float) -> str:
    return f"{value:.0f}"


def _1f(value: float) -> str:
    return f"{value:.1f}"


def _4f(value: float) -> str:
    return f"{value:.4f}"


def _percent(shares: list[float | None]) -> list[float | None]:
    return [None if share is None else 100 * share for share in shares]


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: the run has not finished. Start it again, and it goes on from its last checkpoint."
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read: {str(error).partition(chr(10))[0]}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it should hold a mapping.")
    return content
