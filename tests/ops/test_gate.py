"""The forget gate against the formula in float64, also where f is next to 0 or to 1."""

import pytest
import torch

from hgrnx.ops import forget_gate

BOUNDS = [None, 0.0, 1e-6, 0.3, 0.999, "learned"]


def bound_of(kind: object, width: int) -> torch.Tensor | float | None:
    if kind == "learned":
        return torch.cat((torch.zeros(1), torch.linspace(0, 0.95, width - 1)))
    return kind  # type: ignore[return-value]


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("scale", [1, 10, 60])
def test_precision(kind: object, scale: float) -> None:
    z = torch.linspace(-1, 1, 700).view(100, 7) * scale
    bound = bound_of(kind, 7)
    lb = torch.as_tensor(0.0 if bound is None else bound).double()
    log_f, k = forget_gate(z, bound)
    assert log_f.dtype == k.dtype == torch.float32
    s, k_true = z.double().sigmoid(), (1 - lb) * (-z.double()).sigmoid()
    f_true = lb + (1 - lb) * s
    log_f_true = torch.where(k_true < 0.1, torch.log1p(-k_true), f_true.log())
    torch.testing.assert_close(k.double(), k_true, rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(log_f.double(), log_f_true, rtol=1e-6, atol=1e-37)
    assert (log_f <= 0).all()


@pytest.mark.parametrize("kind", BOUNDS)
def test_gradcheck(kind: object) -> None:
    z = (torch.linspace(-8, 8, 42, dtype=torch.float64).view(2, 3, 7)).requires_grad_()
    bound = bound_of(kind, 7)
    if isinstance(bound, torch.Tensor):
        bound = (bound.double() + 1e-3).requires_grad_()
        assert torch.autograd.gradcheck(forget_gate, (z, bound))
    else:
        assert torch.autograd.gradcheck(lambda x: forget_gate(x, bound), (z,))


@pytest.mark.parametrize("kind", [None, 0.3, "learned"])
def test_gradient_at_the_extremes(kind: object) -> None:
    bound = bound_of(kind, 7)
    grads = []
    for dtype in (torch.float32, torch.float64):
        z = (torch.linspace(-1, 1, 700).view(100, 7) * 80).to(dtype).requires_grad_()
        cast = bound.to(dtype) if isinstance(bound, torch.Tensor) else bound
        log_f, k = forget_gate(z, cast)
        grads.append(torch.autograd.grad((log_f + 3 * k).sum(), z)[0].double())
    assert torch.isfinite(grads[0]).all()
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-37)


def test_a_bound_per_head_and_key_takes_a_summed_gradient() -> None:
    z = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    lb = torch.full((3, 4), 0.25, requires_grad=True)
    log_f, k = forget_gate(z, lb)
    grad = torch.autograd.grad(log_f.sum() + k.sum(), lb)[0]
    f = lb + (1 - lb) * z.sigmoid()
    expected = torch.autograd.grad(f.log().sum() + (1 - f).sum(), lb)[0]
    torch.testing.assert_close(grad, expected)


def test_bf16_pre_activations_give_float32_gates() -> None:
    z = torch.linspace(-5, 5, 40).bfloat16().requires_grad_()
    log_f, k = forget_gate(z)
    torch.testing.assert_close(log_f.exp() + k, torch.ones(40))
    (log_f.sum() + k.sum()).backward()
    assert log_f.dtype == torch.float32 and z.grad is not None and z.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("bound", [-0.1, 1.0, torch.zeros(3), torch.zeros(2, 3, 7, 1)])
def test_wrong_bounds(bound: torch.Tensor | float) -> None:
    with pytest.raises(ValueError, match="lower_bound"):
        forget_gate(torch.zeros(3, 7), bound)
