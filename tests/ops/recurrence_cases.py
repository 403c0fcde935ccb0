"""Inputs of the recurrence and distances between results, shared by the tests of the implementations."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hgrnx.ops import gated_linear_recurrence
from hgrnx.ops.library import compiled_status

NAMES = ("o", "final_state", "dq", "dk", "dv", "dlog_f", "dinitial_state")
GATES = ("usual", "1e-30", "1e-4", "1-1e-6", "mixed", "closed")


def skip_without(impl: str) -> None:
    if impl == "compiled":
        available, reason = compiled_status()
        if not available:
            pytest.skip(reason)


def make_inputs(
    shape: tuple[int, int, int, int, int], gates: str = "usual", states: int | None = None, seed: int = 0
) -> list[Tensor]:
    """q, k, v, log_f and an initial state as float32 values in float64; ``shape`` is B, T, H, K, V."""
    B, T, H, K, V = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    z = normal(B, T, H, K)
    if gates == "usual":
        log_f = logsigmoid(2 * z)
    elif gates == "closed":  # exactly, or next to it
        log_f = torch.where(z > 0, torch.full_like(z, -torch.inf), torch.full_like(z, -60.0))
    else:
        values = {"1e-30": [1e-30], "1e-4": [1e-4], "1-1e-6": [1 - 1e-6]}.get(
            gates, [1e-30, 1e-4, 0.5, 0.9, 1 - 1e-6, 1.0]
        )
        choice = torch.randint(len(values), z.shape, generator=generator)
        log_f = torch.tensor(values, dtype=torch.float64).log().float()[choice]
    inputs = [normal(B, T, H, K) * K**-0.5, torch.rand(B, T, H, K, generator=generator), normal(B, T, H, V), log_f]
    return [x.double() for x in (*inputs, normal(states or B, H, K, V))]


def run(inputs: Sequence[Tensor | None], dtype: torch.dtype, impl: str, **options: object) -> dict[str, Tensor]:
    """Outputs, last state and all gradients, for fixed gradients of the two results."""
    skip_without(impl)
    leaves = [None if x is None else x.to(dtype).requires_grad_() for x in inputs]
    o, final = gated_linear_recurrence(*leaves, impl=impl, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(x.shape, generator=generator).to(x) for x in (o, final)]
    wanted = [x for x in leaves if x is not None]
    return dict(zip(NAMES, (o, final, *torch.autograd.grad([o, final], wanted, seeds))))


def errors(results: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Relative error in the norm, per result."""
    tiny = torch.finfo(torch.float64).tiny
    return {
        name: ((results[name].double().cpu() - true).norm() / true.norm().clamp_min(tiny)).item()
        for name, true in truth.items()
    }


def worst(results: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    for name, result in results.items():
        assert torch.isfinite(result).all(), f"{name} is not finite"
    return max(errors(results, truth).values())
