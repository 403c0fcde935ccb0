"""Brings ``metrics.jsonl`` to a store from a background thread, so that the store can never hold up a step.

Only records up to the last durable checkpoint are sent: what lies beyond may be computed again after a
failure, and a store such as MLflow keeps both values of a step that is recorded twice. How far each metric got
is kept in the run folder.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hgrnx.tracking.tracker import parse_line, replace_file

STATE_FILE = "mlflow-published.json"
"""In a run folder: for each metric, the last step that the store has, and what was being sent."""

METRICS = "metrics.jsonl"
"""In a run folder: its metrics."""

_POINTS_PER_BATCH = 1_000  # MLflow's limit
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    timestamp_ms: int
    step: int


Send = Callable[[Sequence[Point]], None]
"""Takes at most 1,000 points; raises when they may not have arrived. The same point sent again is one point."""


class Follower:
    """Reads a metrics file from where it stopped and sends each metric of each step once.

    Args:
        path: the ``metrics.jsonl``, or a file of the same form; the state is kept beside it.
        run_id: of the run in the store; a state that belongs to another run is not used.
    """

    def __init__(self, path: Path, run_id: str, send: Send) -> None:
        self._path, self._run_id, self._send = path, run_id, send
        main = path.name == METRICS
        self._state_path = path.with_name(STATE_FILE if main else f"{path.stem}-{STATE_FILE}")
        # Words are in every file of a run; of a step that several files have they are sent from one.
        self._own_keys = {"step", "time"} if main else {"step", "time", "words"}
        # By metric and step, not by place in the file: a resumed run rewrites the file's end, and steps sent
        # before a checkpoint was lost must not be sent again when they are recomputed.
        self._last_step: dict[str, int] = {}
        self._pending: list[Point] = []  # sent before a kill, perhaps arrived
        self._read_state()
        self._offset = 0

    def publish(self, limit: int | None, deadline: float = float("inf")) -> None:
        """Send all new records up to step ``limit``, remembering what arrived. Raises what ``send`` raises."""
        if self._pending:
            # The very same points, even if the file has newer values of these steps by now: if they had
            # arrived, the store recognises them.
            self._send_batch(self._pending)
            self._pending = []
        while time.monotonic() < deadline:
            points, offset, _ = self._read(limit, _POINTS_PER_BATCH)
            for start in range(0, len(points), _POINTS_PER_BATCH):
                self._send_batch(points[start : start + _POINTS_PER_BATCH])
            if offset == self._offset:
                return
            self._offset = offset

    def missing(self, limit: int | None) -> int:
        """Records up to step ``limit`` of which the store lacks something; 0 where the file can't be read."""
        try:
            return self._read(limit, None)[2]
        except OSError:
            return 0

    def _send_batch(self, points: list[Point]) -> None:
        self._write_state(self._last_step, points)
        self._send(points)
        state = self._last_step | {point.key: point.step for point in points}
        self._write_state(state, [])
        self._last_step = state

    def _read(self, limit: int | None, wanted: int | None) -> tuple[list[Point], int, int]:
        """New points (about ``wanted``), the offset after them, and from how many records they come."""
        points: list[Point] = []
        last_step = dict(self._last_step)
        offset, records = self._offset, 0
        if not self._path.exists():
            return points, offset, records
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written
                record = parse_line(line)
                if record is not None:
                    if limit is not None and record["step"] > limit:
                        break
                    new = [
                        point for point in _points(record, self._own_keys) if point.step > last_step.get(point.key, -1)
                    ]
                    last_step.update((point.key, point.step) for point in new)
                    points += new
                    records += bool(new)
                offset += len(line)
                if wanted is not None and len(points) >= wanted:
                    break
        return points, offset, records

    def _write_state(self, steps: Mapping[str, int], pending: Sequence[Point]) -> None:
        content = {"run_id": self._run_id, "steps": steps, "pending": pending}
        replace_file(self._state_path, (json.dumps(content) + "\n").encode())

    def _read_state(self) -> None:
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
            if state["run_id"] == self._run_id:
                self._last_step = {str(key): int(step) for key, step in state["steps"].items()}
                self._pending = [Point(*point) for point in state["pending"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # none yet, or damaged: everything is sent again, and recognised


class BackgroundPublisher:
    """A tracker that sends what a :class:`~hgrnx.tracking.tracker.JsonlTracker` writes.

    Nothing here raises or waits for the store, except :meth:`close`, which waits as long as it is told to.

    Args:
        durable_step: step of the checkpoint from which the run resumes, 0 when it starts.
    """

    def __init__(self, follower: Follower, durable_step: int = 0) -> None:
        self.problem: str | None = None
        """Why the last attempt failed; None when it did not."""
        self._follower = follower
        self._limit: int | None = durable_step if durable_step > 0 else -1
        self._wake = threading.Condition()
        self._changed = self._closing = self._abandoned = False
        self._done = threading.Event()
        threading.Thread(target=self._work, name="hgrnx-publisher", daemon=True).start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing to do: the record is in the file, and is sent once it is durable."""

    def durable(self, step: int) -> None:
        """Records up to ``step`` may be sent from now on."""
        with self._wake:
            if self._limit is not None and step > max(self._limit, 0):
                self._limit = step
                self._changed = True
                self._wake.notify_all()

    def close(self, *, final: bool = False, timeout: float = 10.0) -> int:
        """Send what may be sent (everything when ``final``), for at most ``timeout`` seconds.

        Returns:
            Records that the store still lacks.
        """
        with self._wake:
            if final:
                self._limit = None
            self._closing = self._changed = True
            self._wake.notify_all()
        self._done.wait(timeout)
        with self._wake:
            self._abandoned = True
            self._wake.notify_all()
        return self._follower.missing(self._limit)

    def _work(self) -> None:
        wait = _FIRST_WAIT_S
        while True:
            with self._wake:
                self._changed, limit = False, self._limit
            self.problem = self._attempt(limit)
            with self._wake:
                if self._abandoned or (self._closing and self.problem is None and not self._changed):
                    break
                # After trouble try again in a while; otherwise there is nothing to do until a change.
                patience = None if self.problem is None else wait
                if self._wake.wait_for(lambda: self._changed or self._abandoned, timeout=patience):
                    wait = _FIRST_WAIT_S
                else:
                    wait = min(wait * 2, _LONGEST_WAIT_S)
        self._done.set()

    def _attempt(self, limit: int | None) -> str | None:
        try:
            self._follower.publish(limit)
        except Exception as error:  # whatever the store raises, the training goes on
            problem = str(error).strip().partition("\n")[0][:160] or type(error).__name__
            if self.problem is None:
                _log.warning("The tracking store is away; what it misses is sent later (%s)", problem)
            return problem
        return None


def _points(record: Mapping[str, Any], left_out: Collection[str]) -> list[Point]:
    timestamp = int(record.get("time", 0) * 1000)
    return [
        Point("words_seen" if key == "words" else key, float(value), timestamp, record["step"])
        for key, value in record.items()
        if key not in left_out and isinstance(value, int | float)
    ]
