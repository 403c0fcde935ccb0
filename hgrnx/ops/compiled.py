"""The gated linear recurrence on CPU in C++ (``csrc/recurrence.cpp``).

Shapes: B batch, T time, H heads, K keys and V values per head, N sequences (B, or packed documents).

Registered with torch's dispatcher, so that ``torch.compile`` keeps it as one node of its graph. Nothing of the
forward is kept but its arguments: the backward goes through the states again.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from hgrnx.ops.library import TYPES, address, kernel
from hgrnx.ops.packing import check_offsets
from hgrnx.ops.slabs import compute_dtype

_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor log_f, Tensor? initial_state, Tensor? cu_seqlens"


def compiled_recurrence(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_f_BTHK: Tensor,
    initial_state_BHKV: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results are those of :func:`hgrnx.ops.gated_linear_recurrence`.

    Raises:
        ValueError: the tensors are not on the CPU, or the kernel cannot be built (why is said).
    """
    if q_BTHK.device.type != "cpu":
        raise ValueError(f"impl='compiled' needs tensors on the CPU, and q is on {q_BTHK.device}")
    return _forward(q_BTHK, k_BTHK, v_BTHV, log_f_BTHK, initial_state_BHKV, cu_seqlens)


def compiled_forest(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_f_BTHK: Tensor, cu_seqlens: Tensor, generations_N: Tensor
) -> Tensor:
    """As :func:`hgrnx.ops.forest.forest_recurrence`, on the CPU."""
    call = _Call(q_BTHK, k_BTHK, v_BTHV, log_f_BTHK, None, cu_seqlens)
    o_BTHV = torch.empty(v_BTHV.shape, dtype=v_BTHV.dtype)
    kernel(*_FOREST)(call.problem, generations_N.contiguous().data_ptr(), _Array(o_BTHV))
    return o_BTHV


class _Array(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int64), ("strides", ctypes.c_int64 * 3)]

    def __init__(self, x_BTHK: Tensor) -> None:
        strides = (ctypes.c_int64 * 3)(*x_BTHK.stride()[:3])
        super().__init__(x_BTHK.data_ptr(), TYPES[x_BTHK.dtype], strides)


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("N", "T", "H", "K", "V", "type")),
        ("bounds", ctypes.c_void_p),
        *((name, _Array) for name in ("q", "k", "v", "log_f")),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, _Array) for name in ("d_o", "dq", "dk", "dv", "dlog_f")]


_STATE = ctypes.c_void_p
_FORWARD = "hgrnx_forward", ctypes.POINTER(_Problem), _STATE, ctypes.POINTER(_Array), _STATE
_FOREST = "hgrnx_forest_forward", ctypes.POINTER(_Problem), ctypes.c_void_p, ctypes.POINTER(_Array)
_BACKWARD = "hgrnx_backward", ctypes.POINTER(_Problem), _STATE, ctypes.POINTER(_Gradients), _STATE, _STATE


class _Call:
    """The arguments of the C functions, and what keeps their memory alive."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None
    ) -> None:
        B, T, H, K = q.shape
        self.state_dtype = compute_dtype(q)
        self.inputs = [_rows(x) for x in (q, k, v, log_f)]
        self.initial = None if initial_state is None else initial_state.to(self.state_dtype).contiguous()
        self.bounds, bounds = None, None
        N = B
        if cu_seqlens is not None:
            check_offsets(cu_seqlens, T)
            self.bounds = cu_seqlens.to("cpu", torch.int64).contiguous()
            bounds, N = self.bounds.data_ptr(), cu_seqlens.numel() - 1
        self.state_shape = (N, H, K, v.shape[-1])
        self.problem = _Problem(
            N, T, H, K, v.shape[-1], TYPES[self.state_dtype], bounds, *(_Array(x) for x in self.inputs)
        )


def _rows(x: Tensor) -> Tensor:
    """As the kernel reads it: any strides but that of the last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op(
    "hgrnx::compiled_recurrence", mutates_args=(), device_types="cpu", schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)"
)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    call = _Call(q, k, v, log_f, initial_state, cu_seqlens)
    o = torch.empty(v.shape, dtype=v.dtype)
    final_state = torch.empty(call.state_shape, dtype=call.state_dtype)
    kernel(*_FORWARD)(call.problem, address(call.initial), _Array(o), final_state.data_ptr())
    return o, final_state


@torch.library.custom_op(
    "hgrnx::compiled_recurrence_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor d_o, Tensor d_final_state, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    d_o: Tensor,
    d_final_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = _Call(q, k, v, log_f, initial_state, cu_seqlens)
    d_o, d_final_state = _rows(d_o), d_final_state.to(call.state_dtype).contiguous()
    grads = [torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v, log_f)]
    d_initial = None if initial_state is None else torch.empty(call.state_shape, dtype=call.state_dtype)
    arrays = _Gradients(*(_Array(x) for x in (d_o, *grads)))
    addresses = address(call.initial), arrays, d_final_state.data_ptr(), address(d_initial)
    kernel(*_BACKWARD)(call.problem, *addresses)
    dq, dk, dv, dlog_f = grads
    if initial_state is None or d_initial is None:
        return dq, dk, dv, dlog_f, q.new_empty(0)
    return dq, dk, dv, dlog_f, d_initial.to(initial_state.dtype)


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    B, _, H, K = q.shape
    N = B if cu_seqlens is None else cu_seqlens.numel() - 1
    return v.new_empty(v.shape), v.new_empty(N, H, K, v.shape[-1], dtype=compute_dtype(q))


@_backward.register_fake
def _(
    d_o: Tensor,
    d_final_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, dlog_f = (x.new_empty(x.shape) for x in (q, k, v, log_f))
    d_initial = q.new_empty(0) if initial_state is None else initial_state.new_empty(initial_state.shape)
    return dq, dk, dv, dlog_f, d_initial


def _keep_arguments(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, d_o: Tensor, d_final_state: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors  # once: activation checkpointing hands them out a single time
    *grads, d_initial = _backward(d_o, d_final_state, *inputs)
    return *grads, (None if inputs[4] is None else d_initial), None


_forward.register_autograd(_gradients, setup_context=_keep_arguments)
