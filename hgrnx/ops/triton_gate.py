"""The forget gate as Triton kernels: one read of the pre-activations and one write of the results each way.

Shapes: R rows, D gates that the lower bound is given for.

The arithmetic is that of :mod:`hgrnx.ops.gate`, save for log f next to f = 1: there it is a series in k, which
does not depend on how exact the device's logarithm is.
"""
# mypy: disallow-untyped-defs=False
# The arguments of a kernel are pointers, numbers and compile-time constants: there are no useful types for them.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrnx.ops.triton_common import check_device

_BLOCK = 1024
_BLOCK_ROWS = 16
_MOST_PARTIAL_SUMS = 256  # programs that share the rows in the backward; enough to fill a GPU


def triton_forget_gate(z: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """Arguments and results are those of :func:`hgrnx.ops.forget_gate`, already checked; in float32."""
    return _forget_gate(z, lower_bound)


@triton.jit
def _sigmoids(z):
    """sigmoid(z) and sigmoid(-z), each exact where it is small."""
    small = tl.exp(-tl.abs(z))
    larger = 1.0 / (1.0 + small)
    smaller = small * larger
    return tl.where(z >= 0, larger, smaller), tl.where(z >= 0, smaller, larger)


@triton.jit
def _at_least_smallest(f):
    return tl.maximum(f, 1e-36)  # so that its logarithm and its inverse stay finite


@triton.jit
def _forward_kernel(
    z_ptr,
    bound_ptr,
    log_f_ptr,
    k_ptr,
    elements,
    D,
    BOUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < elements
    f, k = _sigmoids(tl.load(z_ptr + offset, mask=inside, other=0.0).to(tl.float32))
    if BOUNDED:
        bound = tl.load(bound_ptr + offset % D, mask=inside, other=0.0).to(tl.float32)
        f = bound + (1.0 - bound) * f
        k = (1.0 - bound) * k
    # log(1 - k) = -2 artanh(k / (2 - k)); for k < 1/4 the next term of the series is below 1e-9 of it.
    x = k / (2.0 - k)
    xx = x * x
    series = -2.0 * x * (1.0 + xx * (1.0 / 3 + xx * (1.0 / 5 + xx * (1.0 / 7 + xx * (1.0 / 9)))))
    log_f = tl.where(k < 0.25, series, tl.log(_at_least_smallest(f)))
    tl.store(log_f_ptr + offset, log_f, mask=inside)
    tl.store(k_ptr + offset, k, mask=inside)


@triton.jit
def _backward_kernel(
    z_ptr,
    bound_ptr,
    d_log_f_ptr,
    d_k_ptr,
    dz_ptr,
    d_bound_ptr,
    R,
    D,
    BOUNDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each program takes every so many blocks of rows, and sums its share of the bound's gradient."""
    gate = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = tl.program_id(1)
    bound = tl.zeros([BLOCK_D], dtype=tl.float32)
    if BOUNDED:
        bound = tl.load(bound_ptr + gate, mask=gate < D, other=0.0).to(tl.float32)
    d_bound = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(part * BLOCK_R, R, tl.num_programs(1) * BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        inside = (row < R)[:, None] & (gate < D)[None, :]
        offset = row.to(tl.int64)[:, None] * D + gate[None, :]
        open_, closed = _sigmoids(tl.load(z_ptr + offset, mask=inside, other=0.0).to(tl.float32))
        d_log_f = tl.load(d_log_f_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        d_k = tl.load(d_k_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        if BOUNDED:
            f = _at_least_smallest(bound + (1.0 - bound) * open_)
            d_f = (d_log_f / f - d_k) * closed
            d_bound += tl.sum(d_f, 0)
            dz = d_f * open_ * (1.0 - bound)
        else:
            dz = (d_log_f - d_k * open_) * closed
        tl.store(dz_ptr + offset, dz.to(dz_ptr.dtype.element_ty), mask=inside)
    if BOUNDED:
        tl.store(d_bound_ptr + part * D + gate, d_bound, mask=gate < D)


@torch.library.custom_op("hgrnx::forget_gate", mutates_args=())
def _forget_gate(z: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    check_device("forget_gate", z)
    z = z.contiguous()
    log_f = torch.empty(z.shape, dtype=torch.float32, device=z.device)
    k = torch.empty_like(log_f)
    if z.numel():
        bound = None if lower_bound is None else lower_bound.contiguous()
        D = 1 if bound is None else bound.numel()
        grid = (triton.cdiv(z.numel(), _BLOCK),)
        _forward_kernel[grid](z, bound, log_f, k, z.numel(), D, BOUNDED=bound is not None, BLOCK=_BLOCK)
    return log_f, k


@_forget_gate.register_fake
def _(z: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty(z.shape, dtype=torch.float32, device=z.device) for _ in range(2))  # type: ignore[return-value]


@torch.library.custom_op("hgrnx::forget_gate_backward", mutates_args=())
def _forget_gate_backward(z: Tensor, lower_bound: Tensor | None, d_log_f: Tensor, d_k: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of z and of the bound (an empty tensor without one)."""
    z, d_log_f, d_k = z.contiguous(), d_log_f.contiguous(), d_k.contiguous()
    bound = None if lower_bound is None else lower_bound.contiguous()
    dz = torch.empty_like(z)
    D = z.shape[-1] if bound is None and z.ndim else 1 if bound is None else bound.numel()
    R = z.numel() // max(D, 1)
    parts = min(triton.cdiv(R, _BLOCK_ROWS), _MOST_PARTIAL_SUMS)
    d_bound_PD = torch.empty(0 if bound is None else parts, D, dtype=torch.float32, device=z.device)
    if z.numel():
        block = min(128, triton.next_power_of_2(D))
        _backward_kernel[(triton.cdiv(D, block), parts)](
            z,
            bound,
            d_log_f,
            d_k,
            dz,
            d_bound_PD,
            R,
            D,
            BOUNDED=bound is not None,
            BLOCK_R=_BLOCK_ROWS,
            BLOCK_D=block,
        )
    if bound is None:
        return dz, torch.empty(0, device=z.device)
    return dz, d_bound_PD.sum(0).view(bound.shape).to(bound.dtype)


@_forget_gate_backward.register_fake
def _(z: Tensor, lower_bound: Tensor | None, d_log_f: Tensor, d_k: Tensor) -> tuple[Tensor, Tensor]:
    d_bound = torch.empty(0, device=z.device)
    if lower_bound is not None:
        d_bound = torch.empty(lower_bound.shape, dtype=lower_bound.dtype, device=z.device)
    return torch.empty(z.shape, dtype=z.dtype, device=z.device), d_bound


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, d_log_f: Tensor, d_k: Tensor) -> tuple[Tensor, Tensor | None]:
    z, lower_bound = ctx.saved_tensors
    dz, d_bound = _forget_gate_backward(z, lower_bound, d_log_f, d_k)
    return dz, None if lower_bound is None else d_bound


_forget_gate.register_autograd(_gradients, setup_context=_keep)
