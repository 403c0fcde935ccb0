"""The gate's kernels against the formula in float64, and against the implementation for CPUs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hgrnx.ops import forget_gate

SHAPES = [(3, 37, 2, 20), (1, 1, 1, 5), (2, 300, 24)]


def bound_of(kind: str, shape: tuple[int, ...]) -> Tensor | None:
    """Bounds of the last axis, or of the last two."""
    if kind == "none":
        return None
    axes = shape[-1:] if kind == "per gate" else shape[-2:]
    return torch.linspace(0, 0.999, torch.Size(axes).numel()).view(axes)


def relative_error(x: Tensor, true: Tensor) -> float:
    assert torch.isfinite(x).all()
    return ((x.double().cpu() - true).norm() / true.norm()).item()


def gradients(
    z: Tensor, bound: Tensor | None, gate: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """log f, k, and the gradients of z and of the bound for fixed gradients of the two."""
    leaves = [x.detach().requires_grad_() for x in (z, bound) if x is not None]
    log_f, k = gate(leaves[0], leaves[1] if bound is not None else None)
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(z.shape, generator=generator).to(x) for x in (log_f, k)]
    return [log_f, k, *torch.autograd.grad([log_f, k], leaves, seeds)]


def formula(z: Tensor, bound: Tensor | None) -> tuple[Tensor, Tensor]:
    lb = 0.0 if bound is None else bound
    k = (1 - lb) * (-z).sigmoid()
    f = lb + (1 - lb) * z.sigmoid()
    return torch.where(k < 0.1, torch.log1p(-k.clamp(max=0.5)), f.log()), k


@pytest.mark.parametrize("kind", ["none", "per gate", "per head and gate"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1, 15])
def test_agrees_with_the_formula(kind: str, shape: tuple[int, ...], scale: float, device: str) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    bound = bound_of(kind, shape)
    truth = gradients(z.double(), None if bound is None else bound.double(), formula)
    ours = gradients(
        z.to(device), None if bound is None else bound.to(device), lambda z, lb: forget_gate(z, lb, impl="triton")
    )
    assert [x.dtype for x in ours] == [torch.float32] * len(ours)
    for x, true in zip(ours, truth, strict=True):
        assert x.shape == true.shape
        assert relative_error(x, true) < 2e-6


@pytest.mark.parametrize("kind", ["none", "per gate"])
def test_keeps_its_precision_next_to_0_and_1(kind: str, device: str) -> None:
    z = torch.linspace(-60, 60, 300).view(60, 5)
    bound = bound_of(kind, (5,))
    log_f, k = forget_gate(z.to(device), None if bound is None else bound.to(device), impl="triton")
    lb = torch.zeros(5).double() if bound is None else bound.double()
    k_true = (1 - lb) * (-z.double()).sigmoid()
    log_f_true = torch.where(k_true < 0.1, torch.log1p(-k_true), (lb + (1 - lb) * z.double().sigmoid()).log())
    # A device's exponential of -60 is as exact as its argument times log2(e).
    torch.testing.assert_close(k.cpu().double(), k_true, rtol=1e-5, atol=1e-37)
    torch.testing.assert_close(log_f.cpu().double(), log_f_true, rtol=1e-5, atol=1e-37)
    assert (log_f <= 0).all()


@pytest.mark.parametrize("kind", ["none", "per gate"])
def test_gradients_at_the_extremes_are_those_of_the_other_implementation(kind: str, device: str) -> None:
    # Between -83 and -103, f is not 0 yet but smaller than what is taken for it: each may do there what it likes.
    z = torch.cat((torch.linspace(-80, 300, 190), torch.linspace(-300, -110, 10))).view(40, 5)
    bound = bound_of(kind, (5,))
    expected = gradients(z, bound, lambda z, lb: forget_gate(z, lb, impl="torch"))
    on_device = (z.to(device), None if bound is None else bound.to(device))
    ours = gradients(*on_device, lambda z, lb: forget_gate(z, lb, impl="triton"))
    for x, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(x.cpu(), other, rtol=1e-5, atol=1e-37)


def test_takes_what_is_not_contiguous_and_not_float32(device: str) -> None:
    z = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0)).to(device).bfloat16()
    bound = torch.linspace(0, 0.9, 6, device=device).bfloat16()
    ours = gradients(z.transpose(0, 2), bound, lambda z, lb: forget_gate(z, lb, impl="triton"))
    expected = gradients(z.transpose(0, 2).contiguous(), bound, lambda z, lb: forget_gate(z, lb, impl="torch"))
    for x, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("bounded", [False, True])
def test_is_a_proper_torch_operator(bounded: bool, device: str) -> None:
    z = torch.randn(2, 3, 4, device=device, requires_grad=True)
    bound = torch.full((4,), 0.25, device=device, requires_grad=True) if bounded else None
    torch.library.opcheck(torch.ops.hgrnx.forget_gate.default, (z, bound))


def test_stays_in_a_compiled_graph(device: str) -> None:
    z = torch.randn(2, 3, 4, device=device)
    bound = torch.full((4,), 0.25, device=device)

    def loss(z: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        log_f, k = forget_gate(z * 2, bound, impl="triton")
        return log_f, k.square()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for x, other in zip(gradients(z, bound, compiled), gradients(z, bound, loss), strict=True):
        torch.testing.assert_close(x, other)


def test_no_tokens(device: str) -> None:
    z = torch.zeros(0, 4, device=device, requires_grad=True)
    bound = torch.full((4,), 0.25, device=device, requires_grad=True)
    log_f, k = forget_gate(z, bound, impl="triton")
    assert log_f.shape == k.shape == (0, 4)
    _, d_bound = torch.autograd.grad(log_f.sum() + k.sum(), (z, bound))
    assert (d_bound == 0).all()
