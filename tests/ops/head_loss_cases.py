"""Inputs of the head loss and the same loss from whole logits, shared by the tests of the implementations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from hgrnx.ops import TeacherSignal

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
