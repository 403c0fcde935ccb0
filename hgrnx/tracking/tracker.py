"""Where metrics go: the ``Tracker`` protocol, and the trackers that need nothing but a file.

``metrics.jsonl`` is the run's own record. It has one JSON object a line: ``step``, ``time`` (Unix seconds),
``words`` (words seen so far) and the metrics, flat. MLflow follows that file (``publisher.py``).
"""

from __future__ import annotations

import glob
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hgrnx.errors import UserError

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a training loop tells about itself. No method may take the time of a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record ``metrics`` after ``step`` optimizer steps; ``words`` among them: words seen so far."""

    def durable(self, step: int) -> None:
        """A checkpoint of ``step`` is whole on disk: no restart will compute this step again."""

    def close(self, *, final: bool = False, timeout: float = 10.0) -> int:
        """End. ``final``: the run is complete, so that everything recorded counts.

        Returns:
            Records that did not reach their place within ``timeout`` seconds; they can be replayed.
        """


class NullTracker:
    """Forgets everything; for ranks other than 0 and for tests."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def durable(self, step: int) -> None:
        """Do nothing."""

    def close(self, *, final: bool = False, timeout: float = 10.0) -> int:
        """Nothing was missed."""
        return 0


class JsonlTracker:
    """Appends each record to ``path`` as one line of JSON, at once.

    A run that resumes from the checkpoint of ``resume_step`` computes what came after it again: those lines
    are dropped first, in one atomic replacement, as is a last line cut short by a kill. With
    ``resume_step=0`` the run starts over and the file starts empty.

    Raises:
        UserError: the file cannot be read or written (a full disk, missing rights).
    """

    def __init__(self, path: Path, resume_step: int = 0, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            truncate_metrics(path, resume_step)
            # One write() a line: a kill cuts the last line at worst, it never mixes two.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise self._refused(error) from None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; ``metrics`` may hold ``words`` and anything that ``float()`` takes."""
        if "step" in metrics or "time" in metrics:
            raise ValueError("'step' and 'time' are the tracker's own keys")
        record: dict[str, Any] = {"step": int(step), "time": round(self._clock(), 3)}
        if "words" in metrics:
            record["words"] = int(metrics["words"])
        record.update((key, float(value)) for key, value in metrics.items() if key != "words")
        data = memoryview(json.dumps(record).encode() + b"\n")
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            raise self._refused(error) from None

    def durable(self, step: int) -> None:
        """Force the lines to the disk, so that a power cut does not leave a checkpoint without its curve."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from None

    def close(self, *, final: bool = False, timeout: float = 10.0) -> int:
        """Close the file."""
        self._file.close()
        return 0

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"Cannot write the metrics to {self.path}: {error.strerror or error}. "
            "Free some space or correct the rights of the folder, then start the same command again."
        )


class CompositeTracker:
    """Hands everything to several trackers, in their order: put the file before those that follow it."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log to each."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def durable(self, step: int) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.durable(step)

    def close(self, *, final: bool = False, timeout: float = 10.0) -> int:
        """Close each within what is left of ``timeout`` seconds; returns the sum of what is missing."""
        deadline = time.monotonic() + timeout
        return sum(
            tracker.close(final=final, timeout=max(0.0, deadline - time.monotonic())) for tracker in self._trackers
        )


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a ``metrics.jsonl``, in order; nothing when the file does not exist."""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                record = parse_line(line)
                if record is not None:
                    yield record


TIMINGS = frozenset(
    {
        "train/tokens_per_second",
        "train/step_seconds",
        "train/step_seconds_waiting",
        "train/step_seconds_updating",
        "train/batches_ready",
        "tasks/seconds",
    }
)
"""Metrics that tell of the machine, not of the model: another run of the same recipe has others."""


def repeatable(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` without ``time`` and :data:`TIMINGS`: the same in every run of the recipe."""
    drop = TIMINGS | {"time"}
    return [{key: value for key, value in record.items() if key not in drop} for record in read_metrics(path)]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of one line, or None for a line that was cut short or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def truncate_metrics(path: Path, last_step: int) -> None:
    """Keep the whole lines of steps 1 to ``last_step`` (none when it is 0), in one atomic replacement."""
    if not path.exists():
        return
    old = path.read_bytes()
    kept: list[bytes] = []
    damaged = 0
    for line in old.splitlines(keepends=True):
        record = parse_line(line)
        if record is None:
            damaged += 1
        elif last_step > 0 and record["step"] <= last_step:
            kept.append(line)
    new = b"".join(kept)
    if damaged and last_step > 0:
        _log.warning("%s: left out %d line(s) that were cut short or damaged", path, damaged)
    if new != old:
        replace_file(path, new)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` so that its reader, even after a kill, finds the old content or the new one whole.

    A file has one writer at a time: what others have left beside it was left by a kill, and goes.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)
