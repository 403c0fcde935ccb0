"""The fused head against the same loss written with whole logits."""

import gc
import importlib
from typing import Any

import pytest
import torch
from head_loss_cases import KINDS, make, make_teacher, naive
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_cases import skip_without
from torch import Tensor

from hgrnx.ops import TeacherSignal, head_loss


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    N=st.integers(1, 30),
    vocab=st.integers(2, 64),
    ignored=st.integers(0, 10),
    kind=st.sampled_from(KINDS),
    reverse=st.booleans(),
    alpha=st.sampled_from([0.1, 0.5, 1.0]),
    T=st.sampled_from([0.5, 1.0, 2.0, 7.0]),
    chunk=st.integers(1, 40),
)
def test_agrees_with_whole_logits(
    N: int, vocab: int, ignored: int, kind: str, reverse: bool, alpha: float, T: float, chunk: int
) -> None:
    hidden, weight, targets = make(N, vocab=vocab, ignored=min(N, ignored))
    teacher = None if kind == "none" else make_teacher(kind, N, 8, 64, vocab=vocab)
    alpha = 0.0 if teacher is None else alpha
    reverse &= "top-k" not in kind
    options: dict[str, Any] = {"temperature": T, "reverse_kl": reverse, "vocab_size": vocab, "chunk_tokens": chunk}
    ours = head_loss(hidden, weight, targets, teacher=teacher, weight=alpha, **options)
    loss, ce, kl = naive(hidden, weight, targets, teacher, alpha, T, vocab, reverse)
    torch.testing.assert_close(ours.loss, loss)
    torch.testing.assert_close(ours.cross_entropy, ce.detach())
    if teacher is None:
        assert ours.kl is None
    else:
        torch.testing.assert_close(ours.kl, kl.detach())
    grads = torch.autograd.grad(2.5 * ours.loss, (hidden, weight))
    torch.testing.assert_close(grads, torch.autograd.grad(2.5 * loss, (hidden, weight)))
    assert (grads[1][vocab:] == 0).all()


@pytest.mark.parametrize(("kind", "reverse"), [*((kind, False) for kind in KINDS), ("one", True), ("three", True)])
@pytest.mark.parametrize("T", [1.0, 2.0])
def test_gradcheck(kind: str, reverse: bool, T: float) -> None:
    hidden, weight, targets = make(N=5, D=3, V=7, vocab=6, ignored=1)
    options: dict[str, Any] = {"vocab_size": 6, "chunk_tokens": 2, "reverse_kl": reverse}
    if kind != "none":
        options |= {"teacher": make_teacher(kind, 5, 3, 7, vocab=6), "weight": 0.4, "temperature": T}
    assert torch.autograd.gradcheck(lambda h, w: head_loss(h, w, targets, **options).loss, (hidden, weight))


class Untouchable(TeacherSignal):
    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the teacher's {name} was read")


def test_weight_0_is_the_plain_loss_bit_for_bit_and_leaves_the_teacher_alone() -> None:
    hidden, weight, targets = make(dtype=torch.float32)
    plain = head_loss(hidden, weight, targets)
    other = head_loss(hidden, weight, targets, teacher=Untouchable(), weight=0.0, temperature=3.0)
    assert torch.equal(plain.loss, other.loss) and other.kl is None
    assert torch.equal(plain.cross_entropy, plain.loss)
    wanted = (hidden, weight)
    for a, b in zip(torch.autograd.grad(plain.loss, wanted), torch.autograd.grad(other.loss, wanted)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("T", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_student_equal_to_its_teacher_has_no_kl(T: float, dtype: torch.dtype, copies: int, reverse: bool) -> None:
    hidden, weight, targets = make(N=40, D=32, V=512, vocab=500, dtype=torch.float32)
    teacher = TeacherSignal(models=[(hidden.detach(), weight.detach(), 1 / copies)] * copies)
    options: dict[str, Any] = {"temperature": T, "reverse_kl": reverse, "vocab_size": 500}
    with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
        result = head_loss(hidden, weight, targets, teacher=teacher, weight=1.0, **options)
    assert result.kl is not None and abs(result.kl.item()) < 1e-6 * 40
    for grad in torch.autograd.grad(result.loss, (hidden, weight)):
        assert grad.abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["none", "one"])
def test_bf16_autocast(kind: str) -> None:
    hidden, weight, targets = make(N=200, D=32, V=512, vocab=500, dtype=torch.float32)
    weight = (weight.detach() * 0.2).requires_grad_()  # logits as large as a model's
    teacher = None if kind == "none" else make_teacher(kind, 200, 32, 512, torch.float32)
    alpha = 0.0 if teacher is None else 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = head_loss(hidden, weight, targets, teacher=teacher, weight=alpha, vocab_size=500, chunk_tokens=64)
    loss, *_ = naive(hidden, weight, targets, teacher, alpha, vocab=500)
    assert result.loss.dtype == torch.float32
    assert abs(result.loss.item() / loss.item() - 1) < 2e-3
    grads = torch.autograd.grad(result.loss, (hidden, weight))
    for ours, true in zip(grads, torch.autograd.grad(loss, (hidden, weight))):
        assert ours.dtype == torch.float32
        assert (ours - true).norm() / true.norm() < 1e-2


def test_bf16_hidden_states_get_bf16_gradients() -> None:
    hidden, weight, targets = make(dtype=torch.float32)
    half = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_loss(half, weight, targets).loss
    loss.backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_without_gradients_the_loss_is_the_same_and_nothing_is_kept() -> None:
    hidden, weight, targets = make(dtype=torch.float32)
    teacher = make_teacher("one", 23, 8, 64, torch.float32)
    trained = head_loss(hidden, weight, targets, teacher=teacher, weight=0.5)
    with torch.no_grad():
        evaluated = head_loss(hidden, weight, targets, teacher=teacher, weight=0.5)
    assert torch.equal(trained.loss, evaluated.loss) and not evaluated.loss.requires_grad


def test_only_the_wanted_gradient_is_computed() -> None:
    hidden, weight, targets = make()
    loss, *_ = naive(hidden, weight, targets)
    for wanted, frozen in ((hidden, weight), (weight, hidden)):
        inputs = [x if x is wanted else x.detach() for x in (hidden, weight)]
        grad = torch.autograd.grad(head_loss(*inputs, targets).loss, wanted)[0]
        torch.testing.assert_close(grad, torch.autograd.grad(loss, wanted, retain_graph=True)[0])
        assert frozen.grad is None


def test_the_teacher_gets_no_gradient() -> None:
    hidden, weight, targets = make()
    teacher_hidden, teacher_weight, _ = make(N=23)
    teacher = TeacherSignal(models=[(teacher_hidden, teacher_weight, 1.0)])
    head_loss(hidden, weight, targets, teacher=teacher, weight=0.5).loss.backward()
    assert teacher_hidden.grad is None and teacher_weight.grad is None


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 5.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 1.0]], requires_grad=True)
    teacher = TeacherSignal(logits_NV=torch.tensor([[-1e4, 1e4, 0.0], [0.0, -torch.inf, 1.0]]))
    result = head_loss(hidden, weight, torch.tensor([1, 0]), teacher=teacher, weight=0.5)
    for x in (result.loss, *torch.autograd.grad(result.loss, (hidden, weight))):
        assert torch.isfinite(x).all()


def test_all_tokens_ignored() -> None:
    hidden, weight, targets = make()
    result = head_loss(hidden, weight, torch.full_like(targets, -100))
    assert result.loss.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(result.loss, (hidden, weight)))


def test_no_tensor_of_all_logits_is_ever_made() -> None:
    hidden, weight, targets = make(N=256, D=4, V=512, vocab=512, dtype=torch.float32)
    result = head_loss(hidden, weight, targets, chunk_tokens=32)
    gc.collect()
    largest = max(x.numel() for x in gc.get_objects() if type(x) in (Tensor, torch.nn.Parameter))
    assert largest < 256 * 512
    result.loss.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_ND": torch.zeros(2, 3, 8)}, "hidden_ND"),
        ({"weight_VD": torch.zeros(64, 9)}, "weight_VD"),
        ({"targets_N": torch.zeros(22, dtype=torch.int64)}, "targets_N"),
        ({"vocab_size": 65}, "vocab_size"),
        ({"weight": 1.5}, "weight=1.5"),
        ({"weight": 0.5, "temperature": 0.0}, "temperature"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"weight": 0.5, "teacher": None}, "needs a teacher"),
        ({"weight": 0.5, "teacher": TeacherSignal(logits_NV=torch.zeros(22, 64))}, "22 tokens"),
        ({"weight": 0.5, "teacher": TeacherSignal(logits_NV=torch.zeros(23, 63))}, "63 entries"),
        (
            {"weight": 0.5, "teacher": TeacherSignal(models=[(torch.zeros(23, 4), torch.zeros(60, 4), 1.0)])},
            r"models\[0\] has 23 tokens and 60 entries",
        ),
        (
            {
                "weight": 0.5,
                "teacher": TeacherSignal(top_k=(torch.zeros(23, 2).int(), torch.zeros(23, 3), torch.ones(23))),
            },
            r"top_k must be two tensors \[23, k\] and one \[23\], not \[23, 2\], \[23, 3\] and \[23\]",
        ),
        (
            {
                "weight": 0.5,
                "teacher": TeacherSignal(top_k=(torch.zeros(23, 2).int(), torch.zeros(23, 2), torch.ones(2))),
            },
            r"top_k must be two tensors",
        ),
        (
            {
                "weight": 0.5,
                "reverse_kl": True,
                "teacher": TeacherSignal(top_k=(torch.zeros(23, 2).long(), torch.zeros(23, 2), torch.zeros(23))),
            },
            "reverse_kl needs",
        ),
        ({"impl": "magic"}, "none of torch, compiled, triton"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    hidden, weight, targets = make()
    arguments: dict[str, Any] = {"hidden_ND": hidden, "weight_VD": weight, "targets_N": targets}
    arguments["teacher"] = TeacherSignal(logits_NV=torch.zeros(23, 64))
    arguments |= change
    positional = [arguments.pop(name) for name in ("hidden_ND", "weight_VD", "targets_N")]
    with pytest.raises(ValueError, match=message):
        head_loss(*positional, **arguments)


@pytest.mark.parametrize("models", [[], [(torch.zeros(1, 1), torch.zeros(1, 1), 0.5)]])
def test_mixing_weights_sum_to_one(models: list[Any]) -> None:
    with pytest.raises(ValueError, match="mixing weights"):
        TeacherSignal(models=models)


def test_a_signal_is_one_thing() -> None:
    with pytest.raises(ValueError, match="either"):
        TeacherSignal()
    with pytest.raises(ValueError, match="either"):
        TeacherSignal(logits_NV=torch.zeros(2, 3), top_k=(torch.zeros(2, 1).long(), *torch.zeros(2, 2, 1)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(k=st.integers(1, 64), T=st.sampled_from([0.5, 1.0, 2.0, 7.0]), shift=st.floats(-30, 30), seed=st.integers(0, 9))
def test_a_top_k_against_whole_logits(k: int, T: float, shift: float, seed: int) -> None:
    """Of all entries it is the whole distribution; of fewer the KL is less, and 0 where the student is the teacher."""
    hidden, weight, targets = make()
    logits = make_teacher("logits", 23, 8, 64).logits_NV
    assert logits is not None
    ids = torch.rand(64, generator=torch.Generator().manual_seed(seed)).argsort().expand(23, 64)

    def stored(logits: Tensor) -> TeacherSignal:
        ordered = logits.gather(1, ids) + shift
        return TeacherSignal(top_k=(ids[:, :k], ordered[:, :k], (ordered[:, k:] / T).logsumexp(1)))

    options: dict[str, Any] = {"weight": 1.0, "temperature": T}
    whole = head_loss(hidden, weight, targets, teacher=TeacherSignal(logits_NV=logits), **options)
    coarse = head_loss(hidden, weight, targets, teacher=stored(logits), **options)
    if k == 64:
        torch.testing.assert_close(coarse, whole)
    assert 0 <= coarse.loss <= whole.loss * (1 + 1e-12)  # the data processing inequality
    itself = head_loss(hidden, weight, targets, teacher=stored((hidden @ weight.T).detach()), **options)
    assert abs(itself.loss.item()) < 1e-10
    for grad in torch.autograd.grad(itself.loss, (hidden, weight)):
        assert grad.abs().max() < 1e-10


@pytest.mark.parametrize("impl", ["torch", "compiled"])
@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_a_rest_that_is_next_to_nothing_is_not_lost(impl: str, T: float) -> None:
    """A student that is sure: its rest is far below the rounding of 1 - (the stored entries' share)."""
    if impl == "compiled":
        skip_without("compiled")
    student = torch.tensor([[60.0, 55.0, 1.0, 0.0, -1.0], [50.0, -60.0, -60.0, -61.0, -62.0]]) * T
    rest = torch.tensor([-1.0, -2.0])
    signal = TeacherSignal(top_k=(torch.tensor([[1, 0], [0, 1]]), torch.zeros(2, 2), rest))
    results = []
    for dtype in (torch.float32, torch.float64):
        hidden = student.to(dtype).requires_grad_()
        head, targets = torch.eye(5, dtype=dtype), torch.tensor([0, 0])
        chosen = impl if dtype == torch.float32 else "torch"
        loss = head_loss(hidden, head, targets, teacher=signal, weight=1.0, temperature=T, impl=chosen).loss
        truth = naive(hidden, head, targets, signal, 1.0, T)[0] if dtype == torch.float64 else loss
        results.append((loss.double(), torch.autograd.grad(loss, hidden)[0].double()))
    torch.testing.assert_close(results[1][0], truth)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "three", "top-k"])
def test_stays_in_a_compiled_graph(kind: str) -> None:
    hidden, weight, targets = make(N=7, D=3, V=8, vocab=8)
    teacher = None if kind == "none" else make_teacher(kind, 7, 3, 8)
    alpha = 0.0 if teacher is None else 0.5

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return head_loss(hidden * 2, weight, targets, teacher=teacher, weight=alpha, chunk_tokens=2).loss * 3

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(hidden, weight), (hidden, weight)) for f in (compiled, loss)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", ["none", "three", "top-k"])
def test_is_a_proper_torch_operator(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("hgrnx.ops.head_loss")
    operator, calls = module._head_loss, []

    def record(*arguments: Any) -> Any:
        calls.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(module, "_head_loss", record)
    hidden, weight, targets = make(N=5, D=3, V=8, vocab=7, dtype=torch.float32)
    teacher = None if kind == "none" else make_teacher(kind, 5, 3, 8, torch.float32, vocab=7)
    head_loss(hidden, weight, targets, teacher=teacher, weight=0.0 if teacher is None else 0.5, vocab_size=7)
    torch.library.opcheck(operator, calls[0])
