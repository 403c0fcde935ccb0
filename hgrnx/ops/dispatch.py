"""Which kernels this process can use."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None


def use_triton(op: str, impl: str | None, x: Tensor) -> bool:
    """Whether our Triton kernels serve ``x``: where ``impl`` does not say, on a GPU, except in float64.

    Raises:
        ValueError: ``impl`` is neither None, "torch" nor "triton", or asks for what is not installed.
    """
    if impl is None:
        return HAS_TRITON and x.is_cuda and x.dtype != torch.float64
    if impl not in ("torch", "triton"):
        raise ValueError(f"{op}: impl='{impl}' is neither 'torch' nor 'triton'")
    if impl == "triton" and not HAS_TRITON:
        raise ValueError(f"{op}: impl='triton' needs the package triton")
    return impl == "triton"
