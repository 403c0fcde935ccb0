"""The queue of weights on disk: what waits, what is left out when too many do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hgrnx.errors import UserError
from hgrnx.training.checkpoint import load_weights, read_meta
from hgrnx.training.snapshots import Snapshots


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), value)}


def test_what_is_added_waits_until_it_is_removed(tmp_path: Path) -> None:
    queue = Snapshots(tmp_path)
    assert queue.waiting() == queue.left_out() == []
    for step in (10, 9, 110, 1):
        queue.add(step, 100 * step, weights(step))
    assert queue.waiting() == [1, 9, 10, 110]
    assert torch.equal(load_weights(queue.path(9))["w"], torch.full((3,), 9.0))
    assert read_meta(queue.path(9)) == {"step": 9, "words": 900}
    queue.add(9, 900, weights(9.5))  # passed again after a rollback
    assert torch.equal(load_weights(queue.path(9))["w"], torch.full((3,), 9.5))
    queue.remove(9)
    queue.remove(9)
    assert Snapshots(tmp_path).waiting() == [1, 10, 110] and queue.left_out() == []


def test_half_a_snapshot_does_not_wait(tmp_path: Path) -> None:
    queue = Snapshots(tmp_path)
    queue.add(5, 50, weights(1))
    half = queue.folder / "step-00000006.tmp-0a1b2c3d"
    half.mkdir()
    assert queue.waiting() == [5]
    queue.add(7, 70, weights(1))
    assert not half.exists()


def test_never_more_than_the_limit_and_the_curve_stays_even(tmp_path: Path) -> None:
    """An evaluator that takes the oldest now and then, five times slower than the training."""
    queue = Snapshots(tmp_path, limit=4)
    scored, left_out = [], []
    for step in range(1, 31):
        left_out += queue.add(step, 1000 * step, weights(step))
        assert len(queue.waiting()) <= 4
        assert queue.waiting()[-1] == step, "the newest stays"
        if step % 5 == 0:
            scored.append(queue.waiting()[0])
            queue.remove(scored[-1])
    points = sorted(scored + queue.waiting())
    assert sorted(points + left_out) == list(range(1, 31)), "each is scored, waits, or is said to be left out"
    assert queue.left_out() == sorted(left_out)
    assert max(b - a for a, b in zip(points, points[1:])) < 10


def test_the_curve_misses_least_what_has_near_neighbours(tmp_path: Path) -> None:
    queue = Snapshots(tmp_path, limit=4)
    for step, words in ((1, 100), (2, 900), (3, 1000), (4, 1100)):
        queue.add(step, words, weights(step))
    assert queue.add(5, 1900, weights(5)) == [3]
    assert queue.add(6, 1950, weights(6)) == [5]


def test_the_one_being_scored_is_not_left_out(tmp_path: Path) -> None:
    queue = Snapshots(tmp_path, limit=3)
    queue.add(1, 100, weights(1))
    queue.add(2, 200, weights(2))
    Snapshots(tmp_path).take(2)  # another process; 1 could not be scored
    queue.add(3, 900, weights(3))
    assert queue.add(4, 1600, weights(4)) == [3]  # without the mark it would be 2
    assert queue.waiting() == [1, 2, 4]


def test_without_a_limit_all_wait(tmp_path: Path) -> None:
    queue = Snapshots(tmp_path)
    for step in range(1, 29):
        assert queue.add(step, step, weights(1)) == []
    assert len(queue.waiting()) == 28


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "snapshots").write_text("in the way")
    with pytest.raises(UserError, match="Cannot write"):
        Snapshots(tmp_path).add(1, 1, weights(1))
