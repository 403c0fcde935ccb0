"""metrics.jsonl: what is logged is there at once, and a resumed run never records a step twice."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrnx.errors import UserError
from hgrnx.tracking import CompositeTracker, JsonlTracker, NullTracker, read_metrics


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_a_record_is_one_flat_line_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = JsonlTracker(path, clock=lambda: 12.3456)
    tracker.log(3, {"train/loss": 2.5, "words": 1000})
    assert json.loads(path.read_text()) == {"step": 3, "time": 12.346, "words": 1000, "train/loss": 2.5}
    tracker.log(4, {"train/loss": float("nan")})
    tracker.close()
    assert steps(path) == [3, 4]


def test_the_trackers_own_keys_are_refused(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="own keys"):
        tracker.log(1, {"time": 1.0})


def test_resuming_drops_what_will_be_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for step in (10, 20, 20, 30):
        tracker.log(step, {"loss": step})
    tracker.close()
    JsonlTracker(path, resume_step=20).close()
    assert steps(path) == [10, 20, 20]
    JsonlTracker(path, resume_step=0).close()
    assert path.read_bytes() == b""


def test_lines_that_a_kill_or_the_disk_damaged_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\n{"step": 2}\n[3]\n{"step": 3, "loss": 1.')
    assert steps(path) == [1, 2]
    tracker = JsonlTracker(path, resume_step=5)
    tracker.log(6, {})
    assert path.read_bytes().startswith(b'{"step": 1}\n{"step": 2}\n{"step": 6,')


def test_a_line_that_lacks_only_its_end_is_left_out_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    JsonlTracker(path, resume_step=5).log(6, {})
    assert steps(path) == [1, 6]


def test_a_kill_while_resuming_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        JsonlTracker(path, resume_step=1)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    monkeypatch.undo()
    (tmp_path / ".metrics.jsonl.0.tmp").touch()  # of another process
    JsonlTracker(path, resume_step=1)
    assert steps(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    with open("/dev/full", "ab", buffering=0) as full:
        tracker._file = full
        with pytest.raises(UserError, match=r"metrics.jsonl: No space left on device. Free some space"):
            tracker.log(1, {"loss": 1.0})


@settings(deadline=None)
@given(
    crashes=st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=5),
    log_every=st.integers(1, 7),
    checkpoint_every=st.integers(1, 11),
)
def test_however_often_a_run_dies_each_line_is_there_once(
    crashes: list[tuple[int, bool]], log_every: int, checkpoint_every: int
) -> None:
    """A crash after so many further steps, perhaps in the middle of writing a line."""
    total = 30
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        durable = 0
        for attempt, (further, cut) in enumerate([*crashes, (total, False)]):
            tracker = JsonlTracker(path, durable)
            for step in range(durable + 1, min(total, durable + further) + 1):
                if step % log_every == 0 or step == total:
                    tracker.log(step, {"attempt": attempt, "words": 10 * step})
                if step % checkpoint_every == 0 or step == total:
                    durable = step
            tracker.close()
            if cut and durable < total:
                with path.open("ab") as file:
                    file.write(b'{"step": 31, "tim')
        expected = [step for step in range(1, total + 1) if step % log_every == 0 or step == total]
        assert steps(path) == expected
        attempts = [record["attempt"] for record in read_metrics(path)]
        assert attempts == sorted(attempts)


class Recorder(NullTracker):
    def __init__(self, name: str, calls: list[str], missing: int = 0, takes: float = 0.0) -> None:
        self.name, self.calls, self.missing, self.takes = name, calls, missing, takes

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls.append(f"{self.name} log {step}")

    def durable(self, step: int) -> None:
        self.calls.append(f"{self.name} durable {step}")

    def close(self, *, final: bool = False, timeout: float = 10.0) -> int:
        time.sleep(self.takes)
        self.calls.append(f"{self.name} close {final} {timeout > 0.05}")
        return self.missing


def test_composite_tells_all_in_order_and_shares_the_time() -> None:
    calls: list[str] = []
    tracker = CompositeTracker([Recorder("a", calls, 2, takes=0.1), Recorder("b", calls, 3)])
    tracker.log(1, {})
    tracker.durable(1)
    assert tracker.close(final=True, timeout=0.1) == 5
    assert calls == ["a log 1", "b log 1", "a durable 1", "b durable 1", "a close True True", "b close True False"]
