"""What this machine has and which implementations hgrnx will use on it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch

from hgrnx.ops import implementation_note
from hgrnx.ops.cpu import guard_bf16_products
from hgrnx.paths import Places
from hgrnx.tracking.environment import describe_environment
from hgrnx.tracking.store_check import shown

_SIZE = 1024  # of the square matrices that are multiplied
_TRIALS = 5


def machine_facts(places: Places) -> dict[str, str]:
    """Facts by name, in the order to be read: hardware, speed, implementations, packages, places."""
    amx_hidden = guard_bf16_products()
    facts = describe_environment()
    versions = facts["versions"]
    cores = facts["cpu_cores"]
    speeds = {name: product_speed(dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    fastest = max(speeds, key=lambda name: speeds[name])
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gb']} GB)" for gpu in facts["gpus"])
    rows = {
        "Python, torch": f"{facts['python']}, {versions['torch']}",
        "CPU": f"{facts['cpu']}, {cores} cores, {facts['memory_gb']} GB",
        "GPU": gpus or "none that torch sees",
        "CPU products": ", ".join(f"{name} {speed / 1e9:,.0f} GFLOP/s" for name, speed in speeds.items())
        + f" ({torch.get_num_threads()} threads): training.precision={fastest} is faster"
        + ("; AMX is announced but unusable here, and not used" if amx_hidden else ""),
        **{f"recurrence on {device}": implementation_note(device) for device in _devices()},
        "packages": ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items()),
        "runs": _place(places.runs),
        "data": _place(places.data),
        "MLflow": shown(places.mlflow_uri),
    }
    return rows


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def product_speed(dtype: torch.dtype, device: str = "cpu") -> float:
    """Floating-point operations per second of a large matrix product: the best of a few."""
    x = torch.randn(_SIZE, _SIZE, device=device).to(dtype)
    x @ x
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    return 2 * _SIZE**3 / best


def _place(folder: Path) -> str:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    return f"{folder} ({free:,.0f} GB free{'' if os.access(existing, os.W_OK) else ', NOT WRITABLE'})"
