from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hgrnx.models.norm import RMSNorm


def norm_with(weight: torch.Tensor, eps: float) -> RMSNorm:
    norm = RMSNorm(len(weight), eps)
    with torch.no_grad():
        norm.weight.copy_(weight)
    return norm


@pytest.mark.parametrize("eps", [1e-6, 1e-1])
@pytest.mark.parametrize("shape", [(3, 5, 17), (1, 1, 64)])
def test_value_and_gradients_are_torchs(shape: tuple[int, ...], eps: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 0.3 + 0.5).requires_grad_()
    weight = torch.randn(shape[-1], dtype=torch.float64).requires_grad_()
    dy = torch.randn(shape, dtype=torch.float64)
    wanted = F.rms_norm(x, (shape[-1],), weight, eps)
    wanted_gradients = torch.autograd.grad(wanted, (x, weight), dy)

    norm = norm_with(weight, eps)
    x32 = x.detach().float().requires_grad_()
    y = norm(x32)
    gradients = torch.autograd.grad(y, (x32, norm.weight), dy.float())
    torch.testing.assert_close(y, wanted.float(), rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-5)


def test_zero_input_stays_zero_and_finite() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = RMSNorm(8, 1e-6)(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 8))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_result_has_autocasts_type() -> None:
    x = torch.randn(2, 8)
    norm = RMSNorm(8, 1e-6)
    assert norm(x).dtype == torch.float32
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
