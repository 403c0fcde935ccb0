"""HGRN2's forget gate (arXiv 2404.07904, equations 4 to 6), from its pre-activation to log f and 1 - f.

Shapes: R rows, D gates that the lower bound is given for (1 if it is given once for all), b a block of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgrnx.ops.compiled_gate import compiled_forget_gate
from hgrnx.ops.dispatch import choose_kernels

_CPU_BLOCK_ELEMENTS = 2**16  # the handful of tensors of a block should stay in a core's cache
_SMALLEST = 1e-36  # f is not taken to be smaller, so that its logarithm and its inverse stay finite


def forget_gate(z: Tensor, lower_bound: Tensor | float | None = None, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """log f and k = 1 - f of the gate f = lb + (1 - lb) sigmoid(z).

    k is computed as (1 - lb) sigmoid(-z), and log f with what k knows of the rounding of f, so that both keep
    their full relative precision for f near 0 and near 1.

    Args:
        z: pre-activations, any shape; any floating type.
        lower_bound: values in [0, 1) for the last axes of ``z``, such as [D] or [H, K], or a number; None or 0
            for none.
        impl: "torch", "compiled" or "triton"; by default "compiled" on a CPU where it can be built and "triton" on
            a GPU where it is installed (not in float64).

    Returns:
        (log_f, k), both float32 (float64 for float64 ``z``), of the shape of ``z``.

    Raises:
        ValueError: ``lower_bound`` is not of the shape of the last axes of ``z``, or a number outside [0, 1);
            an ``impl`` that is unknown or does not run here.
    """
    if not isinstance(lower_bound, Tensor) and lower_bound == 0:
        lower_bound = None
    if lower_bound is not None and not isinstance(lower_bound, Tensor):
        if not 0 < lower_bound < 1:
            raise ValueError(f"forget_gate: lower_bound={lower_bound} must be in [0, 1)")
        lower_bound = torch.tensor(lower_bound, device=z.device)
    if lower_bound is not None and lower_bound.shape != z.shape[max(0, z.ndim - lower_bound.ndim) :]:
        raise ValueError(
            f"forget_gate: lower_bound {list(lower_bound.shape)} is not of the shape of the last axes of "
            f"z {list(z.shape)}"
        )
    kernels = choose_kernels("forget_gate", impl, z)
    if kernels == "compiled":
        return compiled_forget_gate(z, lower_bound)
    if kernels == "triton":
        from hgrnx.ops.triton_gate import triton_forget_gate  # needs a GPU's packages

        return triton_forget_gate(z, lower_bound)
    return _ForgetGate.apply(z, lower_bound)


class _ForgetGate(torch.autograd.Function):
    """Keeps z (in its own type) and the bound; everything else is computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, lower_bound)
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        z_RD, lb_D, open_D = _flatten(z, lower_bound, dtype)
        log_f_RD = torch.empty(z_RD.shape, dtype=dtype, device=z.device)
        k_RD = torch.empty_like(log_f_RD)
        for rows in _blocks(z_RD):
            s_bD, k_bD = _sigmoids(z_RD[rows], dtype)
            if open_D is not None:
                k_bD *= open_D
            f_bD = _gate(s_bD, lb_D, open_D)
            # f is rounded, and next to 1 that matters for its logarithm; (1 - f) - k is by how much.
            rounding_bD = (1 - f_bD).sub_(k_bD)
            torch.addcmul(f_bD.log(), rounding_bD, f_bD, out=log_f_RD[rows])
            k_RD[rows] = k_bD
        return log_f_RD.view(z.shape), k_RD.view(z.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_f: Tensor, d_k: Tensor) -> tuple[Tensor, Tensor | None]:
        z, lower_bound = ctx.saved_tensors
        dtype = d_log_f.dtype
        z_RD, lb_D, open_D = _flatten(z, lower_bound, dtype)
        d_log_f_RD, d_k_RD = d_log_f.reshape(z_RD.shape), d_k.reshape(z_RD.shape)
        dz_RD = torch.empty_like(z_RD)
        d_lb_D = None
        if ctx.needs_input_grad[1]:
            d_lb_D = z_RD.new_zeros(z_RD.shape[1:], dtype=dtype)
        for rows in _blocks(z_RD):
            s_bD, closed_bD = _sigmoids(z_RD[rows], dtype)
            if open_D is None:
                dz_bD = torch.addcmul(d_log_f_RD[rows], d_k_RD[rows], s_bD, value=-1).mul_(closed_bD)
            else:
                d_f_bD = d_log_f_RD[rows] / _gate(s_bD, lb_D, open_D)
                d_f_bD -= d_k_RD[rows]
                d_f_bD *= closed_bD
                if d_lb_D is not None:
                    d_lb_D += d_f_bD.sum(0)
                dz_bD = d_f_bD.mul_(s_bD).mul_(open_D)
            dz_RD[rows] = dz_bD
        if d_lb_D is not None:
            d_lb_D = d_lb_D.view(lower_bound.shape).to(lower_bound.dtype)
        return dz_RD.view(z.shape), d_lb_D


def _flatten(z: Tensor, lower_bound: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """z as [R, D], and lb and 1 - lb as [D]."""
    if lower_bound is None:
        return z.reshape(-1, z.shape[-1]), None, None
    lb_D = lower_bound.to(dtype).flatten()
    return z.reshape(-1, lb_D.numel()), lb_D, 1 - lb_D


def _blocks(z_RD: Tensor) -> Iterator[slice]:
    R, D = z_RD.shape
    rows = max(1, _CPU_BLOCK_ELEMENTS // D) if z_RD.device.type == "cpu" else max(1, R)
    return (slice(start, start + rows) for start in range(0, R, rows))


def _sigmoids(z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """sigmoid(z) and sigmoid(-z): each is exact where it is small, as one minus the other is not."""
    x = z.to(dtype)
    return torch.sigmoid(x), torch.neg(x).sigmoid_()


def _gate(s_bD: Tensor, lb_D: Tensor | None, open_D: Tensor | None) -> Tensor:
    f_bD = s_bD if lb_D is None or open_D is None else torch.addcmul(lb_D, s_bD, open_D)
    return f_bD.clamp(_SMALLEST, 1.0)
