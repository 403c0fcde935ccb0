"""The gated linear unit of an MLP: silu(x) y (SwiGLU, arXiv 2002.05202)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hgrnx.ops.dispatch import choose_kernels
from hgrnx.ops.library import TYPES, address, kernel

_SIZES = [ctypes.c_int64] * 2  # elements and their type
_FORWARD = "hgrnx_gated_unit", *_SIZES, *[ctypes.c_void_p] * 3
_BACKWARD = "hgrnx_gated_unit_backward", *_SIZES, *[ctypes.c_void_p] * 5


def gated_unit(x: Tensor, y: Tensor, impl: str | None = None) -> Tensor:
    """silu(x) y, of the shape and type of both.

    Args:
        x, y: any shape and floating type, the same for both.
        impl: "torch" or "compiled" (C++, one pass, keeps nothing but x and y); by default "compiled" on a CPU where
            it can be built (not in float64).

    Raises:
        ValueError: shapes or types differ; an ``impl`` that is unknown or does not run here.
    """
    if x.shape != y.shape or x.dtype != y.dtype:
        raise ValueError(f"gated_unit: x is {list(x.shape)} {x.dtype}, y {list(y.shape)} {y.dtype}; they must be alike")
    if impl == "triton":
        raise ValueError("gated_unit: there is no impl='triton'")
    return _compiled(x, y) if choose_kernels("gated_unit", impl, x) == "compiled" else F.silu(x) * y


@torch.library.custom_op("hgrnx::compiled_gated_unit", mutates_args=(), device_types="cpu")
def _compiled(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    kernel(*_FORWARD)(x.numel(), TYPES[x.dtype], address(x), address(y), address(out))
    return out


@torch.library.custom_op("hgrnx::compiled_gated_unit_backward", mutates_args=(), device_types="cpu")
def _backward(d_out: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    d_out, x, y = d_out.contiguous(), x.contiguous(), y.contiguous()
    dx, dy = torch.empty_like(x), torch.empty_like(y)
    kernel(*_BACKWARD)(x.numel(), TYPES[x.dtype], *(address(a) for a in (d_out, x, y, dx, dy)))
    return dx, dy


@_compiled.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _(d_out: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
    x, y = ctx.saved_tensors
    return _backward(d_out, x, y)


_compiled.register_autograd(_gradients, setup_context=_keep)
