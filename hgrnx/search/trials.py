"""The record of a search on disk: one JSON file a trial, replaced whole, from which a killed search goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hgrnx.errors import UserError

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """One trial of a search."""

    number: int
    run: str
    """Name of its run folder; the same for the same recipe on the same data."""
    parameters: dict[str, Any]
    status: Status = "running"
    reason: str | None = None
    """Why it failed or was stopped."""
    points: list[dict[str, float]] = field(default_factory=list)
    """Every evaluation in order: ``words`` (words seen) and its metrics."""
    values: dict[str, float] = field(default_factory=dict)
    """Of a finished trial: the metrics of its last evaluation, ``seconds`` (of training), ``parameters``, ``words``."""
    seconds: float = 0.0
    """Wall-clock time it took, start of the workers and evaluations included."""
    memory_mb: float | None = None
    """Peak memory of one worker."""
    reused: bool = False
    """Its run had been finished before by something else: it cost nothing here."""

    @property
    def words(self) -> int:
        """Words seen so far, as far as is known here."""
        return int(self.values.get("words") or (self.points[-1]["words"] if self.points else 0))

    def score(self, metric: str) -> float | None:
        """The final value of ``metric``, or that of the last evaluation; None before the first."""
        if metric in self.values:
            return self.values[metric]
        return next((point[metric] for point in reversed(self.points) if metric in point), None)

    def add_point(self, point: dict[str, float]) -> bool:
        """Note an evaluation; False where all of it was known, as after a trial went back to a checkpoint."""
        known = next((known for known in self.points if known["words"] == point["words"]), None)
        if known is None:
            self.points.append(point)
        elif known.keys() >= point.keys():
            return False
        else:
            known.update({key: value for key, value in point.items() if key not in known})
        return True


class TrialRecord:
    """The trials of a search, by number, each in ``NNNN.json`` of a folder."""

    def __init__(self, folder: Path) -> None:
        """Read what is there. Raises :class:`UserError` for a file that is damaged."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.trials = [_read(path) for path in sorted(folder.glob("[0-9]*.json"))]

    def __iter__(self) -> Iterator[Trial]:
        return iter(list(self.trials))

    def __len__(self) -> int:
        return len(self.trials)

    def add(self, run: str, parameters: dict[str, Any]) -> Trial:
        """Begin the next trial."""
        trial = Trial(len(self.trials), run, parameters)
        self.trials.append(trial)
        self.save(trial)
        return trial

    def save(self, trial: Trial) -> None:
        """Write a trial so that a kill leaves the old content or the new one whole.

        Raises:
            UserError: the disk refuses.
        """
        path = self.folder / f"{trial.number:04d}.json"
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with aside.open("w", encoding="utf-8") as file:
                json.dump(asdict(trial), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            raise UserError(
                f"Cannot write {path}: {error.strerror}. Free space, then give the command again."
            ) from None

    def with_status(self, *statuses: Status) -> list[Trial]:
        """The trials of these statuses, by number."""
        return [trial for trial in self.trials if trial.status in statuses]

    def counts(self) -> dict[str, int]:
        """How many trials have each status; they add up to all."""
        return {status: len(self.with_status(status)) for status in ("finished", "stopped", "failed", "running")}


def unusable(trial: Trial, metrics: list[str]) -> str | None:
    """Why a finished trial can't be judged: a metric that is missing, or no number."""
    for metric in metrics:
        value = trial.values.get(metric)
        if value is None:
            return f"it has no metric '{metric}'; it has {', '.join(sorted(trial.values))}"
        if not math.isfinite(value):
            return f"its {metric} is {value}"
    return None


def _read(path: Path) -> Trial:
    try:
        return Trial(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} can't be read ({error}). Remove it, or start over with --fresh.") from None
