"""What a run was computed with, for ``environment.json``: code, versions, machine. No variables, no secrets."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import hgrnx

_PACKAGES = (
    "torch",
    "ray",
    "deepspeed",
    "mlflow",
    "flash-linear-attention",
    "triton",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
)


def describe_environment(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Facts for ``environment.json``, with ``extra`` (hashes of data and tokenizer) on top.

    Returns:
        ``git`` (``commit`` and ``dirty``; None when the package is not in a git checkout), ``python``,
        ``platform``, ``cpu``, ``cpu_cores`` (usable by this process), ``memory_gb``, ``gpus`` (name and memory of
        each) and ``versions`` (None for a package that is not installed).
    """
    return {
        "git": git_state(Path(hgrnx.__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "gpus": _gpus(),
        "versions": {"hgrnx": hgrnx.__version__, **{name: _version(name) for name in _PACKAGES}},
        **(extra or {}),
    }


def git_state(package: Path) -> dict[str, Any] | None:
    """Commit of the checkout in which ``package`` lies, and whether its tracked files differ from it.

    None when it is no checkout, or when ``package`` is not one of its tracked folders (an environment installed
    inside some other project's checkout must not pass for that project's commit).
    """
    if not _git(package, "ls-files", "--", "."):
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git(package, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_gb": round(device.total_memory / 1e9, 1)} for device in devices]
