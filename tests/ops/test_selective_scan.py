"""The selective scan against the recurrence written out, in float64."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_cases import skip_without
from torch import Tensor

from hgrnx.ops import selective_scan
from hgrnx.ops.compiled_scan import compiled_selective_scan
from hgrnx.ops.library import compiled_status

module = importlib.import_module("hgrnx.ops.selective_scan")  # hgrnx.ops has the function under this name
NAMES = ("y", "last", "du", "d_dt", "dA", "db", "dc", "d_initial")


def written_out(
    u: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    h = u.new_zeros(u.shape[0], *A.shape) if state is None else state
    outputs = []
    for u_t, dt_t, b_t, c_t in zip(u.unbind(1), dt.unbind(1), b.unbind(1), c.unbind(1)):
        h = (dt_t[..., None] * A).exp() * h + (dt_t * u_t)[..., None] * b_t[:, None]
        outputs.append((h * c_t[:, None]).sum(-1))
    return torch.stack(outputs, 1), h


def make_inputs(B: int, T: int, C: int, S: int, steps: str = "usual", seed: int = 0) -> list[Tensor]:
    """float32 values in float64: u, dt, A, b, c and an initial state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    exponents = {"usual": -1.0, "tiny": -6.0, "huge": 2.0}
    if steps == "mixed":
        dt = 10 ** (torch.rand(B, T, C, generator=generator) * 10 - 8)
        dt = torch.where(torch.rand(B, T, C, generator=generator) < 0.2, 0.0, dt)
    else:
        dt = 10 ** (exponents[steps] + 0.5 * normal(B, T, C))
    A = -torch.arange(1, S + 1) * (0.5 + torch.rand(C, S, generator=generator))
    inputs = [normal(B, T, C), dt, A, normal(B, T, S), normal(B, T, S), normal(B, C, S)]
    return [x.float().double() for x in inputs]


def run(function: object, inputs: Sequence[Tensor | None], dtype: torch.dtype) -> dict[str, Tensor]:
    leaves = [None if x is None else x.to(dtype).requires_grad_() for x in inputs]
    results = function(*leaves)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(x.shape, generator=generator).to(x) for x in results]
    wanted = [x for x in leaves if x is not None]
    return dict(zip(NAMES, (*results, *torch.autograd.grad(results, wanted, seeds))))


def worst(results: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    assert results.keys() == truth.keys()
    errors = [(results[name].double() - truth[name]).norm() / truth[name].norm().clamp(min=1e-30) for name in truth]
    return float(torch.stack(errors).detach().max())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 5),
    T=st.one_of(st.integers(1, 9), st.integers(10, 80)),
    C=st.integers(1, 12),
    S=st.integers(1, 9),
    steps=st.sampled_from(["usual", "tiny", "huge", "mixed"]),
    with_state=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chunked_agrees_with_the_recurrence(
    B: int, T: int, C: int, S: int, steps: str, with_state: bool, seed: int
) -> None:
    inputs: list[Tensor | None] = [*make_inputs(B, T, C, S, steps, seed)]
    if not with_state:
        inputs[5] = None
    truth = run(written_out, inputs, torch.float64)
    assert worst(run(selective_scan, inputs, torch.float64), truth) < 1e-11
    for impl in ("chunked", "compiled") if compiled_status().available else ("chunked",):
        assert worst(run(partial(selective_scan, impl=impl), inputs, torch.float32), truth) < 1e-5, impl


@pytest.mark.parametrize(("step", "chunk"), [(1, 1), (40, 100), (40, 10**6), (10**6, 300)])
def test_the_cut_into_slabs_and_chunks_changes_nothing(step: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(5, 70, 6, 4)
    truth = run(written_out, inputs, torch.float64)
    monkeypatch.setattr(module, "_STEP_ELEMENTS", step)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    assert worst(run(selective_scan, inputs, torch.float64), truth) < 1e-12


@pytest.mark.parametrize("channels", [1, 16, 127, 128, 129, 300])
@pytest.mark.parametrize("with_state", [False, True])
def test_compiled_in_several_parts(channels: int, with_state: bool) -> None:
    skip_without("compiled")
    inputs: list[Tensor | None] = [*make_inputs(2, 70, channels, 5, "mixed")]
    if not with_state:
        inputs[5] = None
    truth = run(written_out, inputs, torch.float64)
    assert worst(run(partial(selective_scan, impl="compiled"), inputs, torch.float32), truth) < 2e-6


def test_compiled_does_not_depend_on_threads() -> None:
    skip_without("compiled")
    inputs = make_inputs(2, 40, 200, 4)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(partial(selective_scan, impl="compiled"), inputs, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0][name], results[1][name]) for name in NAMES)


def test_compiled_is_the_choice_on_a_cpu() -> None:
    skip_without("compiled")
    inputs = [x.float() for x in make_inputs(2, 40, 20, 4)]
    ours, compiled, chunked = (selective_scan(*inputs, impl=impl)[0] for impl in (None, "compiled", "chunked"))
    assert torch.equal(ours, compiled) and not torch.equal(ours, chunked)
    with pytest.raises(ValueError, match="not for float64"):
        selective_scan(*(x.double() for x in inputs), impl="compiled")


def test_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in make_inputs(2, 7, 3, 2)]
    assert torch.autograd.gradcheck(selective_scan, inputs)


@pytest.mark.parametrize("used", [0, 1])
def test_only_one_result_is_used(used: int) -> None:
    leaves = [x.requires_grad_() for x in make_inputs(2, 40, 3, 2)]
    wanted = [leaf for n, leaf in enumerate(leaves) if n != 4 or used == 0]  # c has no part in the last state
    ours, expected = (torch.autograd.grad(f(*leaves)[used].sum(), wanted) for f in (selective_scan, written_out))
    torch.testing.assert_close(ours, expected)


def test_under_bf16_autocast() -> None:
    """As in training: everything but the steps and A in bfloat16."""
    inputs = make_inputs(2, 50, 16, 4)
    inputs = [x if n in (1, 2) else x.bfloat16().double() for n, x in enumerate(inputs)]
    truth = run(written_out, inputs, torch.float64)
    leaves = [x.to(torch.float32 if n in (1, 2, 5) else torch.bfloat16).requires_grad_() for n, x in enumerate(inputs)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = selective_scan(*leaves)
    assert y.dtype == torch.bfloat16 and last.dtype == torch.float32
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(x.shape, generator=generator).to(x) for x in (y, last)]
    grads = torch.autograd.grad([y, last], leaves, seeds)
    assert [g.dtype for g in grads] == [x.dtype for x in leaves]
    assert worst(dict(zip(NAMES, (y, last, *grads))), truth) < 1e-2


@pytest.mark.parametrize("cut", [1, 31, 32, 33, 79])
def test_the_state_continues_a_sequence(cut: int) -> None:
    u, dt, A, b, c, state = make_inputs(2, 80, 4, 3)
    whole, last = selective_scan(u, dt, A, b, c, state)
    first, middle = selective_scan(*(x[:, :cut] for x in (u, dt)), A, *(x[:, :cut] for x in (b, c)), state)
    second, end = selective_scan(*(x[:, cut:] for x in (u, dt)), A, *(x[:, cut:] for x in (b, c)), middle)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(end, last)


def test_arguments_and_denormals_are_left_alone() -> None:
    inputs = [x.float() for x in make_inputs(2, 40, 4, 4)]
    before = [x.clone() for x in inputs]
    leaves = [x.requires_grad_() for x in inputs]
    y, last = selective_scan(*leaves)
    seeds = [torch.ones_like(y), torch.ones_like(last)]
    torch.autograd.grad([y, last], leaves, seeds)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))
    assert all((seed == 1).all() for seed in seeds)
    assert (torch.tensor(1e-39) * 1.0).item() != 0.0


@pytest.mark.parametrize("with_state", [False, True])
def test_is_a_proper_torch_operator(with_state: bool) -> None:
    *inputs, state = (x.requires_grad_() for x in make_inputs(2, 35, 3, 2))
    torch.library.opcheck(module._chunked_scan, (*inputs, state if with_state else None))
    if compiled_status().available:
        single = [x.detach().float().requires_grad_() for x in (*inputs, state)]
        torch.library.opcheck(compiled_selective_scan, (*single[:5], single[5] if with_state else None))


def test_stays_in_a_compiled_graph() -> None:
    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        y, last = selective_scan(*inputs)
        return y.sin().sum() + last.square().sum()

    leaves = [x.float().requires_grad_() for x in make_inputs(2, 35, 3, 2)]
    whole = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(*(torch.autograd.grad(f(*leaves), leaves) for f in (whole, loss)))


def test_refusals() -> None:
    inputs = make_inputs(1, 3, 2, 2)
    with pytest.raises(ValueError, match="'magic' is none of chunked, compiled, mamba_ssm"):
        selective_scan(*inputs, impl="magic")
    with pytest.raises(ValueError, match="takes no initial state"):
        selective_scan(*inputs, impl="mamba_ssm")
    for position, (name, shape) in enumerate(
        [("u", (1, 0, 2)), ("dt", (1, 3, 1)), ("A", (1, 2)), ("b", (1, 2, 2)), ("c", (1, 3, 1)), ("init", (1, 2, 1))]
    ):
        wrong = list(inputs)
        wrong[position] = torch.zeros(shape)
        with pytest.raises(ValueError, match=f"selective_scan: {name}"):
            selective_scan(*wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mamba_ssm_agrees_with_the_recurrence(dtype: torch.dtype) -> None:
    pytest.importorskip("mamba_ssm")
    inputs = [x.to(dtype).double() for x in make_inputs(2, 130, 64, 16)[:5]]
    truth = {name: x for name, x in run(written_out, inputs, torch.float64).items() if name != "last"}
    leaves = [x.to("cuda", torch.float32 if n == 2 else dtype).requires_grad_() for n, x in enumerate(inputs)]
    y, last = selective_scan(*leaves)
    seeds = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    last_truth = written_out(*inputs)[1]
    assert (last.double().cpu() - last_truth).norm() / last_truth.norm() < (1e-5 if dtype == torch.float32 else 1e-2)
    # Without a gradient from the last state, which the kernel does not pass on.
    wanted = [x.requires_grad_() for x in inputs]
    exact = written_out(*wanted)[0]
    truth = dict(zip(NAMES[2:], torch.autograd.grad(exact, wanted, seeds.double().cpu())))
    results = dict(zip(NAMES[2:], (g.cpu() for g in torch.autograd.grad(y, leaves, seeds))))
    assert worst({"y": y.detach().cpu(), **results}, {"y": exact.detach(), **truth}) < (
        1e-4 if dtype == torch.float32 else 2e-2
    )
