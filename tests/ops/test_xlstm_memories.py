"""mLSTM and sLSTM against their recurrences written out, in float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hgrnx.ops import MLSTMMemory, mlstm, slstm

GATES = {
    "usual": (1.0, 3.0),
    "strong": (10.0, 0.0),
    "faint": (-40.0, -5.0),
    "closed": (0.0, -60.0),
    "huge": (100.0, 9.0),
}


def mlstm_written_out(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
    C, n, m = memory
    k = k * k.shape[-1] ** -0.5
    outputs = []
    for t in range(q.shape[2]):
        kept = F.logsigmoid(f[..., t]) + m
        m = torch.maximum(kept, i[..., t]).detach()
        kept, entering = (kept - m).exp()[..., None], (i[..., t] - m).exp()[..., None]
        C = kept[..., None] * C + (entering * k[:, :, t])[..., None] * v[:, :, t, None]
        n = kept * n + entering * k[:, :, t]
        total = (n * q[:, :, t]).sum(-1)
        norm = torch.maximum(total.abs(), (-m).exp()) + 1e-6
        outputs.append((C * q[:, :, t, :, None]).sum(-2) / norm[..., None])
    return torch.stack(outputs, 2), C, n, m


def mlstm_inputs(B: int, H: int, T: int, K: int, V: int, gates: str, with_memory: bool, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    enter, forget = GATES[gates]
    memory = [normal(B, H, K, V), normal(B, H, K), enter + normal(B, H)]
    if not with_memory:
        memory = [torch.zeros(B, H, K, V), torch.zeros(B, H, K), torch.full((B, H), -torch.inf)]
    sequence = [normal(B, H, T, K), normal(B, H, T, K), normal(B, H, T, V)]
    sequence += [enter + 2 * normal(B, H, T), forget + 2 * normal(B, H, T)]
    return [x.double() for x in (*sequence, *memory)]


def run_mlstm(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Outputs, memory, and gradients of everything but m."""
    leaves = [x.to(dtype).requires_grad_(n < 7) for n, x in enumerate(inputs)]
    o, C, n, m = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(x.shape, generator=generator).to(x) for x in (o, C, n)]
    return [o, C, n, m, *torch.autograd.grad([o, C, n], leaves[:7], seeds)]


def chunked(*leaves: Tensor) -> tuple[Tensor, ...]:
    o, memory = mlstm(*leaves[:5], MLSTMMemory(*leaves[5:]))
    return o, *memory


def worst(given: list[Tensor], truth: list[Tensor]) -> float:
    errors = [(a.double() - b).norm() / b.norm().clamp(min=1e-25) for a, b in zip(given, truth, strict=True)]
    return float(torch.stack(errors).detach().max())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    T=st.one_of(st.integers(1, 9), st.integers(60, 150)),
    K=st.integers(1, 9),
    gates=st.sampled_from(sorted(GATES)),
    with_memory=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_mlstm_agrees_with_the_recurrence(T: int, K: int, gates: str, with_memory: bool, seed: int) -> None:
    inputs = mlstm_inputs(2, 2, T, K, 5, gates, with_memory, seed)
    truth = run_mlstm(mlstm_written_out, inputs, torch.float64)
    assert worst(run_mlstm(chunked, inputs, torch.float64), truth) < 1e-8
    assert all(x.isfinite().all() for x in run_mlstm(chunked, inputs, torch.float32))


@pytest.mark.parametrize("gates", sorted(GATES))
@pytest.mark.parametrize("T", [1, 20, 64, 65])
def test_mlstm_without_a_memory_is_that_from_an_empty_one(T: int, gates: str) -> None:
    *sequence, C, n, m = mlstm_inputs(3, 2, T, 4, 5, gates, False, 0)
    padding = torch.arange(T) >= torch.tensor([T, 1, max(1, T // 2)])[:, None]

    def results(memory: MLSTMMemory | None) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in sequence]
        o, after = mlstm(*leaves, memory, padding)
        o = o.masked_fill(padding[:, None, :, None], 0.0)
        grads = torch.autograd.grad([o, after.C_BHKV, after.n_BHK], leaves, [o.cos().detach(), C + 1, n + 1])
        return [o, *after, *grads]

    torch.testing.assert_close(results(None), results(MLSTMMemory(C, n, m)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gates", ["usual", "strong", "faint"])
def test_mlstm_in_float32(gates: str) -> None:
    inputs = [x.float().double() for x in mlstm_inputs(2, 2, 200, 16, 16, gates, True, 0)]
    truth = run_mlstm(mlstm_written_out, inputs, torch.float64)
    assert worst(run_mlstm(chunked, inputs, torch.float32), truth) < 2e-4


def test_mlstm_is_the_papers_without_the_stabiliser() -> None:
    """Equations 19 to 27, where exponentials are small enough to be written down."""
    q, k, v, i, f, *_ = mlstm_inputs(1, 1, 100, 4, 3, "usual", False, 0)
    o, _ = mlstm(q, k, v, i, f)
    C, n = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for t in range(100):
        gate, enter = f[0, 0, t].sigmoid(), i[0, 0, t].exp()
        C = gate * C + enter * torch.outer(k[0, 0, t] / 2, v[0, 0, t])
        n = gate * n + enter * k[0, 0, t] / 2
        wanted = q[0, 0, t] @ C / max(abs(float(n @ q[0, 0, t])), 1.0)
        torch.testing.assert_close(o[0, 0, t], wanted, rtol=1e-3, atol=1e-6)


def test_mlstm_padding_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    *sequence, C, n, m = mlstm_inputs(3, 2, 150, 4, 4, "usual", True, 0)
    memory = MLSTMMemory(C, n, m)
    padding = torch.arange(150) >= torch.tensor([150, 3, 70])[:, None]
    o, after = mlstm(*sequence, memory, padding)
    monkeypatch.setattr(importlib.import_module("hgrnx.ops.mlstm"), "_CHUNK", 7)
    for row, length in enumerate((150, 3, 70)):
        part = slice(row, row + 1)
        alone = [x[part, :, :length] for x in sequence]
        o_alone, after_alone = mlstm(*alone, MLSTMMemory(*(x[part] for x in memory)))
        torch.testing.assert_close(o[part, :, :length], o_alone)
        torch.testing.assert_close([x[part] for x in after], [*after_alone])


def slstm_written_out(gates: Tensor, recurrent: Tensor) -> Tensor:
    """Equations 8 to 17 without the stabiliser."""
    B, T, H, _, K = gates.shape
    y = c = n = gates.new_zeros(B, H, K)
    outputs = []
    for t in range(T):
        i, f, z, o = (gates[:, t] + torch.einsum("bhk,hkgl->bhgl", y, recurrent)).unbind(2)
        c = f.sigmoid() * c + i.exp() * z.tanh()
        n = f.sigmoid() * n + i.exp()
        y = o.sigmoid() * c / n
        outputs.append(y)
    return torch.stack(outputs, 1)


def slstm_inputs(T: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gates = torch.randn(3, T, 2, 4, 5, generator=generator, dtype=torch.float64)
    gates[:, :, :, 0] += shift
    return gates * 2, torch.randn(2, 5, 4, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shift", [0.0, 40.0, -40.0])
def test_slstm_agrees_with_the_recurrence(shift: float) -> None:
    gates, recurrent = (x.requires_grad_() for x in slstm_inputs(30, shift))
    y, _ = slstm(gates, recurrent)
    truth = slstm_written_out(gates, recurrent)
    torch.testing.assert_close(y, truth)
    seeds = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for given_, wanted in zip(*(torch.autograd.grad(x, (gates, recurrent), seeds) for x in (y, truth)), strict=True):
        torch.testing.assert_close(given_, wanted)


def test_slstm_bears_any_input_gate() -> None:
    gates, recurrent = slstm_inputs(20)
    gates[:, ::2, :, 0] = 500.0
    gates[:, 1::2, :, 0] = -500.0
    gates.requires_grad_()
    y, _ = slstm(gates.float(), recurrent.float())
    y.sum().backward()
    assert y.isfinite().all() and gates.grad is not None and gates.grad.isfinite().all()


def test_slstm_padding_and_continuation() -> None:
    gates, recurrent = slstm_inputs(20)
    whole, end = slstm(gates, recurrent)
    lengths = (20, 1, 7)
    _, middle = slstm(gates, recurrent, None, torch.arange(20) >= torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        part = slice(row, row + 1)
        first, alone = slstm(gates[part, :length], recurrent)
        torch.testing.assert_close(first, whole[part, :length])
        torch.testing.assert_close([x[part] for x in middle], [*alone])
        if length < 20:
            second, last = slstm(gates[part, length:], recurrent, alone)
            torch.testing.assert_close(second, whole[part, length:])
            torch.testing.assert_close([*last], [x[part] for x in end])
