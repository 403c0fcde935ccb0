"""The head loss with the kernels for its losses, against the same loss from whole logits in float64."""

from typing import Any

import pytest
import torch
from head_loss_cases import KINDS, errors, make, make_teacher, naive, signal
from hypothesis import given, settings
from hypothesis import strategies as st

import hgrnx.ops.triton_head_loss as kernels
from hgrnx.ops import TeacherSignal, head_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter is right in float32 only")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    N=st.integers(1, 20),
    vocab=st.integers(2, 64),
    ignored=st.integers(0, 10),
    kind=st.sampled_from(KINDS),
    alpha=st.sampled_from([0.1, 0.5, 1.0]),
    T=st.sampled_from([0.5, 1.0, 2.0, 7.0]),
    reverse=st.booleans(),
)
def test_agrees_with_whole_logits(
    N: int, vocab: int, ignored: int, kind: str, alpha: float, T: float, reverse: bool
) -> None:
    # Of at least one token something is left.
    found = errors(
        "triton", DEVICE, kind, alpha, T, reverse and "top-k" not in kind, N=N, vocab=vocab, ignored=min(N - 1, ignored)
    )
    assert max(found) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_several_blocks_of_a_vocabulary(kind: str, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest logit in any block, and a last block that lies in the padding."""
    if "top-k" in kind and reverse:
        return
    monkeypatch.setattr(kernels, "_LARGEST_BLOCK", 16)
    assert max(errors("triton", DEVICE, kind, 0.5, 2.0, reverse, N=9, V=64, vocab=41)) < 1e-5


@pytest.mark.parametrize("T", [1.0, 2.0])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_student_equal_to_its_teacher_has_no_kl(T: float, reverse: bool, copies: int) -> None:
    hidden, weight, targets = (x.to(DEVICE) for x in make(N=20, D=32, V=128, vocab=100, dtype=torch.float32))
    teacher = TeacherSignal(models=[(hidden.detach(), weight.detach(), 1 / copies)] * copies)
    options: dict[str, Any] = {"temperature": T, "reverse_kl": reverse, "vocab_size": 100, "impl": "triton"}
    result = head_loss(hidden, weight, targets, teacher=teacher, weight=1.0, **options)
    assert result.kl is not None and abs(result.kl.item()) < 1e-6 * 20
    for grad in torch.autograd.grad(result.loss, (hidden, weight)):
        assert grad.abs().max() < 1e-5


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 5.0]], device=DEVICE, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 1.0]], device=DEVICE, requires_grad=True)
    logits = torch.tensor([[-1e4, 1e4, 0.0], [0.0, -torch.inf, 1.0]], device=DEVICE)
    targets = torch.tensor([1, 0], device=DEVICE)
    result = head_loss(hidden, weight, targets, teacher=TeacherSignal(logits_NV=logits), weight=0.5, impl="triton")
    for x in (result.loss, *torch.autograd.grad(result.loss, (hidden, weight))):
        assert torch.isfinite(x).all()


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, targets = (x.to(DEVICE) for x in make(dtype=torch.float32))
    teacher = signal(make_teacher("one", 23, 8, 64), DEVICE)
    trained = head_loss(hidden, weight, targets, teacher=teacher, weight=0.5, impl="triton")
    with torch.no_grad():
        evaluated = head_loss(hidden, weight, targets, teacher=teacher, weight=0.5, impl="triton")
    assert torch.equal(trained.loss, evaluated.loss) and not evaluated.loss.requires_grad


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1.0, 2.0])
def test_bf16_on_a_gpu(kind: str, T: float) -> None:
    hidden, weight, targets = make(N=300, D=64, V=5056, vocab=5000)
    weight = (weight.detach() * 0.2).requires_grad_()  # logits as large as a model's
    teacher = None if kind == "none" else make_teacher(kind, 300, 64, 5056, vocab=5000)
    alpha = 0.0 if teacher is None else 0.5
    loss, *_ = naive(hidden, weight, targets, teacher, alpha, T, vocab=5000)
    leaves = [x.detach().to(DEVICE, torch.float32).requires_grad_() for x in (hidden, weight)]
    options: dict[str, Any] = {"temperature": T, "vocab_size": 5000, "chunk_tokens": 128}
    with torch.autocast("cuda", dtype=torch.bfloat16):
        result = head_loss(*leaves, targets.to(DEVICE), teacher=signal(teacher, DEVICE), weight=alpha, **options)
    assert abs(result.loss.item() / loss.item() - 1) < 2e-3
    for ours, true in zip(torch.autograd.grad(result.loss, leaves), torch.autograd.grad(loss, (hidden, weight))):
        assert ours.dtype == torch.float32
        assert (ours.cpu() - true).norm() / true.norm() < 1e-2
