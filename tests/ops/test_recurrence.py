"""Every implementation that runs on a CPU against the float64 recurrence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_cases import GATES, NAMES, errors, make_inputs, run, skip_without, worst
from torch import Tensor

import hgrnx.ops.chunked as chunked
import hgrnx.ops.slabs as slabs
from hgrnx.ops import gated_linear_recurrence

SIZES = st.one_of(st.integers(1, 20), st.sampled_from([32, 33, 64, 70]))
FAST = pytest.mark.parametrize("impl", ["chunked", "compiled"])
ALL = pytest.mark.parametrize("impl", ["reference", "chunked", "compiled"])


def test_the_reference_is_the_recurrence() -> None:
    q, k, v, log_f, state = make_inputs((1, 3, 1, 2, 4))
    o, final = gated_linear_recurrence(q, k, v, log_f, state, impl="reference")
    S = state[0, 0]
    for t in range(3):
        S = log_f[0, t, 0].exp().diag() @ S + torch.outer(k[0, t, 0], v[0, t, 0])
        torch.testing.assert_close(o[0, t, 0], S.T @ q[0, t, 0])
    torch.testing.assert_close(final[0, 0], S)


@FAST
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 4),
    T=st.one_of(st.integers(1, 18), st.integers(19, 200)),
    H=st.integers(1, 4),
    K=SIZES,
    V=SIZES,
    gates=st.sampled_from(GATES),
    with_state=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(
    impl: str, B: int, T: int, H: int, K: int, V: int, gates: str, with_state: bool, seed: int
) -> None:
    inputs: list = make_inputs((B, T, H, K, V), gates, seed=seed)
    if not with_state:
        inputs[4] = None
    truth = run(inputs, torch.float64, "reference")
    assert worst(run(inputs, torch.float64, impl), truth) < 1e-12
    assert worst(run(inputs, torch.float32, impl), truth) < 1e-5


@FAST
@pytest.mark.parametrize("gates", GATES)
def test_long_sequences(gates: str, impl: str) -> None:
    inputs = make_inputs((2, 1100, 2, 64, 64), gates)
    truth = run(inputs, torch.float64, "reference")
    assert worst(run(inputs, torch.float32, impl), truth) < 2e-6


@pytest.mark.parametrize("elements", [1, 2**10, 2**12, 2**30])
def test_the_cut_into_slabs_changes_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs((3, 70, 5, 8, 6))
    truth = run(inputs, torch.float64, "reference")
    monkeypatch.setattr(slabs, "SLAB_ELEMENTS", elements)
    assert worst(run(inputs, torch.float64, "chunked"), truth) < 1e-12


@FAST
@pytest.mark.parametrize("gates", GATES)
def test_under_bf16_autocast(gates: str, impl: str) -> None:
    """As in training: q, k, v in bfloat16, gates in float32, the backward outside of autocast."""
    skip_without(impl)
    inputs = make_inputs((2, 130, 2, 32, 32), gates)
    inputs[:3] = [x.bfloat16().double() for x in inputs[:3]]
    truth = run(inputs, torch.float64, "reference")
    leaves = [x.to(torch.bfloat16 if i < 3 else torch.float32).requires_grad_() for i, x in enumerate(inputs)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, final = gated_linear_recurrence(*leaves, impl=impl)
    assert o.dtype == torch.bfloat16 and final.dtype == torch.float32
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(x.shape, generator=generator).to(x) for x in (o, final)]
    grads = torch.autograd.grad([o, final], leaves, seeds)
    assert [g.dtype for g in grads] == [x.dtype for x in leaves]
    assert worst(dict(zip(NAMES, (o, final, *grads))), truth) < 5e-3


@ALL
def test_gradcheck(impl: str) -> None:
    skip_without(impl)
    inputs = [x.requires_grad_() for x in make_inputs((2, 11, 2, 3, 2))]
    assert torch.autograd.gradcheck(lambda *x: gated_linear_recurrence(*x, impl=impl), inputs)


@ALL
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 5), st.integers(6, 90)), min_size=1, max_size=12),
    with_state=st.booleans(),
)
def test_packed_documents_equal_separate_ones(lengths: list[int], with_state: bool, impl: str) -> None:
    skip_without(impl)
    T, N = sum(lengths), len(lengths)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    *sequence, states = make_inputs((1, T, 2, 6, 5), states=N)
    leaves = [x.requires_grad_() for x in (*sequence, states)]
    given = leaves[4] if with_state else None
    packed = gated_linear_recurrence(*leaves[:4], given, cu_seqlens, impl=impl)
    outputs, finals = [], []
    for n, (a, b) in enumerate(zip(cu_seqlens[:-1], cu_seqlens[1:])):
        state = leaves[4][n : n + 1] if with_state else None
        o, final = gated_linear_recurrence(*(x[:, a:b] for x in leaves[:4]), state, impl="reference")
        outputs.append(o)
        finals.append(final)
    separate = torch.cat(outputs, 1), torch.cat(finals)
    torch.testing.assert_close(packed, separate)
    wanted = leaves if with_state else leaves[:4]
    grads = [torch.autograd.grad([(x**2).sum() for x in results], wanted) for results in (packed, separate)]
    torch.testing.assert_close(*grads)


@ALL
@pytest.mark.parametrize("cut", [1, 31, 32, 33, 79])
def test_the_state_continues_a_sequence(impl: str, cut: int) -> None:
    skip_without(impl)
    *sequence, state = make_inputs((2, 80, 2, 8, 8))
    whole, final = gated_linear_recurrence(*sequence, state, impl=impl)
    first, middle = gated_linear_recurrence(*(x[:, :cut] for x in sequence), state, impl=impl)
    second, last = gated_linear_recurrence(*(x[:, cut:] for x in sequence), middle, impl=impl)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, final)


@FAST
def test_inputs_are_left_alone(impl: str) -> None:
    """Copies of them are overwritten in the course of the computation."""
    inputs = [x.float() for x in make_inputs((1, 32, 1, 4, 4))]
    before = [x.clone() for x in inputs]
    run(inputs, torch.float32, impl)
    for x, y in zip(inputs, before):
        assert torch.equal(x, y)


@FAST
def test_denormals_are_as_the_caller_had_them(impl: str) -> None:
    skip_without(impl)
    inputs = [x.float() for x in make_inputs((1, 8, 1, 4, 4))]
    gated_linear_recurrence(*inputs, impl=impl)
    assert (torch.tensor(1e-39) * 1.0).item() != 0.0


@FAST
def test_only_the_output_is_used(impl: str) -> None:
    """The usual case in training: no gradient reaches the last state."""
    skip_without(impl)
    leaves = [x.requires_grad_() for x in make_inputs((2, 40, 2, 8, 8))]
    grads = [
        dict(zip(NAMES, torch.autograd.grad(gated_linear_recurrence(*leaves, impl=name)[0].sum(), leaves)))
        for name in (impl, "reference")
    ]
    assert max(errors(*grads).values()) < 1e-12


@pytest.mark.parametrize("with_state", [False, True])
def test_the_chunked_one_is_a_proper_torch_operator(with_state: bool) -> None:
    *sequence, state = (x.requires_grad_() for x in make_inputs((2, 9, 2, 3, 4)))
    torch.library.opcheck(chunked._forward, (*sequence, state if with_state else None))


def test_the_chunked_one_stays_in_a_compiled_graph() -> None:
    def loss(*inputs: Tensor) -> Tensor:
        o, final = gated_linear_recurrence(*inputs, impl="chunked")
        return o.sin().sum() + final.square().sum()

    leaves = [x.float().requires_grad_() for x in make_inputs((2, 20, 2, 8, 6))]
    whole = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(*(torch.autograd.grad(f(*leaves), leaves) for f in (whole, loss)))


def test_unknown_implementation() -> None:
    inputs = make_inputs((1, 2, 1, 2, 2))
    with pytest.raises(ValueError, match="'magic' is none of reference, chunked, compiled, fla, triton"):
        gated_linear_recurrence(*inputs, impl="magic")
    with pytest.raises(ValueError, match="impl='fla' needs tensors on a GPU"):
        gated_linear_recurrence(*inputs, impl="fla")


@pytest.mark.parametrize(
    ("position", "name", "shape"),
    [
        (0, "q", (2, 5, 8)),
        (1, "k", (2, 5, 2, 7)),
        (2, "v", (2, 4, 2, 3)),
        (3, "log_f", (2, 5, 1, 8)),
        (4, "initial_state", (2, 2, 3, 8)),
    ],
)
def test_wrong_shapes_are_named(position: int, name: str, shape: tuple[int, ...]) -> None:
    inputs = make_inputs((2, 5, 2, 8, 3))
    inputs[position] = torch.zeros(shape)
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        gated_linear_recurrence(*inputs)


@pytest.mark.parametrize("offsets", [[0, 3], [1, 5], [0, 3, 3, 5], [0, 4, 3, 5], [5]])
def test_wrong_offsets(offsets: list[int]) -> None:
    *sequence, _ = make_inputs((1, 5, 2, 8, 3))
    with pytest.raises(ValueError, match="cu_seqlens must"):
        gated_linear_recurrence(*sequence, None, torch.tensor(offsets))


def test_offsets_need_a_batch_of_one() -> None:
    *sequence, _ = make_inputs((2, 5, 2, 8, 3))
    with pytest.raises(ValueError, match="batch of 1"):
        gated_linear_recurrence(*sequence, None, torch.tensor([0, 5]))


def test_no_tokens() -> None:
    *sequence, _ = make_inputs((1, 0, 2, 8, 3))
    with pytest.raises(ValueError, match="no tokens"):
        gated_linear_recurrence(*sequence)
