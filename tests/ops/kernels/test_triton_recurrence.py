"""The recurrence's kernels against the float64 recurrence. On a GPU bfloat16 too, and flash-linear-attention beside."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_cases import GATES, NAMES, errors, make_inputs, run, worst
from torch import Tensor

from hgrnx.ops import gated_linear_recurrence
from hgrnx.ops.triton_recurrence import _recurrence

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter is right in float32 only")


def error(
    inputs: list[Tensor | None], cu_seqlens: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Relative errors of outputs, last state and all gradients; q, k and v in ``dtype``, gates in float32."""
    inputs = [x if x is None or i > 2 else x.to(dtype).double() for i, x in enumerate(inputs)]
    truth = run(inputs, torch.float64, "reference", cu_seqlens=cu_seqlens)
    leaves = [
        None if x is None else x.to(DEVICE, dtype if i < 3 else torch.float32).requires_grad_()
        for i, x in enumerate(inputs)
    ]
    offsets = None if cu_seqlens is None else cu_seqlens.to(DEVICE)
    o, final = gated_linear_recurrence(*leaves, cu_seqlens=offsets, impl="triton")  # type: ignore[arg-type]
    assert o.dtype == dtype and final.dtype == torch.float32
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(x.shape, generator=generator).to(x) for x in (o, final)]
    wanted = [x for x in leaves if x is not None]
    grads = torch.autograd.grad([o, final], wanted, seeds)
    assert [g.dtype for g in grads] == [x.dtype for x in wanted]
    results = dict(zip(NAMES, (o, final, *grads)))
    worst(results, truth)  # everything is finite
    return errors(results, truth)


SIZES = st.integers(1, 24)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 2),
    T=st.one_of(st.integers(1, 4), st.integers(5, 140)),
    H=st.integers(1, 2),
    K=SIZES,
    V=SIZES,
    gates=st.sampled_from(GATES),
    with_state=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(
    B: int, T: int, H: int, K: int, V: int, gates: str, with_state: bool, seed: int
) -> None:
    inputs: list = make_inputs((B, T, H, K, V), gates, seed=seed)
    if not with_state:
        inputs[4] = None
    assert max(error(inputs).values()) < 2e-6


@pytest.mark.parametrize("gates", GATES)
def test_is_accurate_at_extreme_gates(gates: str) -> None:
    """Keys wider than a tile; a chunk and an odd rest."""
    assert max(error(make_inputs((1, 75, 2, 20, 17), gates)).values()) < 2e-6


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 5), st.integers(6, 130)), min_size=1, max_size=5),
    gates=st.sampled_from(GATES),
    with_state=st.booleans(),
)
def test_packed_documents(lengths: list[int], gates: str, with_state: bool) -> None:
    inputs: list = make_inputs((1, sum(lengths), 1, 6, 5), gates, states=len(lengths))
    if not with_state:
        inputs[4] = None
    assert max(error(inputs, torch.tensor([0, *lengths]).cumsum(0)).values()) < 2e-6


def test_the_state_continues_a_sequence() -> None:
    *sequence, state = (x.float().to(DEVICE) for x in make_inputs((1, 100, 1, 8, 8)))
    whole, final = gated_linear_recurrence(*sequence, state, impl="triton")
    first, middle = gated_linear_recurrence(*(x[:, :37] for x in sequence), state, impl="triton")
    second, last = gated_linear_recurrence(*(x[:, 37:] for x in sequence), middle, impl="triton")
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, final)


def test_heads_and_rows_in_any_memory_layout() -> None:
    inputs = [x.float().to(DEVICE) for x in make_inputs((2, 9, 3, 4, 5))]
    expected = gated_linear_recurrence(*inputs, impl="triton")
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    torch.testing.assert_close(gated_linear_recurrence(*strided, impl="triton"), expected)


def loss(*inputs: Tensor) -> Tensor:
    o, final = gated_linear_recurrence(*inputs, impl="triton")
    return o.square().sum() + final.square().sum()


def gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves)


def test_stays_in_a_compiled_graph() -> None:
    inputs = [x.float().to(DEVICE) for x in make_inputs((1, 5, 1, 3, 2))]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, inputs), gradients(loss, inputs))


@pytest.mark.parametrize("packed", [False, True])
def test_is_a_proper_torch_operator(packed: bool) -> None:
    inputs: list = [
        x.float().to(DEVICE).requires_grad_() for x in make_inputs((1, 5, 1, 3, 2), states=2 if packed else 1)
    ]
    offsets = torch.tensor([0, 2, 5], device=DEVICE) if packed else None
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(_recurrence, (*inputs, offsets), test_utils=tests)


@needs_gpu
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", [(2, 1, 2, 64, 64), (2, 63, 2, 64, 32), (1, 257, 3, 128, 128), (1, 300, 2, 80, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(gates: str, shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    found = error(make_inputs(shape, gates), dtype=dtype)
    if dtype == torch.float32:
        assert max(found.values()) < 1e-5
        return
    of_gates = found.pop("dlog_f")
    assert max(found.values()) < 1e-2
    assert of_gates < (5e-2 if gates in ("1e-4", "1e-30", "closed") else 1e-2)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_documents_on_a_gpu(dtype: torch.dtype) -> None:
    inputs = make_inputs((1, 300, 2, 64, 64), states=4)
    found = error(inputs, torch.tensor([0, 1, 130, 131, 300]), dtype)
    assert max(found.values()) < (1e-5 if dtype == torch.float32 else 1e-2)


@needs_gpu
def test_under_autocast() -> None:
    leaves = [x.float().cuda().requires_grad_() for x in make_inputs((2, 130, 2, 32, 32))]
    truth = gated_linear_recurrence(*leaves, impl="reference")[0]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        o, final = gated_linear_recurrence(*leaves, impl="triton")
    assert o.dtype == final.dtype == torch.float32
    assert ((o - truth).norm() / truth.norm()).item() < 1e-2
