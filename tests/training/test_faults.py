"""Whole runs in this process that are disturbed: damaged checkpoints, a full disk, bad steps, notice to leave."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hgrnx.config import DataConfig, Recipe, load_recipe, recipe_from_dict, run_name
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError
from hgrnx.tracking.tracker import repeatable
from hgrnx.training import notice
from hgrnx.training.checkpoint import is_extra, latest_checkpoint, load_checkpoint, read_meta
from hgrnx.training.events import EVENTS, read_events
from hgrnx.training.notice import Left
from hgrnx.training.run import run_training

STEPS = 12
DATA = {"track": "demo", "words": 3000, "vocab_size": 400}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepare(DataConfig(**DATA), tmp_path_factory.mktemp("data"))


def recipe(**training: object) -> Recipe:
    made = recipe_from_dict(
        {
            "name": "x",
            "data": DATA,
            "model": {"hidden_size": 32, "num_hidden_layers": 2, "expand_ratio": 16, "initializer_range": 0.02},
            "training": {
                "duration": f"{STEPS} steps",
                "batch_size": 4,
                "seq_len": 32,
                "precision": "fp32",
                "checkpoint_every": "4 steps",
                "log_every": 2,
                "learning_rate": 5e-3,
                **training,
            },
            "evaluation": {"every": "6 steps", "dev_documents": 4, "pairs_per_file": 2},
            "launch": {"engine": "torch", "micro_batch_size": 2},
        }
    )
    assert isinstance(made, Recipe)
    return made


def lines(run_dir: Path) -> list[dict[str, float]]:
    return repeatable(run_dir / "metrics.jsonl")


def events(run_dir: Path) -> list[str]:
    return [event["event"] for event in read_events(run_dir / EVENTS)]


def assert_equal(found: Path, expected: Path) -> None:
    """Weights, moments and metrics are the same, bit for bit."""
    assert lines(found) == lines(expected)
    states = []
    for run_dir in (found, expected):
        folder = latest_checkpoint(run_dir / "checkpoints")
        assert folder is not None and folder.name == f"step-{STEPS:08d}"
        states.append(load_checkpoint(folder)[0])
    for name, tensor in states[1].weights.items():
        assert torch.equal(states[0].weights[name], tensor), name
        assert torch.equal(states[0].optimizer["exp_avg_sq"][name], states[1].optimizer["exp_avg_sq"][name]), name


class At:
    """Asked after every step: does what is planned for this one, and says whether to leave."""

    def __init__(self, plan: dict[int, Callable[[], Any]], first: int = 0, leave: int | None = None) -> None:
        self.plan, self.step, self.leave = plan, first, leave

    def __call__(self) -> bool:
        self.step += 1
        self.plan.get(self.step, lambda: None)()
        return self.step == self.leave


@pytest.fixture(scope="module")
def whole(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    run_training(recipe(), dataset, run_dir)
    assert events(run_dir) == []
    return run_dir


@pytest.mark.parametrize("leave", [3, 5, 8, 11])
def test_leaving_when_asked_and_coming_back_changes_nothing(
    dataset: PreparedDataset, whole: Path, tmp_path: Path, leave: int
) -> None:
    """In the middle of a line of metrics as well."""
    with pytest.raises(Left, match=f"step {leave}"):
        run_training(recipe(), dataset, tmp_path, asked=At({}, leave=leave))
    folder = latest_checkpoint(tmp_path / "checkpoints")
    assert folder is not None and folder.name == f"step-{leave:08d}" and is_extra(folder) == (leave % 4 != 0)
    assert not (tmp_path / "result.json").exists()
    run_training(recipe(), dataset, tmp_path, asked=lambda: False)
    assert_equal(tmp_path, whole)
    assert events(tmp_path) == ["resumed"]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == ["step-00000008", "step-00000012"]


def test_sigterm_asks_once_and_then_ends(tmp_path: Path) -> None:
    script = """
import os, signal, time
from hgrnx.training import notice
notice.listen()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.1)
assert notice.asked()
print("asked", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "asked" and done.returncode == -signal.SIGTERM, done.stderr


def test_one_that_does_not_leave_is_ended_after_the_grace(tmp_path: Path) -> None:
    script = """
import os, signal, time
from hgrnx.training import notice
notice.GRACE_S = 0.2
notice.listen()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=15, check=False)
    assert done.returncode == -signal.SIGTERM


def test_a_checkpoint_damaged_between_two_sessions_is_passed_over_and_told(
    dataset: PreparedDataset, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(Left):
        run_training(recipe(), dataset, tmp_path, asked=At({}, leave=9))
    flip(tmp_path / "checkpoints" / "step-00000009" / "optimizer.safetensors")
    os.truncate(tmp_path / "checkpoints" / "step-00000008" / "model.safetensors", 1000)
    heard: list[str] = []
    run_training(recipe(), dataset, tmp_path, listener=lambda m: heard.append(m.get("note", "")), asked=lambda: False)
    assert_equal(tmp_path, whole)
    assert events(tmp_path) == ["checkpoint_passed_over"] * 2 + ["resumed"]
    told = [text for text in heard if text]
    assert "step-00000009: optimizer.safetensors does not have its checksum" in told[0]
    assert "step-00000008: model.safetensors has 1000 bytes" in told[1] and "step-00000004" in told[2] + told[1]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def test_when_none_is_whole_it_is_said(dataset: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(Left):
        run_training(recipe(), dataset, tmp_path, asked=At({}, leave=4))
    flip(tmp_path / "checkpoints" / "step-00000004" / "model.safetensors")
    with pytest.raises(UserError, match=r"None of the checkpoints .*is whole.*--fresh"):
        run_training(recipe(), dataset, tmp_path)


FULL = """
import json, os, sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_faults import At, assert_equal, events, recipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.training.run import run_training

torch.set_num_threads(1)
dataset, disk = PreparedDataset.open(Path({data!r})), Path({disk!r})
filler = disk / "filler"
def fill():
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096): pass
        except OSError:
            pass
    os.truncate(filler, max(0, filler.stat().st_size - 16384))  # room for lines, not for a checkpoint
try:
    run_training(recipe(max_checkpoint_failures={tolerated}), dataset, disk / "run",
                 asked=At({{6: fill, 10: filler.unlink}}))
    outcome = "finished"
except UserError as error:
    outcome = str(error)
state = {{"outcome": outcome, "kept": sorted(os.listdir(disk / "run" / "checkpoints")), "events": events(disk / "run")}}
if outcome != "finished":
    filler.unlink()
    run_training(recipe(), dataset, disk / "run", asked=lambda: False)
assert_equal(disk / "run", Path({whole!r}))
print(json.dumps(state))
"""


@pytest.mark.parametrize("tolerated", [0, 1])
def test_a_full_disk(dataset: PreparedDataset, whole: Path, tmp_path: Path, tolerated: int) -> None:
    """A real one: a file system of 3 MB in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-m", "bash", "-c", 'mount -t tmpfs -o size=3m none "$1" && shift && exec "$@"', "-", str(disk)]
    if os.name != "posix" or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    script = FULL.format(
        tests=str(Path(__file__).parent), data=str(dataset.dir), disk=str(disk), whole=str(whole), tolerated=tolerated
    )
    done = subprocess.run([*mount, sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads(done.stdout.splitlines()[-1])
    if tolerated:
        assert state["outcome"] == "finished"
        assert state["kept"] == ["LAST", "step-00000004", "step-00000012"]  # 8 did not fit
        assert state["events"] == ["checkpoint_failed"]
    else:
        assert "No space left on device" in state["outcome"] and "Make room" in state["outcome"]
        assert state["kept"] == ["LAST", "step-00000004"]
        assert state["events"] == ["checkpoint_failed"]


def losses(run_dir: Path) -> dict[int, float]:
    return {int(line["step"]): line["train/loss"] for line in lines(run_dir) if "train/loss" in line}


@pytest.fixture(scope="module")
def high_loss(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> float:
    """A limit that some step of the run passes, after the first checkpoint, and no step for long after it."""
    run_dir = tmp_path_factory.mktemp("limit")
    run_training(recipe(log_every=1), dataset, run_dir)
    found = losses(run_dir)
    assert max(found.values()) == max(found[step] for step in (1, 2, 3)), "the loss falls"
    return (found[6] + max(found[step] for step in range(7, STEPS + 1))) / 2


def test_a_loss_above_the_limit_is_skipped_or_stops(
    dataset: PreparedDataset, whole: Path, tmp_path: Path, high_loss: float
) -> None:
    """The first steps of a run are the ones with a high loss: their weights do not move, so all are skipped."""
    chosen = recipe(log_every=1, on_bad_step="skip", max_loss=high_loss, max_bad_steps=STEPS)
    run_training(chosen, dataset, tmp_path / "skip")
    records = lines(tmp_path / "skip")
    assert [r["train/skipped_steps"] for r in records if "train/skipped_steps" in r] == list(range(1, STEPS + 1))
    assert events(tmp_path / "skip") == ["skipped_step"] * STEPS
    folder = latest_checkpoint(tmp_path / "skip" / "checkpoints")
    assert folder is not None and read_meta(folder)["bad_steps"] == {"skipped": STEPS, "rolled_back": 0}
    assert load_checkpoint(folder)[0].optimizer_step == 0
    with pytest.raises(UserError, match=r"used 3 times before \(training.max_bad_steps\)"):
        run_training(recipe(on_bad_step="skip", max_loss=high_loss, max_bad_steps=3), dataset, tmp_path / "few")
    with pytest.raises(UserError, match=r"at step 1, above training.max_loss=.*on_bad_step=skip"):
        run_training(recipe(max_loss=high_loss), dataset, tmp_path / "stop")


@pytest.mark.parametrize("policy", ["skip", "roll_back"])
@pytest.mark.parametrize("leave", [None, 6, 7, 10])
def test_a_bad_step_in_the_middle(
    dataset: PreparedDataset, tmp_path: Path, policy: str, leave: int | None, spoilt: PreparedDataset
) -> None:
    """One batch of noise: passed over the same way however often the run is interrupted."""
    limit = dict(log_every=2, max_loss=6.035, on_bad_step=policy, checkpoint_every="4 steps")
    chosen = recipe(**limit)
    if leave is None:
        run_training(chosen, spoilt, tmp_path / "run")
    else:
        run_training(chosen, spoilt, tmp_path / "whole")
        with pytest.raises(Left):
            run_training(chosen, spoilt, tmp_path / "run", asked=At({}, leave=leave))
        run_training(chosen, spoilt, tmp_path / "run", asked=lambda: False)
        assert_equal(tmp_path / "run", tmp_path / "whole")
    found = [event for event in read_events(tmp_path / "run" / EVENTS) if event["event"] not in ("resumed",)]
    if policy == "skip":
        assert [(event["event"], event["step"]) for event in found] == [("skipped_step", BAD)]
        assert [r["step"] for r in lines(tmp_path / "run") if "train/skipped_steps" in r] == [BAD]
    else:
        assert {(event["event"], event["step"], event["to"]) for event in found} == {("rolled_back", BAD, 4)}
        (record,) = [r for r in lines(tmp_path / "run") if "train/rolled_back" in r]
        assert (record["step"], record["train/rolled_back"], record["train/passed_over_steps"]) == (BAD, 1, BAD - 4)
        assert not any(4 < r["step"] < BAD for r in lines(tmp_path / "run"))
    assert all(math.isfinite(value) for record in lines(tmp_path / "run") for value in record.values())


BAD = 7


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """A dataset in which the batch of step 7 is noise."""
    made = prepare(DataConfig(**DATA), tmp_path_factory.mktemp("spoilt"))
    loader = TrainLoader(made, 32, 4, 0)
    batch = loader.batch(BAD - 1)
    (path,) = [path for path in made.dir.rglob("*") if path.is_file() and "train" in str(path) and "tok" in path.name]
    tokens = np.memmap(path, dtype=np.uint16, mode="r+")
    text = tokens.tobytes()
    for row in batch.inputs.numpy().astype(np.uint16):
        start = text.index(row.tobytes()) // 2
        tokens[start + 1 : start + 32] = 399 - np.arange(31) % 3  # hardly ever seen
    tokens.flush()
    return PreparedDataset.open(made.dir)


@pytest.mark.parametrize("policy", ["skip", "roll_back"])
def test_weights_that_are_lost_for_good_end_the_run(dataset: PreparedDataset, tmp_path: Path, policy: str) -> None:
    chosen = recipe(learning_rate=1e38, on_bad_step=policy, max_bad_steps=3)
    with pytest.raises(UserError, match=rf"on_bad_step={policy} was used 3 times"):
        run_training(chosen, dataset, tmp_path)


def test_names_of_runs_do_not_change_by_the_new_keys() -> None:
    """Those of version 0.1.0, whose initial weights were N(0, 0.02), are found again."""
    demo = load_recipe("demo", ["teacher.initializer_range=0.02", "student.initializer_range=0.02"])
    assert run_name(demo.twin_recipe(), "hash") == "demo-twin-039eb2f7"
    plain = recipe()
    assert run_name(recipe(max_loss=9.0, max_bad_steps=2, max_checkpoint_failures=3), "h") == run_name(plain, "h")
    others = [recipe(on_bad_step="skip"), recipe(on_bad_step="skip", max_loss=9.0), recipe(on_bad_step="roll_back")]
    assert len({run_name(other, "h") for other in [plain, *others]}) == 4


def test_notice_can_be_taken_back() -> None:
    notice.ask()
    assert notice.asked()
    notice.forget()
    assert not notice.asked()
