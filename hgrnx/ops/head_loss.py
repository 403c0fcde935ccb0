"""Output head, cross-entropy and distillation in one autograd.Function.

Shapes: N tokens, V rows of the head (vocabulary, padding included), D width of the model.

The logits of all tokens are never held at once: the forward goes through the tokens in chunks and, where a
gradient will be wanted, computes it on the way while a chunk's logits are at hand. A joint loss so needs
four large products a chunk (student and teacher logits, gradients of hidden and head). The backward only
scales what is ready, and hands each gradient over once, as ZeRO and DDP expect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_IMPOSSIBLE = -1e30  # in place of -inf in logarithms: times a probability of 0 it is 0, not NaN
_CPU_BLOCK_ELEMENTS = 2**18  # float32 numbers per softmax block on CPU; a few such blocks fit a core's cache


@dataclass(frozen=True)
class TeacherSignal:
    """What a teacher says about a batch: exactly one of its fields is given.

    Attributes:
        models: (hidden [N, D_teacher], head weight [V_teacher, D_teacher], mixing weight) per teacher. Mixing
            weights sum to one; an ensemble's distribution is the mixture of its members' probabilities.
        logits_NV: logits of one teacher, [N, V_teacher].

    Raises:
        ValueError: none or both fields given, no model, or mixing weights that do not sum to one.
    """

    models: list[tuple[Tensor, Tensor, float]] | None = None
    logits_NV: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.models is None) == (self.logits_NV is None):
            raise ValueError("TeacherSignal: give either models or logits_NV")
        if self.models is not None:
            total = sum(mixing for _, _, mixing in self.models)
            if not self.models or abs(total - 1.0) > 1e-4:
                raise ValueError(f"TeacherSignal: the mixing weights of models must sum to 1, not to {total}")


class HeadLoss(NamedTuple):
    """Token sums. ``loss`` carries the gradient; the other two are detached, ``kl`` without the factor T^2."""

    loss: Tensor
    cross_entropy: Tensor
    kl: Tensor | None


def head_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    teacher: TeacherSignal | None = None,
    weight: float = 0.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    chunk_tokens: int = 512,
) -> HeadLoss:
    """Sum over the valid tokens of (1 - weight) CE + weight T^2 KL(teacher || student).

    Teacher and student are both softened by the temperature T in the KL (Hinton et al., arXiv 1503.02531);
    the cross-entropy is not. Products are in the autocast type under autocast; softmax, sums and the
    accumulated gradient of the head are in float32 (float64 for float64 inputs).

    Args:
        hidden_ND: last hidden states of the student, [N, D].
        weight_VD: its head, [V, D]; rows from ``vocab_size`` on are padding: no probability, no gradient.
        targets_N: next tokens, int64 [N]; tokens with ``ignore_index`` count for nothing.
        teacher: what to learn from. Not looked at when ``weight`` is 0: the result is then bit for bit the
            one without a teacher.
        weight: share of the KL in the loss, 0 to 1.
        temperature: T > 0.
        ignore_index: target of the tokens to leave out.
        vocab_size: entries of the vocabulary; V when absent.
        chunk_tokens: tokens whose logits are held at once.

    Returns:
        loss, cross_entropy and kl as sums over valid tokens; kl is None without a teacher or with weight 0.

    Raises:
        ValueError: a shape that does not fit (the tensor is named), a setting out of range, or a weight
            above 0 without a teacher.
    """
    vocab = weight_VD.shape[0] if vocab_size is None else vocab_size
    if weight == 0:
        teacher = None
    elif teacher is None:
        raise ValueError(f"head_loss: weight={weight} needs a teacher")
    _check(hidden_ND, weight_VD, targets_N, teacher, weight, temperature, vocab, chunk_tokens)
    wants_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    settings = _Settings(weight, temperature, ignore_index, vocab, chunk_tokens, wants_grad)
    loss, cross_entropy, kl = _HeadLossFunction.apply(hidden_ND, weight_VD, targets_N, teacher, settings)
    return HeadLoss(loss, cross_entropy, None if teacher is None else kl)


class _Settings(NamedTuple):
    weight: float
    temperature: float
    ignore_index: int
    vocab: int
    chunk_tokens: int
    wants_grad: bool


class _HeadLossFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        teacher: TeacherSignal | None,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden_ND.device
        dtype = _product_dtype(hidden_ND, weight_VD)
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        grad_hidden = grad_weight = None
        if settings.wants_grad and ctx.needs_input_grad[0]:
            grad_hidden = torch.empty_like(hidden_ND)
        if settings.wants_grad and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight_VD, dtype=accumulate)
        cross_entropy = torch.zeros((), dtype=accumulate, device=device)
        kl = torch.zeros((), dtype=accumulate, device=device)
        teacher_logits = _teacher_logits(teacher)
        with torch.autocast(device.type, enabled=False):  # the types are chosen here, not by autocast
            head_VD = weight_VD.to(dtype)
            for start in range(0, hidden_ND.shape[0], settings.chunk_tokens):
                rows = slice(start, start + settings.chunk_tokens)
                chunk_nD = hidden_ND[rows].to(dtype)
                logits_nV = chunk_nD @ head_VD.T
                teachers = teacher_logits(rows)
                chunk_ce, chunk_kl = _losses(logits_nV, targets_N[rows], teachers, settings, accumulate)
                cross_entropy += chunk_ce
                kl += chunk_kl
                # From here logits_nV holds the gradient of the loss with respect to the logits.
                if grad_hidden is not None:
                    grad_hidden[rows] = logits_nV @ head_VD
                if grad_weight is not None:
                    if dtype == accumulate:
                        grad_weight.addmm_(logits_nV.T, chunk_nD)
                    else:
                        grad_weight += logits_nV.T @ chunk_nD
        ctx.grads = (grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        loss = cross_entropy.clone()
        if teacher is not None:
            loss = (1 - settings.weight) * loss + settings.weight * settings.temperature**2 * kl
        ctx.mark_non_differentiable(cross_entropy, kl)
        return loss, cross_entropy, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.grads
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def _losses(
    logits_nV: Tensor, targets_n: Tensor, teachers: list[tuple[Tensor, float]], s: _Settings, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sums of CE and KL of a chunk. Overwrites ``logits_nV`` with the loss's gradient if that is wanted."""
    tokens, rows_of_head = logits_nV.shape
    block = max(1, _CPU_BLOCK_ELEMENTS // rows_of_head) if logits_nV.device.type == "cpu" else tokens
    ce_sum, kl_sum = torch.zeros((2,), dtype=dtype, device=logits_nV.device)
    for start in range(0, tokens, block):
        rows = slice(start, start + block)
        student_nV = logits_nV[rows, : s.vocab].to(dtype, copy=True).contiguous()
        valid_n = targets_n[rows] != s.ignore_index
        target_n1 = targets_n[rows].masked_fill(~valid_n, 0)[:, None]
        valid_n1 = valid_n[:, None].to(dtype)
        picked_n1 = student_nV.gather(1, target_n1)
        prob_nV, lse_n1 = _softmax(student_nV)
        ce_sum += ((lse_n1 - picked_n1) * valid_n1).sum()
        if not teachers:
            grad_nV, hard = prob_nV, 1.0
        else:
            hard = 1.0 - s.weight
            signals = [(x[rows, : s.vocab].to(dtype, copy=True).contiguous(), mixing) for x, mixing in teachers]
            kl_n1, grad_nV = _distil(student_nV, prob_nV, lse_n1, signals, s)
            kl_sum += (kl_n1 * valid_n1).sum()
        if s.wants_grad:
            grad_nV.scatter_add_(1, target_n1, valid_n1.new_full((), -hard).expand_as(valid_n1))
            logits_nV[rows, : s.vocab] = grad_nV.mul_(valid_n1)
    if s.wants_grad:
        logits_nV[:, s.vocab :] = 0
    return ce_sum, kl_sum


def _distil(
    student_nV: Tensor, prob_nV: Tensor, lse_n1: Tensor, teachers: list[tuple[Tensor, float]], s: _Settings
) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) at temperature T per token [n, 1], and (1 - w) p + w T (p_T - t) [n, V].

    ``prob_nV`` and ``lse_n1`` are softmax and log-sum-exp of the student's logits at temperature 1. The
    arguments are overwritten.
    """
    soft_nV = prob_nV
    if s.temperature != 1:
        student_nV.div_(s.temperature)
        soft_nV, lse_n1 = _softmax(student_nV)
    if len(teachers) == 1:
        teacher_nV = teachers[0][0]
        if s.temperature != 1:
            teacher_nV.div_(s.temperature)
        target_nV, teacher_lse_n1 = _softmax(teacher_nV)
        # Differences of logits, so that a student equal to its teacher has a KL of exactly 0.
        difference_nV = teacher_nV.sub_(student_nV).clamp_(min=_IMPOSSIBLE)
        kl_n1 = difference_nV.mul_(target_nV).sum(1, keepdim=True) + (lse_n1 - teacher_lse_n1)
    else:
        target_nV = torch.zeros_like(student_nV)
        for logits_nV, mixing in teachers:
            target_nV.add_(_softmax(logits_nV.div_(s.temperature))[0], alpha=mixing)
        log_ratio_nV = target_nV.log().clamp_(min=_IMPOSSIBLE).sub_(student_nV.sub_(lse_n1))
        kl_n1 = log_ratio_nV.mul_(target_nV).sum(1, keepdim=True)
    if s.temperature == 1:
        return kl_n1, prob_nV.sub_(target_nV, alpha=s.weight)
    soft_nV.sub_(target_nV)
    return kl_n1, prob_nV.mul_(1 - s.weight).add_(soft_nV, alpha=s.weight * s.temperature)


def _softmax(logits_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax, and the log-sum-exp [n, 1] read off its largest entry: cheaper than a pass of its own."""
    prob_nV = torch.softmax(logits_nV, 1)
    return prob_nV, logits_nV.amax(1, keepdim=True) - prob_nV.amax(1, keepdim=True).log()


def _teacher_logits(teacher: TeacherSignal | None) -> Callable[[slice], list[tuple[Tensor, float]]]:
    """A function from a slice of tokens to the teachers' logits there and their mixing weights."""
    if teacher is None:
        return lambda rows: []
    if teacher.models is None:
        assert teacher.logits_NV is not None
        logits_NV = teacher.logits_NV.detach()
        return lambda rows: [(logits_NV[rows], 1.0)]
    models = []
    for hidden_ND, weight_VD, mixing in teacher.models:
        dtype = _product_dtype(hidden_ND, weight_VD)
        models.append((hidden_ND.detach(), weight_VD.detach().to(dtype).T, mixing))
    return lambda rows: [(hidden[rows].to(head.dtype) @ head, mixing) for hidden, head, mixing in models]


def _product_dtype(hidden_ND: Tensor, weight_VD: Tensor) -> torch.dtype:
    device_type = hidden_ND.device.type
    dtype = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    if torch.is_autocast_enabled(device_type) and dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return dtype


def _check(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    teacher: TeacherSignal | None,
    weight: float,
    temperature: float,
    vocab: int,
    chunk_tokens: int,
) -> None:
    if hidden_ND.ndim != 2:
        raise ValueError(f"head_loss: hidden_ND must be [tokens, width], not {list(hidden_ND.shape)}")
    tokens, width = hidden_ND.shape
    if weight_VD.ndim != 2 or weight_VD.shape[1] != width:
        raise ValueError(f"head_loss: weight_VD must be [vocabulary, {width}], not {list(weight_VD.shape)}")
    if targets_N.shape != (tokens,):
        raise ValueError(f"head_loss: targets_N must be [{tokens}], not {list(targets_N.shape)}")
    if not 0 < vocab <= weight_VD.shape[0]:
        raise ValueError(f"head_loss: vocab_size={vocab} does not fit a head of {weight_VD.shape[0]} rows")
    if not 0 <= weight <= 1:
        raise ValueError(f"head_loss: weight={weight} must be from 0 to 1")
    if not temperature > 0:
        raise ValueError(f"head_loss: temperature={temperature} must be above 0")
    if chunk_tokens < 1:
        raise ValueError(f"head_loss: chunk_tokens={chunk_tokens} must be at least 1")
    if teacher is None:
        return
    if teacher.logits_NV is not None:
        shapes = [("logits_NV", teacher.logits_NV.shape[0], teacher.logits_NV.shape[-1])]
    else:
        shapes = [(f"models[{i}]", h.shape[0], w.shape[0]) for i, (h, w, _) in enumerate(teacher.models or ())]
    for name, rows, entries in shapes:
        if rows != tokens or entries < vocab:
            found = f"{rows} tokens and {entries} entries"
            raise ValueError(f"head_loss: the teacher's {name} has {found}, not {tokens} and at least {vocab}")
