"""For the checkpoint tests: ``save_and_die.py FOLDER``. Saves checkpoints in forks that do not survive.

Prints one JSON object with the findings by name of the function below; an exception fails the tests.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hgrnx.errors import UserError
from hgrnx.training import checkpoint
from hgrnx.training.engine import EngineState
from hgrnx.training.optim import MOMENTS


def state_of(step: int) -> EngineState:
    """A state of 1.2 MB that tells its step."""
    weights = {"a.weight": torch.full((300, 300), float(step)), "b": torch.arange(5.0)}
    return EngineState(weights, {m: {n: w + 1 for n, w in weights.items()} for m in MOMENTS}, step)


def step_found(folder: Path) -> int:
    """The step that a restart would continue from, its content checked."""
    latest = checkpoint.latest_checkpoint(folder)
    assert latest is not None
    state, meta = checkpoint.load_checkpoint(latest)
    assert state.optimizer_step == meta["step"] == float(state.weights["a.weight"][7, 7])
    return int(meta["step"])


def in_fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def calls(folder: Path, step: int) -> dict[str, Any]:
    """Kill before and after every call that changes the disk, one fork each. ``step`` 1 is there already."""
    checkpoint.save_checkpoint(folder, 1, state_of(1), {}, keep=1)
    targets = [
        (os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir"), (checkpoint, "save_file"),
        (Path, "write_text"), (checkpoint.shutil, "rmtree"),
    ]  # fmt: skip

    def save(deadline: int) -> None:
        count = 0

        def die_at_deadline() -> None:
            nonlocal count
            if count == deadline:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        def deadly(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                die_at_deadline()
                result = inner(*args, **kwargs)
                die_at_deadline()
                return result

            return call

        for owner, name in targets:
            setattr(owner, name, deadly(getattr(owner, name)))
        checkpoint.save_checkpoint(folder, step, state_of(step), {}, keep=1)

    found = []
    for deadline in range(100):
        _, status = os.waitpid(in_fork(lambda deadline=deadline: save(deadline)), 0)  # type: ignore[misc]
        found.append(step_found(folder))
        if status == 0:
            leftovers = sorted(os.listdir(folder))
            return {"found": found, "left": leftovers}
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        # Back to the start: only step 1, and what the killed one left behind.
        if found[-1] == step:
            checkpoint.save_checkpoint(folder, 1, state_of(1), {}, keep=1)
    raise AssertionError("no save ever finished")


def times(folder: Path) -> dict[str, Any]:
    """Kill forks that save one checkpoint after the other at random instants."""
    generator = random.Random(0)
    checkpoint.save_checkpoint(folder, 1, state_of(1), {}, keep=2)
    found = [1]
    told = folder.with_name("told")
    for _ in range(8):
        first = found[-1] + 1

        def work(first: int = first) -> None:
            for step in range(first, 10_000):
                checkpoint.save_checkpoint(folder, step, state_of(step), {}, keep=2)
                told.write_text(str(step))

        child = in_fork(work)
        time.sleep(generator.uniform(0.05, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found.append(step_found(folder))
        # What was reported as saved is never lost.
        assert not told.exists() or found[-1] >= int(told.read_text() or 0)
    return {"found": found}


def full(folder: Path) -> dict[str, Any]:
    """Save where a file may not grow beyond 100 kB."""
    checkpoint.save_checkpoint(folder, 1, state_of(1), {}, keep=1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        checkpoint.save_checkpoint(folder, 2, state_of(2), {}, keep=1)
    except UserError as error:
        return {"error": str(error), "found": step_found(folder), "left": sorted(os.listdir(folder))}
    raise AssertionError("saved where there is no room")


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    findings = {
        "later": calls(home / "later", 2),
        "again": calls(home / "again", 1),
        "times": times(home / "times"),
        "full": full(home / "full"),  # last: it limits this process for good
    }
    print(json.dumps(findings))
