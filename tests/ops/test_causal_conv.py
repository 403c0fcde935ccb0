from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hgrnx.ops import causal_conv


def make_inputs(B: int = 2, T: int = 9, C: int = 5, K: int = 4) -> list[Tensor]:
    """x, weight, bias and past, in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, T, C), (C, K), (C,), (B, K - 1, C))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("T", [1, 2, 9])
@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("with_past", [True, False])
def test_it_is_torchs_convolution_looking_backwards(T: int, K: int, with_past: bool) -> None:
    x, weight, bias, past = make_inputs(T=T, K=K)
    y, last = causal_conv(x, weight, bias, past if with_past else None)
    window = torch.cat((past if with_past else torch.zeros_like(past), x), 1)
    torch.testing.assert_close(y, F.conv1d(window.mT, weight[:, None], bias, groups=5).mT)
    assert torch.equal(last, window[:, -(K - 1) :])


def test_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in make_inputs(T=6)]
    assert torch.autograd.gradcheck(causal_conv, (*inputs, torch.tensor([6, 2])))


def test_padding_stays_out_of_the_last_inputs() -> None:
    x, weight, bias, past = make_inputs(B=3)
    _, last = causal_conv(x, weight, bias, past, torch.tensor([9, 1, 4]))
    for row, length in enumerate((9, 1, 4)):
        _, alone = causal_conv(x[row : row + 1, :length], weight, bias, past[row : row + 1])
        assert torch.equal(last[row], alone[0])


def test_bfloat16_keeps_the_types_of_the_arguments() -> None:
    exact = [x.requires_grad_() for x in make_inputs(T=40)]
    leaves = [x.detach().to(torch.float32).requires_grad_() for x in exact]
    y, _ = causal_conv(leaves[0].bfloat16(), *leaves[1:])
    assert y.dtype == torch.bfloat16
    wanted = torch.autograd.grad(causal_conv(*exact)[0].square().sum(), exact)
    for given, gradient in zip(torch.autograd.grad(y.float().square().sum(), leaves), wanted):
        assert given.dtype == torch.float32
        assert (given.double() - gradient).norm() / gradient.norm() < 2e-2


@pytest.mark.parametrize("with_past", [True, False])
def test_packed_documents_are_separate(with_past: bool) -> None:
    """Also those shorter than the window, and without a bias."""
    lengths = (1, 9, 2, 4)
    x, weight, _, _ = make_inputs(B=1, T=sum(lengths))
    past = make_inputs(B=len(lengths))[3] if with_past else None
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, *([past] if past is not None else []))]
    y, last = causal_conv(x, weight, None, past, None, cu_seqlens)
    documents = x.split(lengths, 1)
    alone = [causal_conv(d, weight, None, past[[n]] if past is not None else None) for n, d in enumerate(documents)]
    expected = torch.cat([part for part, _ in alone], 1), torch.cat([part for _, part in alone])
    torch.testing.assert_close((y, last), expected)
    weights = [torch.randn(part.shape, generator=torch.Generator().manual_seed(1)).double() for part in expected]
    found, wanted = (
        torch.autograd.grad(sum((part * w).sum() for part, w in zip(parts, weights, strict=True)), leaves)
        for parts in ((y, last), expected)
    )
    torch.testing.assert_close(found, wanted)
