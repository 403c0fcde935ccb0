"""The publisher against stores that are away, slow, hang, or swallow the answer. None of this needs MLflow."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrnx.tracking import CompositeTracker, JsonlTracker, publisher
from hgrnx.tracking.publisher import STATE_FILE, BackgroundPublisher, Follower, Point


class Store:
    """Keeps points like MLflow: a set, in which the same point twice is one."""

    def __init__(self) -> None:
        self.points: set[Point] = set()
        self.batches: list[int] = []
        self.away = False
        self.answers = True
        self.open = threading.Event()
        self.open.set()

    def send(self, points: Sequence[Point]) -> None:
        self.open.wait()
        if self.away:
            raise ConnectionError("no route\nlong trace")
        self.batches.append(len(points))
        self.points.update(points)
        if not self.answers:
            raise TimeoutError

    def steps(self, key: str) -> list[int]:
        return sorted(point.step for point in self.points if point.key == key)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def start(path: Path, store: Store, resume_step: int = 0) -> CompositeTracker:
    file = JsonlTracker(path, resume_step)
    return CompositeTracker([file, BackgroundPublisher(Follower(path, "run", store.send), resume_step)])


def eventually(condition: object, timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def test_only_what_is_durable_or_final_is_sent(tmp_path: Path) -> None:
    store = Store()
    tracker = start(tmp_path / "metrics.jsonl", store)
    for step in range(1, 11):
        tracker.log(step, {"loss": 1 / step, "words": 100 * step})
    time.sleep(0.05)
    assert not store.points
    tracker.durable(4)
    eventually(lambda: store.steps("loss") == [1, 2, 3, 4])
    assert store.steps("words_seen") == [1, 2, 3, 4]
    tracker.log(11, {"loss": 0.0})
    assert tracker.close(final=True) == 0
    assert store.steps("loss") == list(range(1, 12))


def test_a_failed_run_sends_up_to_its_last_checkpoint(tmp_path: Path) -> None:
    store = Store()
    tracker = start(tmp_path / "metrics.jsonl", store)
    for step in range(1, 11):
        tracker.log(step, {"loss": 1.0})
    tracker.durable(6)
    assert tracker.close(final=False) == 0
    assert store.steps("loss") == [1, 2, 3, 4, 5, 6]


def test_a_store_that_hangs_costs_a_step_nothing(tmp_path: Path) -> None:
    store = Store()
    store.open.clear()
    tracker = start(tmp_path / "metrics.jsonl", store)
    took: dict[bool, list[float]] = {False: [], True: []}  # with a checkpoint, and without
    for step in range(1, 301):
        started = time.perf_counter()
        tracker.log(step, {"loss": 1.0})
        if step % 100 == 0:
            tracker.durable(step)
        took[step % 100 == 0].append(time.perf_counter() - started)
    started = time.perf_counter()
    assert tracker.close(final=True, timeout=0.2) == 300
    assert time.perf_counter() - started < 5
    assert median(took[False]) < 0.05 and median(took[True]) < 0.05  # waiting for the store would take seconds
    store.open.set()


def test_what_was_missed_while_away_is_sent_on_return(tmp_path: Path) -> None:
    store = Store()
    store.away = True
    path = tmp_path / "metrics.jsonl"
    file = JsonlTracker(path)
    background = BackgroundPublisher(Follower(path, "run", store.send))
    file.log(1, {"loss": 1.0})
    background.durable(1)
    eventually(lambda: background.problem == "no route")
    assert not store.points
    store.away = False
    eventually(lambda: store.steps("loss") == [1])
    assert background.close(final=True) == 0
    assert background.problem is None


def test_a_publisher_given_up_on_ends_its_thread(tmp_path: Path) -> None:
    store = Store()
    store.away = True
    before = threading.active_count()
    tracker = start(tmp_path / "metrics.jsonl", store)
    tracker.log(1, {"loss": 1.0})
    assert tracker.close(final=True, timeout=0.05) == 1
    eventually(lambda: threading.active_count() == before)


def test_a_later_start_sends_what_an_earlier_one_could_not(tmp_path: Path) -> None:
    path, store = tmp_path / "metrics.jsonl", Store()
    store.away = True
    tracker = start(path, store)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 1.0})
    tracker.durable(2)
    assert tracker.close(timeout=0.05) == 2
    store.away = False
    tracker = start(path, store, resume_step=2)
    eventually(lambda: store.steps("loss") == [1, 2])
    tracker.log(3, {"loss": 1.0})
    assert tracker.close(final=True) == 0
    assert store.steps("loss") == [1, 2, 3]


def test_batches_are_bounded_and_a_record_may_span_two(tmp_path: Path) -> None:
    path, store = tmp_path / "metrics.jsonl", Store()
    file = JsonlTracker(path)
    for step in range(1, 6):
        file.log(step, {f"m{index}": 1.0 for index in range(700)})
    follower = Follower(path, "run", store.send)
    assert follower.missing(None) == 5
    follower.publish(None)
    assert max(store.batches) <= 1000
    assert len(store.points) == 3500
    assert follower.missing(None) == 0
    assert Follower(path, "run", store.send).missing(None) == 0


def test_a_state_of_another_run_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    path, store = tmp_path / "metrics.jsonl", Store()
    JsonlTracker(path).log(1, {"loss": 1.0})
    Follower(path, "old", store.send).publish(None)
    assert Follower(path, "new", store.send).missing(None) == 1
    (tmp_path / STATE_FILE).write_text("{")
    assert Follower(path, "old", store.send).missing(None) == 1


@settings(deadline=None, max_examples=40)
@given(
    lives=st.lists(st.tuples(st.integers(1, 25), st.sampled_from(["sent", "away", "no answer", "lost"])), max_size=6),
    checkpoint_every=st.integers(1, 9),
)
def test_however_a_run_dies_no_step_is_recorded_twice(lives: list[tuple[int, str]], checkpoint_every: int) -> None:
    """Each life takes so many steps, then the process dies. What happened to what it sent:

    all arrived; nothing did; it arrived but the process died before noting so; it arrived, and then the newest
    checkpoint was lost, so that the next life starts from an older one.
    """
    total = 30
    with tempfile.TemporaryDirectory() as folder:
        path, store, clock = Path(folder) / "metrics.jsonl", Store(), iter(range(10_000))
        checkpoints = [0]
        for further, fate in [*lives, (total, "sent")]:
            first = checkpoints[-1]
            tracker = JsonlTracker(path, first, clock=lambda: float(next(clock)))
            follower = Follower(path, "run", store.send)
            store.away, store.answers = fate == "away", fate != "no answer"
            for step in range(first + 1, min(total, first + further) + 1):
                tracker.log(step, {"loss": 1.0})
                if step % checkpoint_every == 0:
                    tracker.log(step, {"accuracy": 0.5})
                    checkpoints.append(step)
                    try:
                        follower.publish(step)
                    except OSError:
                        break
            if fate == "lost" and len(checkpoints) > 1:
                checkpoints.pop()
        store.away, store.answers = False, True
        Follower(path, "run", store.send).publish(None)
        assert store.steps("loss") == list(range(1, total + 1))
        assert store.steps("accuracy") == list(range(checkpoint_every, total + 1, checkpoint_every))


def test_two_files_of_a_run_do_not_know_of_each_other(tmp_path: Path) -> None:
    store = Store()
    for step in (1, 2):
        (tmp_path / "metrics.jsonl").open("a").write(f'{{"step": {step}, "time": 1, "words": 10, "loss": 2}}\n')
    (tmp_path / "task-scores.jsonl").write_text('{"step": 1, "time": 5, "words": 10, "tasks/blimp/accuracy": 0.5}\n')
    for _ in range(2):  # the second finds all sent, and sends nothing
        for name in ("metrics.jsonl", "task-scores.jsonl"):
            follower = Follower(tmp_path / name, "run", store.send)
            follower.publish(None)
            assert follower.missing(None) == 0
    assert store.steps("loss") == [1, 2] and store.steps("tasks/blimp/accuracy") == [1]
    assert store.steps("words_seen") == [1, 2]
    assert sum(store.batches) == 5
