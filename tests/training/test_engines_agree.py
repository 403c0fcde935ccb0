"""Every engine, ZeRO stage and number of processes computes the same, and continues the others' checkpoints.

Real processes over gloo, each running many cases (``engine_worker.py``). The reference is
TorchEngine in one process.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hgrnx.config import ARCHITECTURES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed"),
]

ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"engine": "torch"},
    **{f"zero{stage}": {"engine": "deepspeed", "stage": stage} for stage in range(4)},
}
NAMES = list(ENGINES)
MUON_SAVER = {"torch": "zero2", "zero0": "torch", "zero1": "zero0", "zero2": "zero1"}
SAVED_AT, STEPS = 10, 20
FOLDER = f"step-{SAVED_AT:08d}"

VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "recompute": {"recompute": True}, "distil": {"distil": True}}
SHARED = [  # architecture, variant, engine: on two processes
    # HGRN2's plain trainings are all the other cases.
    *((name, "plain", engine) for name in ARCHITECTURES if name != "hgrn2" for engine in NAMES if engine != "zero0"),
    *((name, "distil", "zero3") for name in ARCHITECTURES),
    *((name, "recompute", "zero3") for name in ARCHITECTURES if name != "lstm"),  # which has no layers to recompute
]
ALONE = [(name, variant, "torch") for name in ARCHITECTURES for variant in ("plain", "distil")]


@dataclass
class Result:
    losses: list[float]
    norms: list[float]
    micro_steps: int
    weights: dict[str, Tensor]


def shifted(name: str, by: int) -> str:
    """Another engine than ``name``, so that loader and saver differ."""
    return NAMES[(NAMES.index(name) + by) % len(NAMES)]


def cases(world_size: int, folder: Path) -> list[dict[str, Any]]:
    """All that ``world_size`` processes run: fp32 and bf16, accumulation, continuing others' checkpoints."""
    continued = {1: [(2, 1)], 2: [], 4: [(1, 2), (2, 3)]}[world_size]
    found = []
    for name, engine in ENGINES.items():
        if world_size < 4:
            found.append({"name": f"{name}-{world_size}", "steps": STEPS, "save_at": SAVED_AT, **engine})
            found.append({"name": f"{name}-{world_size}-bf16", "precision": "bf16", "steps": SAVED_AT, **engine})
        found.append({"name": f"{name}-{world_size}-micro3", "micro": 3, "steps": 1, **engine})
        if world_size == 2:
            found.append({"name": f"{name}-2-spoilt", "steps": 3, "spoil_at": 1, **engine})
        for saver_world, by in continued:
            saver = f"{shifted(name, by)}-{saver_world}"
            load = str(folder / f"{saver}-checkpoints" / FOLDER)
            case = {"name": f"{name}-{world_size}-from-{saver}", "load": load, "start": SAVED_AT, "steps": 3}
            found.append({**case, **engine})
    for name in [name for name in NAMES if name != "zero3"] if world_size < 4 else []:
        changes = {"optimizer": "muon", "steps": 6, "save_at": 3}
        found.append({"name": f"muon-{name}-{world_size}", **changes, **ENGINES[name]})
        if world_size == 1:  # from another engine's two processes
            load = str(folder / f"muon-{MUON_SAVER[name]}-2-checkpoints" / "step-00000003")
            case = {"name": f"muon-{name}-continued", "load": load, "start": 3, "steps": 3, "optimizer": "muon"}
            found.append({**case, **ENGINES[name]})
    for architecture, variant, name in {1: ALONE, 2: SHARED, 4: []}[world_size]:
        case = {"name": f"{architecture}-{variant}-{name}-{world_size}", "steps": 6, "lively": True, "eps": 1e-6}
        found.append({**case, "architecture": architecture, **VARIANTS[variant], **ENGINES[name]})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines")
    jobs = [{"world_size": world_size, "cases": cases(world_size, path)} for world_size in (2, 1, 4)]
    (path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(Path(__file__).with_name("engine_worker.py")), str(path)]
    with (path / "log.txt").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=500, check=False)
    assert done.returncode == 0, (path / "log.txt").read_text()[-6000:]
    return path


def read(folder: Path, name: str) -> Result:
    weights = load_file(folder / f"{name}.safetensors")
    return Result(**json.loads((folder / f"{name}.json").read_text()), weights=weights)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, all weights taken together."""
    assert found.keys() == expected.keys()
    names = sorted(expected)
    a, b = (torch.cat([weights[name].flatten() for name in names]) for weights in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_float32_trainings_are_equal(folder: Path, name: str, world_size: int) -> None:
    expected, found = read(folder, "torch-1"), read(folder, f"{name}-{world_size}")
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=1e-3)
    assert found.norms[0] > 1.0  # before clipping to 0.5
    assert distance(found.weights, expected.weights) < 1e-5
    # The trainings went somewhere: twenty steps are far longer than the differences allowed.
    assert distance(found.weights, read(folder, "torch-1-micro3").weights) > 1e-2


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_bf16_trainings_are_close_and_keep_float32_weights(folder: Path, name: str, world_size: int) -> None:
    expected, found = read(folder, "torch-1-bf16"), read(folder, f"{name}-{world_size}-bf16")
    # Rounding to 8 bits multiplies any difference in float32, that of the summation order among ranks too.
    assert found.losses == pytest.approx(expected.losses, rel=1e-3)
    assert found.norms[0] == pytest.approx(expected.norms[0], rel=5e-3)
    assert found.losses[0] != read(folder, "torch-1").losses[0], "autocast was not on"
    rounded = {name: weight.bfloat16().float() for name, weight in found.weights.items()}
    assert distance(rounded, found.weights) > 1e-4, "the weights are bf16"


@pytest.mark.parametrize("world_size, micro_steps", [(1, 8), (2, 4), (4, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_workers_and_accumulation_give_the_same_step(
    folder: Path, name: str, world_size: int, micro_steps: int
) -> None:
    expected, found = read(folder, "torch-1"), read(folder, f"{name}-{world_size}-micro3")
    assert found.micro_steps == micro_steps
    assert found.losses == pytest.approx(expected.losses[:1], abs=1e-5)
    assert found.norms == pytest.approx(expected.norms[:1], rel=1e-5)
    assert distance(found.weights, read(folder, "torch-1-micro3").weights) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_step_whose_gradient_is_not_finite_is_told_and_left_out(folder: Path, name: str) -> None:
    found, expected = read(folder, f"{name}-2-spoilt"), read(folder, "torch-2-spoilt")
    assert [math.isfinite(norm) for norm in found.norms] == [True, False, True]
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert distance(found.weights, expected.weights) < 1e-5
    assert distance(found.weights, read(folder, "torch-1-micro3").weights) < 0.1  # and not NaN


@pytest.mark.parametrize("architecture, variant, name", SHARED)
def test_every_architecture_trains_alike(folder: Path, architecture: str, variant: str, name: str) -> None:
    alone = "distil" if variant == "distil" else "plain"  # computing again must change nothing
    found, expected = (read(folder, f"{architecture}-{run}") for run in (f"{variant}-{name}-2", f"{alone}-torch-1"))
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    assert distance(found.weights, expected.weights) < 1e-6
    # Both objectives went somewhere, and not to the same place.
    other = "plain" if variant == "distil" else "distil"
    assert distance(expected.weights, read(folder, f"{architecture}-{other}-torch-1").weights) > 1e-3


@pytest.mark.parametrize("name", MUON_SAVER)
def test_muon_trains_alike_and_continues_everywhere(folder: Path, name: str) -> None:
    expected = read(folder, "muon-torch-1")
    for world_size in (1, 2):
        found = read(folder, f"muon-{name}-{world_size}")
        assert found.losses == pytest.approx(expected.losses, abs=1e-5)
        assert found.norms == pytest.approx(expected.norms, rel=1e-4)
        assert distance(found.weights, expected.weights) < 1e-5
    continued = read(folder, f"muon-{name}-continued")
    assert continued.losses == pytest.approx(expected.losses[3:], abs=1e-5)
    assert distance(continued.weights, expected.weights) < 1e-5
    adamw = read(folder, "torch-1")
    assert adamw.losses[0] == pytest.approx(expected.losses[0], abs=1e-6)
    assert abs(adamw.losses[5] - expected.losses[5]) > 1e-3, "Muon was not on"


CONTINUED = [(name, loader, saver, by) for loader, saver, by in ((1, 2, 1), (4, 1, 2), (4, 2, 3)) for name in NAMES]


@pytest.mark.parametrize("name, world_size, saver_world, by", CONTINUED)
def test_a_checkpoint_continues_in_any_other_engine(
    folder: Path, name: str, world_size: int, saver_world: int, by: int
) -> None:
    saver = f"{shifted(name, by)}-{saver_world}"
    found = read(folder, f"{name}-{world_size}-from-{saver}")
    expected = read(folder, saver).losses[SAVED_AT : SAVED_AT + 3]
    assert found.losses == pytest.approx(expected, abs=2e-6)


def test_deepspeed_compiles_nothing_and_says_nothing(folder: Path) -> None:
    assert (folder / "log.txt").read_text() == ""
