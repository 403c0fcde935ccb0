"""Which kernels this process can use."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from hgrnx.ops.library import compiled_serves

KERNELS = ("torch", "compiled", "triton")


@functools.cache
def has_triton() -> bool:
    """Whether the package triton is installed."""
    return importlib.util.find_spec("triton") is not None


def choose_kernels(op: str, impl: str | None, x: Tensor) -> str:
    """Which of our kernels serve ``x``: "torch" (plain torch), "compiled" (C++, for CPUs) or "triton".

    Where ``impl`` does not say, "triton" on a GPU and "compiled" on a CPU if they are there; "torch" in float64.

    Raises:
        ValueError: ``impl`` is none of the three, or asks for what cannot be used here.
    """
    if impl is None:
        if x.dtype == torch.float64:
            return "torch"
        if x.is_cuda:
            return "triton" if has_triton() else "torch"
        return "compiled" if x.device.type == "cpu" and compiled_serves() else "torch"
    if impl not in KERNELS:
        raise ValueError(f"{op}: impl='{impl}' is none of {', '.join(KERNELS)}")
    if impl == "triton" and not has_triton():
        raise ValueError(f"{op}: impl='triton' needs the package triton")
    if impl == "compiled" and (x.device.type != "cpu" or x.dtype == torch.float64):
        raise ValueError(f"{op}: impl='compiled' is for CPUs and not for float64; this is {x.dtype} on {x.device}")
    return impl
