"""Inputs of the head loss and the same loss from whole logits, shared by the tests of the implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from hgrnx.ops import TeacherSignal, head_loss

KINDS = ("none", "one", "three", "logits", "top-k")


def make(
    N: int = 23, D: int = 8, V: int = 64, vocab: int = 50, ignored: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N + V)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (N,), generator=generator)
    targets[torch.randperm(N, generator=generator)[:ignored]] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def make_teacher(
    kind: str, N: int, D: int, V: int, dtype: torch.dtype = torch.float64, vocab: int | None = None
) -> TeacherSignal:
    generator = torch.Generator().manual_seed(7)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    if kind == "logits":
        return TeacherSignal(logits_NV=3 * normal(N, V))
    if kind == "top-k":  # of a vocabulary of two or more
        logits = 3 * normal(N, V)
        log_probs, ids = logits.log_softmax(-1)[:, :vocab].topk(min(5, vocab or V))
        return TeacherSignal(top_k=(ids.int(), log_probs))
    mixing = {"one": [1.0], "three": [0.5, 0.3, 0.2]}[kind]
    # Teachers of another width, and with another padding of the vocabulary.
    return TeacherSignal(models=[(normal(N, D + i), normal(V + i, D + i), m) for i, m in enumerate(mixing)])


def naive(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    teacher: TeacherSignal | None = None,
    alpha: float = 0.0,
    T: float = 1.0,
    vocab: int | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, CE and KL from all logits at once."""
    logits = (hidden @ weight.T)[:, :vocab]
    valid = targets != -100
    ce = cross_entropy(logits[valid], targets[valid], reduction="sum")
    kl = logits.new_zeros(())
    if teacher is not None:
        if teacher.models is not None:
            target = sum(m * ((h @ w.T)[:, :vocab] / T).softmax(-1) for h, w, m in teacher.models)
        elif teacher.logits_NV is not None:
            target = (teacher.logits_NV[:, :vocab] / T).softmax(-1)
        else:
            assert teacher.top_k is not None
            ids, log_probs = teacher.top_k
            target = torch.zeros_like(logits).scatter(1, ids.long(), (log_probs / T).softmax(-1))
        student = (logits / T).log_softmax(-1)
        if reverse:
            kl = kl_div(target.log()[valid], student[valid], reduction="sum", log_target=True)
        else:
            kl = kl_div(student[valid], target[valid], reduction="sum")
    return (1 - alpha) * ce + alpha * T**2 * kl, ce, kl


def moved(x: Any, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """Tensors in lists and tuples, on the device and, if of a floating type, in ``dtype``."""
    if isinstance(x, Tensor):
        return x.to(device, dtype if x.is_floating_point() else x.dtype)
    return type(x)(moved(y, device, dtype) for y in x) if isinstance(x, list | tuple) else x


def signal(teacher: TeacherSignal | None, device: str) -> TeacherSignal | None:
    """The teacher in float32 on the device."""
    if teacher is None:
        return None
    return TeacherSignal(**{name: moved(value, device) for name, value in vars(teacher).items()})


def errors(
    impl: str, device: str, kind: str, alpha: float, T: float, reverse: bool = False, chunk: int = 16, **sizes: int
) -> tuple[float, ...]:
    """Errors in float32 of loss and KL, and of the gradients of hidden and head, against float64.

    Relative to the norm or, where that is less, to 0.1: a probability next to 1 is only as good as float32's 1.
    """
    hidden, weight, targets = make(**sizes)
    N, D, V, vocab = hidden.shape[0], hidden.shape[1], weight.shape[0], sizes["vocab"]
    teacher = None if kind == "none" else make_teacher(kind, N, D, V, vocab=vocab)
    alpha = 0.0 if teacher is None else alpha
    loss, _, kl = naive(hidden, weight, targets, teacher, alpha, T, vocab, reverse)
    truth = torch.autograd.grad(2.5 * loss, (hidden, weight))
    leaves = [x.detach().to(device, torch.float32).requires_grad_() for x in (hidden, weight)]
    options: dict[str, Any] = {"temperature": T, "reverse_kl": reverse, "vocab_size": vocab, "chunk_tokens": chunk}
    ours = head_loss(*leaves, targets.to(device), teacher=signal(teacher, device), weight=alpha, impl=impl, **options)
    grads = torch.autograd.grad(2.5 * ours.loss, leaves)
    assert (grads[1][vocab:] == 0).all()
    pairs = [(ours.loss, loss), (ours.kl if ours.kl is not None else kl, kl), *zip(grads, truth)]
    return tuple(((x.double().cpu() - true).norm() / true.norm().clamp_min(0.1)).item() for x, true in pairs)
