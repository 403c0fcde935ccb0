"""Inputs of the head loss and the same loss from whole logits, shared by the tests of the implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from hgrnx.ops import TeacherSignal, head_loss

KINDS = ("none", "one", "three", "logits", "top-k", "top-k of all")


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
    if kind in ("top-k", "top-k of all"):
        top, ids = (3 * normal(N, V))[:, :vocab].topk(vocab or V)
        k = min(5, (vocab or V) - 1) if kind == "top-k" else top.shape[1]
        # What lies beyond, at whatever temperature: any number is one. With all entries stored, nothing does.
        rest = normal(N) + top[:, 0] / 2 if kind == "top-k" else torch.full((N,), -torch.inf, dtype=dtype)
        return TeacherSignal(top_k=(ids[:, :k].int(), top[:, :k], rest))
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
            ids, top, rest = teacher.top_k
            target = torch.cat([top / T, rest[:, None]], 1).softmax(-1)
        student = (logits / T).log_softmax(-1)
        if teacher.top_k is not None:  # k + 1 outcomes; the last has no probability where all entries are stored
            ids = ids.long()
            beyond = student.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
            student = torch.cat([student.gather(1, ids), beyond], 1)[:, : logits.shape[1]]
            target = target[:, : logits.shape[1]]
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

    Relative to the norm or, where that is less, to 0.1 (times T^2 for the loss, which has that factor): a probability
    next to 1 is only as good as float32's 1.
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
    least = (0.1 * max(1.0, T**2), 0.1, 0.1, 0.1)
    return tuple(
        ((x.double().cpu() - true).norm() / true.norm().clamp_min(floor)).item()
        for (x, true), floor in zip(pairs, least, strict=True)
    )
