"""Which kernels this process can use."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


@functools.cache
def has_triton() -> bool:
    """Whether the package triton is installed."""
    return importlib.util.find_spec("triton") is not None


def use_triton(op: str, impl: str | None, x: Tensor) -> bool:
    """Whether our Triton kernels serve ``x``: where ``impl`` does not say, on a GPU, except in float64.

    Raises:
        ValueError: ``impl`` is neither None, "torch" nor "triton", or asks for what is not installed.
    """
    if impl is None:
        return x.is_cuda and x.dtype != torch.float64 and has_triton()
    if impl not in ("torch", "triton"):
        raise ValueError(f"{op}: impl='{impl}' is neither 'torch' nor 'triton'")
    if impl == "triton" and not has_triton():
        raise ValueError(f"{op}: impl='triton' needs the package triton")
    return impl == "triton"
