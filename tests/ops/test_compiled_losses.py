"""The head loss with the C++ kernel for its losses, against the same loss from whole logits in float64."""

from typing import Any

import pytest
import torch
from head_loss_cases import KINDS, errors, make, make_teacher, signal
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_cases import skip_without

from hgrnx.ops import TeacherSignal, head_loss


@pytest.fixture(autouse=True)
def _needs_the_library() -> None:
    skip_without("compiled")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    N=st.integers(1, 30),
    vocab=st.integers(2, 64),
    ignored=st.integers(0, 10),
    kind=st.sampled_from(KINDS),
    alpha=st.sampled_from([0.1, 0.5, 1.0]),
    T=st.sampled_from([0.5, 1.0, 2.0, 7.0]),
    reverse=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_agrees_with_whole_logits(
    N: int, vocab: int, ignored: int, kind: str, alpha: float, T: float, reverse: bool, chunk: int
) -> None:
    reverse &= "top-k" not in kind
    # Of at least one token something is left.
    sizes = {"N": N, "vocab": vocab, "ignored": min(N - 1, ignored)}
    assert max(errors("compiled", "cpu", kind, alpha, T, reverse, chunk, **sizes)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1.0, 2.0])
def test_a_large_vocabulary(kind: str, T: float) -> None:
    assert max(errors("compiled", "cpu", kind, 0.5, T, N=40, V=16_000, vocab=15_997)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_logits_give_what_plain_torch_gives(kind: str) -> None:
    hidden, weight, targets = make(N=50, D=32, V=512, vocab=500, dtype=torch.float32)
    teacher = None if kind == "none" else signal(make_teacher(kind, 50, 32, 512, vocab=500), "cpu")
    options: dict[str, Any] = {"teacher": teacher, "weight": 0.0 if teacher is None else 0.5, "vocab_size": 500}
    results = []
    for impl in ("compiled", "torch"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = head_loss(hidden, weight, targets, temperature=2.0, impl=impl, **options).loss
        results.append([loss, *torch.autograd.grad(loss, (hidden, weight))])
    torch.testing.assert_close(*results, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_teachers_logits_of_another_type(dtype: torch.dtype) -> None:
    hidden, weight, targets = make(dtype=torch.float32)
    logits = make_teacher("logits", 23, 8, 64).logits_NV
    assert logits is not None
    losses = [
        head_loss(hidden, weight, targets, teacher=TeacherSignal(logits_NV=x), weight=0.5, impl="compiled").loss
        for x in (logits.to(dtype), logits.to(dtype).float())
    ]
    assert torch.equal(*losses)


def test_the_number_of_threads_does_not_matter() -> None:
    hidden, weight, targets = make(N=64, V=512, vocab=500, dtype=torch.float32)
    logits = hidden @ weight.T
    before, losses = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            teacher = TeacherSignal(logits_NV=logits.flip(0))
            losses.append(head_loss(hidden, weight, targets, teacher=teacher, weight=0.5, impl="compiled"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(losses[0].loss, losses[1].loss)


def test_nan_stays_nan() -> None:
    hidden, weight, targets = make(dtype=torch.float32, ignored=0)
    hidden.data[3, 0] = torch.nan
    loss = head_loss(hidden, weight, targets, impl="compiled").loss
    assert loss.isnan() and torch.autograd.grad(loss, hidden)[0][3].isnan().all()


@pytest.mark.parametrize("wrong", [-1, 50, 2**40])
def test_nothing_outside_the_vocabulary_is_written_to(wrong: int) -> None:
    hidden, weight, targets = make(dtype=torch.float32)
    targets[2] = wrong
    with pytest.raises(ValueError, match="targets_N has entries outside the vocabulary of 50"):
        head_loss(hidden, weight, targets, vocab_size=50, impl="compiled")
    _, _, targets = make()
    ids = torch.tensor([[0, wrong]]).expand(23, 2)
    teacher = TeacherSignal(top_k=(ids, torch.zeros(23, 2), torch.zeros(23)))
    with pytest.raises(ValueError, match="top_k has entries outside the vocabulary of 50"):
        head_loss(hidden, weight, targets, teacher=teacher, weight=0.5, vocab_size=50, impl="compiled")
