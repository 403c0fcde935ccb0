"""A run that is told to leave goes on with other numbers of processes, ZeRO stages and engines."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrnx.config import DataConfig
from hgrnx.data.prepare import prepare
from hgrnx.tracking.tracker import repeatable
from hgrnx.training.checkpoint import latest_checkpoint, load_checkpoint
from hgrnx.training.events import EVENTS, read_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed"),
]

TORCH: dict[str, Any] = {"engine": "torch"}
RUNS: dict[str, dict[str, Any]] = {
    "whole": {"phases": [{"world": 1, **TORCH}]},
    "whole-2": {"phases": [{"world": 2, "stage": 2}]},
    # The same shape again: in the middle of a line of metrics (7), and after a checkpoint (5 later).
    "halves-2": {"phases": [{"world": 2, "stage": 2, "leave": 7}, {"world": 2, "stage": 2}]},
    "workers": {
        "phases": [
            {"world": 3, "stage": 2, "leave": 7},
            {"world": 2, "stage": 2, "leave": 5},
            {"world": 1, "stage": 2, "leave": 4},
            {"world": 3, "stage": 2},
        ]
    },
    "stages": {
        "phases": [
            {"world": 2, "stage": 3, "leave": 5},
            {"world": 2, "stage": 1, "leave": 5},
            {"world": 2, "stage": 0, "leave": 3},
            {"world": 2, **TORCH, "leave": 4},
            {"world": 2, "stage": 3},
        ]
    },
    **{
        f"refused-{name}": {
            "phases": [{"world": 2, **engine}],
            "training": {"on_bad_step": "skip", "max_loss": 1.0, "max_bad_steps": 99, "duration": "3 steps"},
        }
        for name, engine in {"torch": TORCH, **{f"zero{s}": {"stage": s} for s in range(4)}}.items()
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes")
    dataset = prepare(DataConfig(track="demo", words=3000, vocab_size=400), path / "data")
    (path / "jobs.json").write_text(json.dumps({"data": str(dataset.dir), "runs": RUNS}))
    command = [sys.executable, str(Path(__file__).with_name("shape_worker.py")), str(path)]
    with (path / "log.txt").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=550, check=False)
    assert done.returncode == 0, (path / "log.txt").read_text()[-6000:]
    return path


def records(run_dir: Path) -> list[dict[str, float]]:
    return repeatable(run_dir / "metrics.jsonl")


def last_state(run_dir: Path) -> Any:
    found = latest_checkpoint(run_dir / "checkpoints")
    assert found is not None
    return load_checkpoint(found)[0]


def test_the_same_shape_is_bit_for_bit(folder: Path) -> None:
    assert records(folder / "halves-2") == records(folder / "whole-2")
    ours, theirs = last_state(folder / "halves-2"), last_state(folder / "whole-2")
    for name, tensor in theirs.weights.items():
        assert torch.equal(ours.weights[name], tensor), name
        assert torch.equal(ours.optimizer["exp_avg_sq"][name], theirs.optimizer["exp_avg_sq"][name]), name


@pytest.mark.parametrize("name", ["workers", "stages", "whole-2"])
def test_other_shapes_give_the_same_run(folder: Path, name: str) -> None:
    found, expected = records(folder / name), records(folder / "whole")
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("train/loss", "train/learning_rate", "words", "dev/bits_per_byte"):
            assert ours.get(key) == pytest.approx(theirs.get(key), abs=1e-5), (key, ours["step"])
    first, last = (float(expected[i]["train/loss"]) for i in (0, -2))
    assert first - last > 0.1  # it learned far more than the difference allowed
    assert last_state(folder / name).optimizer_step == 24
    resumed = [e["workers"] for e in read_events(folder / name / EVENTS) if e["event"] == "resumed"]
    assert resumed == [phase["world"] for phase in RUNS[name]["phases"][1:]]


@pytest.mark.parametrize("engine", ["torch", "zero0", "zero1", "zero2", "zero3"])
def test_a_refused_step_changes_nothing_on_any_engine(folder: Path, engine: str) -> None:
    state = last_state(folder / f"refused-{engine}")
    start = last_state(folder / "refused-torch")
    assert state.optimizer_step == 0
    assert all(torch.equal(state.weights[name], start.weights[name]) for name in start.weights)
    assert not any(moment.any() for moment in state.optimizer["exp_avg"].values())
    steps = [r["step"] for r in records(folder / f"refused-{engine}") if "train/skipped_steps" in r]
    assert steps == [1, 2, 3]
