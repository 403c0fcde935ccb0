"""silu(x) y and its gradients, compiled and in plain torch."""

import pytest
import torch
from recurrence_cases import skip_without

from hgrnx.ops import gated_unit
from hgrnx.ops.gated_unit import _compiled

SIZES = [(1,), (3, 37), (5, 4099)]


def results(x: torch.Tensor, y: torch.Tensor, impl: str | None) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_(), y.detach().requires_grad_()]
    out = gated_unit(*leaves, impl=impl)
    seed = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)
    return [out, *torch.autograd.grad(out, leaves, seed)]


def make(size: tuple[int, ...], scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(size, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1, 40])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_agrees_with_float64(size: tuple[int, ...], scale: float, dtype: torch.dtype, bound: float) -> None:
    skip_without("compiled")
    x, y = (a.to(dtype) for a in make(size, scale))
    for ours, true in zip(results(x, y, "compiled"), results(x.double(), y.double(), "torch"), strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - true).norm() <= bound * true.norm()


def test_gradcheck() -> None:
    x, y = (a.double().requires_grad_() for a in make((3, 5), 2))
    assert torch.autograd.gradcheck(gated_unit, (x, y))


def test_strides_of_all_kinds() -> None:
    skip_without("compiled")
    x, y = make((6, 8), 1)
    whole = results(x.mT.contiguous(), y.mT.contiguous(), "compiled")
    for ours, expected in zip(results(x.mT, y.mT, "compiled"), whole, strict=True):
        assert torch.equal(ours, expected)


def test_it_is_a_proper_operator_and_the_choice_on_a_cpu() -> None:
    skip_without("compiled")
    x, y = (a.requires_grad_() for a in make((3, 37), 1))
    torch.library.opcheck(_compiled, (x, y))
    assert torch.equal(gated_unit(x, y), gated_unit(x, y, impl="compiled"))
    assert not torch.equal(gated_unit(x, y), gated_unit(x, y, impl="torch"))


def test_what_does_not_fit_is_named() -> None:
    x, y = make((3, 37), 1)
    for arguments, message in (
        ((x, y[:2]), "must be alike"),
        ((x, y.half()), "must be alike"),
        ((x, y, "triton"), "no impl='triton'"),
        ((x.double(), y.double(), "compiled"), "not for float64"),
    ):
        with pytest.raises(ValueError, match=message):
            gated_unit(*arguments)
