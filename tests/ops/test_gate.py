"""The forget gate against the formula in float64, also where f is next to 0 or to 1."""

import pytest
import torch
from recurrence_cases import skip_without

from hgrnx.ops import forget_gate
from hgrnx.ops.compiled_gate import compiled_forget_gate

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


def truth_and_compiled(z: torch.Tensor, bound: torch.Tensor | None) -> list[list[torch.Tensor]]:
    """log f, k, and gradients of z and the bound: in float64 by plain torch, then compiled."""
    found = []
    for impl, dtype in (("torch", torch.float64), ("compiled", z.dtype)):
        leaves = [x.to(dtype).detach().requires_grad_() for x in (z, bound) if x is not None]
        log_f, k = forget_gate(leaves[0], leaves[1] if bound is not None else None, impl=impl)
        generator = torch.Generator().manual_seed(1)
        seeds = [torch.randn(z.shape, generator=generator).to(x) for x in (log_f, k)]
        found.append([log_f, k, *torch.autograd.grad([log_f, k], leaves, seeds)])
    return found


@pytest.mark.parametrize("shape", [(3, 37, 2, 20), (1, 1, 1, 5), (2, 300, 1, 24)])
@pytest.mark.parametrize("axes", [0, 1, 2])
@pytest.mark.parametrize("scale", [1, 15, 70])
@pytest.mark.parametrize(("dtype", "bound_of_error"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_compiled(shape: tuple[int, ...], axes: int, scale: float, dtype: torch.dtype, bound_of_error: float) -> None:
    skip_without("compiled")
    z = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    widths = torch.Size(shape[-axes:])
    bound = torch.linspace(0, 0.99, widths.numel()).view(widths) if axes else None
    truth, ours = truth_and_compiled(z, bound)
    for x, true in zip(ours, truth, strict=True):
        assert x.shape == true.shape and torch.isfinite(x).all()
        assert (x.double() - true).norm() <= bound_of_error * true.norm()


def test_compiled_is_the_choice_on_a_cpu_and_a_proper_operator() -> None:
    skip_without("compiled")
    z = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    bound = torch.linspace(0, 0.9, 7, requires_grad=True)
    for lower_bound in (None, bound):
        assert all(map(torch.equal, forget_gate(z, lower_bound), forget_gate(z, lower_bound, impl="compiled")))
        torch.library.opcheck(compiled_forget_gate, (z, lower_bound))


def test_the_bounds_gradient_does_not_depend_on_threads() -> None:
    skip_without("compiled")
    z = torch.randn(1000, 24, generator=torch.Generator().manual_seed(0))
    bound = torch.linspace(0, 0.9, 24)
    before, grads = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            grads.append(truth_and_compiled(z, bound)[1][-1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*grads)


def test_unknown_implementations_are_named() -> None:
    with pytest.raises(ValueError, match="impl='magic' is none of torch, compiled, triton"):
        forget_gate(torch.zeros(3), impl="magic")
