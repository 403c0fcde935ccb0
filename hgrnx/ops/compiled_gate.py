"""The forget gate on CPU in C++ (``csrc/gate.cpp``); :mod:`hgrnx.ops.gate` says what is computed.

Registered with torch's dispatcher, so that ``torch.compile`` keeps it as one node of its graph.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from hgrnx.ops.library import TYPES, address, kernel


class _Gate(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "D", "type")),
        ("z", ctypes.c_void_p),
        ("bound", ctypes.c_void_p),
    ]


_FORWARD = "hgrnx_gate", ctypes.POINTER(_Gate), *[ctypes.c_void_p] * 2
_BACKWARD = "hgrnx_gate_backward", ctypes.POINTER(_Gate), *[ctypes.c_void_p] * 4


def _gate(z: Tensor, lower_bound: Tensor | None) -> _Gate:
    """Both contiguous; the caller keeps them alive."""
    D = z.shape[-1] if lower_bound is None else lower_bound.numel()
    return _Gate(z.numel() // max(1, D), D, TYPES[z.dtype], address(z), address(lower_bound))


@torch.library.custom_op("hgrnx::compiled_gate", mutates_args=(), device_types="cpu")
def compiled_forget_gate(z: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """log f and 1 - f, float32, of pre-activations in float32, bfloat16 or float16; the bound is a tensor or None."""
    z = z.contiguous()
    bound = None if lower_bound is None else lower_bound.float().contiguous()
    log_f, k = (torch.empty(z.shape, dtype=torch.float32) for _ in range(2))
    kernel(*_FORWARD)(_gate(z, bound), address(log_f), address(k))
    return log_f, k


@torch.library.custom_op("hgrnx::compiled_gate_backward", mutates_args=(), device_types="cpu")
def _backward(
    d_log_f: Tensor, d_k: Tensor, z: Tensor, lower_bound: Tensor | None, bound_wants_grad: bool
) -> tuple[Tensor, Tensor]:
    z, d_log_f, d_k = z.contiguous(), d_log_f.contiguous(), d_k.contiguous()
    bound = None if lower_bound is None else lower_bound.float().contiguous()
    dz = torch.empty_like(z)
    d_bound = torch.empty_like(bound) if bound is not None and bound_wants_grad else None
    kernel(*_BACKWARD)(_gate(z, bound), address(d_log_f), address(d_k), address(dz), address(d_bound))
    return dz, z.new_empty(0, dtype=torch.float32) if d_bound is None else d_bound


@compiled_forget_gate.register_fake
def _(z: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape, dtype=torch.float32), z.new_empty(z.shape, dtype=torch.float32)


@_backward.register_fake
def _(
    d_log_f: Tensor, d_k: Tensor, z: Tensor, lower_bound: Tensor | None, bound_wants_grad: bool
) -> tuple[Tensor, Tensor]:
    wanted = lower_bound is not None and bound_wants_grad
    return z.new_empty(z.shape), z.new_empty(
        lower_bound.shape if lower_bound is not None and wanted else 0, dtype=torch.float32
    )


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, d_log_f: Tensor, d_k: Tensor) -> tuple[Tensor, Tensor | None]:
    z, lower_bound = ctx.saved_tensors
    wanted = ctx.needs_input_grad[1]
    dz, d_bound = _backward(d_log_f, d_k, z, lower_bound, wanted)
    return dz, d_bound.to(lower_bound.dtype) if wanted else None


compiled_forget_gate.register_autograd(_gradients, setup_context=_keep)
