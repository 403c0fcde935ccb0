"""What a worker makes of its errors, what the board remembers of them, and who ends one that hangs."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from hgrnx.launch.progress import Board
from hgrnx.launch.workers import StartWatch, place_of, signature


def raised(message: str, step: int) -> Exception:
    try:
        raise RuntimeError(message)
    except RuntimeError as error:
        error.add_note(f"in step {step}")
        return error


def test_the_same_error_at_the_same_step_is_known_again() -> None:
    board = Board.__ray_metadata__.modified_class()
    first = signature(raised("index out of range", 7))
    assert first is not None and "index out of range" in first and "in step 7" in first
    assert not board.crash(first)
    other = signature(raised("index out of range", 8))
    assert other is not None and not board.crash(other)
    again = signature(raised("index out of range", 7))
    assert again is not None and board.crash(again)
    assert place_of(raised("x", 1)).split("/")[-1].startswith("test_workers.py:")


def test_what_comes_of_another_workers_end_is_not_held_against_this_one(tmp_path: object) -> None:
    error = raised("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer", 7)
    assert signature(error) is not None  # alone there is no other worker
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert signature(error) is not None
    finally:
        dist.destroy_process_group()


def test_the_board_passes_on_that_the_driver_was_told_to_leave() -> None:
    board = Board.__ray_metadata__.modified_class()
    assert board.post({"step": 1}) is False
    board.leave()
    assert board.post({"note": "something"}) is True
    assert board.take_notes() == ["something"] and board.take_notes() == []
    assert board.read() == {"step": 1}
    board.left(5)
    assert board.take_left() == 5 and board.take_left() is None


@pytest.mark.ray
def test_a_worker_that_hangs_before_its_training_is_ended(local_ray: None) -> None:
    import ray

    class Worker:
        def pid(self) -> int:
            return os.getpid()

    def ask(actor: Any) -> int:
        return int(ray.get(actor.pid.remote(), timeout=60))

    stopped, slow = (ray.remote(num_cpus=0)(Worker).remote() for _ in range(2))
    os.kill(ask(stopped), signal.SIGSTOP)
    StartWatch(0.5).before_init_train_context([SimpleNamespace(actor=stopped)])
    with pytest.raises(ray.exceptions.RayActorError):
        ask(stopped)
    watch = StartWatch(0.5)
    ask(slow)
    watch.before_init_train_context([SimpleNamespace(actor=slow)])
    watch.after_worker_group_training_start(None)
    time.sleep(1)
    assert ask(slow)
