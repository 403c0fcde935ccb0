"""HGRN2's forget gate (arXiv 2404.07904, equations 4 to 6), from its pre-activation to log f and 1 - f."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def forget_gate(z: Tensor, lower_bound: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
    """log f and k = 1 - f of the gate f = lb + (1 - lb) sigmoid(z).

    k is computed as (1 - lb) sigmoid(-z), and log f from whichever of f and k is the small one, so that both
    keep their full relative precision for f near 0 and near 1.

    Args:
        z: pre-activations, any shape; any floating type.
        lower_bound: values in [0, 1) that broadcast to ``z`` from the right, such as [D]; None or 0 for none.

    Returns:
        (log_f, k), both float32 (float64 for float64 ``z``), of the shape of ``z``.

    Raises:
        ValueError: ``lower_bound`` does not broadcast to ``z``, or is a number outside [0, 1).
    """
    if lower_bound is None or (not isinstance(lower_bound, Tensor) and lower_bound == 0):
        return _ForgetGate.apply(z, None)
    if not isinstance(lower_bound, Tensor):
        if not 0 < lower_bound < 1:
            raise ValueError(f"forget_gate: lower_bound={lower_bound} must be in [0, 1)")
        lower_bound = torch.tensor(lower_bound, device=z.device)
    trailing = z.shape[z.ndim - lower_bound.ndim :] if lower_bound.ndim else torch.Size()
    if lower_bound.ndim > z.ndim or any(b not in (1, d) for b, d in zip(lower_bound.shape, trailing)):
        raise ValueError(f"forget_gate: lower_bound {list(lower_bound.shape)} does not broadcast to z {list(z.shape)}")
    return _ForgetGate.apply(z, lower_bound)


class _ForgetGate(torch.autograd.Function):
    """Keeps z (in its own type) and the bound; everything else is computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, lower_bound)
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        x = z.to(dtype)
        k = torch.sigmoid(-x)
        if lower_bound is None:
            return torch.nn.functional.logsigmoid(x), k
        lb = lower_bound.to(dtype)
        k.mul_(1 - lb)
        f = torch.sigmoid(x).mul_(1 - lb).add_(lb)
        # log f, and for f above 1/2 log1p(-k): where f rounds to 1, k still knows by how much it differs.
        log_f = torch.where(k < 0.5, torch.log1p(-k), f.log_())
        # With a bound of 0 f can underflow, and then log f = z.
        log_f = torch.maximum(log_f, torch.nn.functional.logsigmoid(x))
        return log_f, k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_f: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor | None]:
        z, lower_bound = ctx.saved_tensors
        x = z.to(grad_log_f.dtype)
        if lower_bound is None:  # d log f / dz = k and dk / dz = -k f
            k = torch.sigmoid(-x)
            grad_z = (grad_log_f - grad_k * torch.sigmoid(x)).mul_(k)
            return grad_z.to(z.dtype), None
        lb = lower_bound.to(x.dtype)
        s, k = torch.sigmoid(x), torch.sigmoid(-x)
        f = s * (1 - lb) + lb
        grad_f = torch.where(f > 0, grad_log_f / f, torch.zeros_like(f)) - grad_k
        # f underflows only with a bound of 0, and there d log f / dz = 1 - s as without a bound.
        grad_z = torch.where(f > 0, grad_f * s * k * (1 - lb), grad_log_f * k)
        grad_lb = None
        if ctx.needs_input_grad[1]:
            grad_lb = (grad_f * k).sum_to_size(lower_bound.shape).to(lower_bound.dtype)
        return grad_z.to(z.dtype), grad_lb
