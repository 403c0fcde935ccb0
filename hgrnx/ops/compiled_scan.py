"""Mamba's selective scan on CPU in C++ (``csrc/selective_scan.cpp``); :mod:`hgrnx.ops.selective_scan` says what it is.

Shapes: B rows, T tokens, C channels, S states of a channel, M chunks, P parts of the channels.

Registered with torch's dispatcher, so that ``torch.compile`` keeps it as one node of its graph.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from hgrnx.ops.library import address, kernel

_CHUNK = 32  # tokens between states that are kept; decays and states of a chunk of a vector of channels fit a cache
_PART_CHANNELS = 128  # csrc/selective_scan.cpp


class _Scan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "T", "C", "S", "N")),
        *((name, ctypes.c_void_p) for name in ("u", "dt", "A", "b", "c")),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("dy", "d_last", "du", "d_dt", "dA", "db", "dc", "d_initial")]


_FORWARD = "hgrnx_scan", ctypes.POINTER(_Scan), *[ctypes.c_void_p] * 4
_BACKWARD = "hgrnx_scan_backward", ctypes.POINTER(_Scan), ctypes.c_void_p, ctypes.POINTER(_Gradients)


def _scan(u: Tensor, dt: Tensor, A_SC: Tensor, b: Tensor, c: Tensor) -> _Scan:
    """All float32 and contiguous; the caller keeps them alive."""
    B, T, C = u.shape
    return _Scan(B, T, C, A_SC.shape[0], _CHUNK, *(address(x) for x in (u, dt, A_SC, b, c)))


def _as_read(u: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
    return [x.float().contiguous() for x in (u, dt, A.mT, b, c)]


@torch.library.custom_op("hgrnx::compiled_scan", mutates_args=(), device_types="cpu")
def compiled_selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last state, and the states before each chunk [M, B, S, C], which the backward goes on from."""
    (B, T, C), S = u.shape, A.shape[1]
    inputs = _as_read(u, dt, A, b, c)
    initial_BSC = None if initial_state is None else initial_state.mT.float().contiguous()
    y, last_BSC, befores = (torch.empty(shape) for shape in ((B, T, C), (B, S, C), (-(-T // _CHUNK), B, S, C)))
    kernel(*_FORWARD)(_scan(*inputs), *(address(x) for x in (initial_BSC, befores, y, last_BSC)))
    return y.to(u.dtype), last_BSC.mT, befores


@torch.library.custom_op("hgrnx::compiled_scan_backward", mutates_args=(), device_types="cpu")
def _backward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    b: Tensor,
    c: Tensor,
    befores: Tensor,
    dy: Tensor,
    d_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, dt, A, b, c and the initial state."""
    (B, T, C), S = u.shape, A.shape[1]
    inputs = _as_read(u, dt, A, b, c)
    dy, d_last_BSC = dy.float().contiguous(), d_last.mT.float().contiguous()
    parts = -(-C // _PART_CHANNELS)
    du, d_dt = (torch.empty(B, T, C) for _ in range(2))
    dA_BSC, d_initial_BSC = (torch.empty(B, S, C) for _ in range(2))
    db_PBTS, dc_PBTS = (torch.empty(parts, B, T, S) for _ in range(2))
    outputs = (dy, d_last_BSC, du, d_dt, dA_BSC, db_PBTS, dc_PBTS, d_initial_BSC)
    kernel(*_BACKWARD)(_scan(*inputs), address(befores), _Gradients(*(address(x) for x in outputs)))
    sums = dA_BSC.sum(0).mT, db_PBTS.sum(0), dc_PBTS.sum(0)
    dA, db, dc = (x.to(like.dtype) for x, like in zip(sums, (A, b, c), strict=True))
    return du.to(u.dtype), d_dt.to(dt.dtype), dA, db, dc, d_initial_BSC.mT


@compiled_selective_scan.register_fake
def _(
    u: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    (B, T, C), S = u.shape, A.shape[1]
    befores = u.new_empty(-(-T // _CHUNK), B, S, C, dtype=torch.float32)
    return u.new_empty(B, T, C), befores.new_empty(B, S, C).mT, befores


@_backward.register_fake
def _(
    u: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, befores: Tensor, dy: Tensor, d_last: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, d_dt, db, dc = (x.new_empty(x.shape) for x in (u, dt, b, c))
    return du, d_dt, A.new_empty(A.shape[::-1]).mT, db, dc, befores.new_empty(befores.shape[1:]).mT


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *inputs_but_state, initial_state = inputs
    befores = output[2]
    ctx.mark_non_differentiable(befores)
    ctx.set_materialize_grads(False)  # the states would get zeros too
    ctx.state_dtype = None if initial_state is None else initial_state.dtype
    ctx.save_for_backward(*inputs_but_state, befores)


def _gradients(ctx: Any, dy: Tensor | None, d_last: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing hands them out a single time
    u, befores = saved[0], saved[5]
    dy = torch.zeros_like(u) if dy is None else dy
    d_last = befores.new_zeros(befores.shape[1:]).mT if d_last is None else d_last
    *grads, d_initial = _backward(*saved, dy, d_last)
    return (*grads, None if ctx.state_dtype is None else d_initial.to(ctx.state_dtype))


compiled_selective_scan.register_autograd(_gradients, setup_context=_keep)
