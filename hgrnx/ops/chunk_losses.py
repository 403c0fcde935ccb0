"""Cross-entropy and KL of a chunk of logits, in plain torch; :mod:`hgrnx.ops.triton_head_loss` is the same in Triton.

Shapes: n tokens of a chunk, V rows of the head (vocabulary, padding included), k entries of a top-k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_IMPOSSIBLE = -1e30  # in place of -inf in logarithms: times a probability of 0 it is 0, not NaN
_CPU_BLOCK_ELEMENTS = 2**18  # float32 numbers per softmax block on CPU; a few such blocks fit a core's cache


class LossSettings(NamedTuple):
    """Settings of :func:`hgrnx.ops.head_loss` that a chunk's losses depend on."""

    weight: float
    temperature: float
    reverse: bool
    ignore_index: int
    vocab: int
    wants_grad: bool


class ChunkTeachers(NamedTuple):
    """What the teachers say about some tokens: logits and mixing weights, or ids, their logits and the rest."""

    logits: list[tuple[Tensor, float]]
    top_k: tuple[Tensor, Tensor, Tensor] | None

    def rows(self, rows: slice) -> ChunkTeachers:
        top_k = None
        if self.top_k is not None:
            ids_Nk, top_Nk, rest_N = self.top_k
            top_k = ids_Nk[rows], top_Nk[rows], rest_N[rows]
        return ChunkTeachers([(logits_NV[rows], mixing) for logits_NV, mixing in self.logits], top_k)


def chunk_losses(
    logits_nV: Tensor, targets_n: Tensor, teachers: ChunkTeachers, s: LossSettings, dtype: torch.dtype
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
        if s.weight == 0:
            grad_nV, hard = prob_nV, 1.0
        else:
            hard = 1.0 - s.weight
            kl_n1, grad_nV = _distil(student_nV, prob_nV, lse_n1, teachers.rows(rows), s)
            kl_sum += (kl_n1 * valid_n1).sum()
        if s.wants_grad:
            grad_nV.scatter_add_(1, target_n1, valid_n1.new_full((), -hard).expand_as(valid_n1))
            logits_nV[rows, : s.vocab] = grad_nV.mul_(valid_n1)
    if s.wants_grad:
        logits_nV[:, s.vocab :] = 0
    return ce_sum, kl_sum


def _distil(
    student_nV: Tensor, prob_nV: Tensor, lse_n1: Tensor, teachers: ChunkTeachers, s: LossSettings
) -> tuple[Tensor, Tensor]:
    """KL at temperature T per token [n, 1], and the gradient of (1 - w) CE + w T^2 KL but for CE's target [n, V].

    ``prob_nV`` and ``lse_n1`` are softmax and log-sum-exp of the student's logits at temperature 1. The
    arguments are overwritten.
    """
    soft_nV = prob_nV
    if s.temperature != 1:
        student_nV.div_(s.temperature)
        soft_nV, lse_n1 = _softmax(student_nV)
    if teachers.top_k is not None:
        kl_n1, target_nV = _distil_top_k(student_nV, lse_n1, *teachers.top_k, s.temperature)
        if s.temperature == 1:
            return kl_n1, prob_nV.sub_(target_nV, alpha=s.weight)
        slope_nV = soft_nV.sub_(target_nV)
    else:
        teacher_nV, target_nV, teacher_lse_n1 = _soft_teacher(teachers.logits, student_nV, s)
        # Differences of logits, so that a student equal to its teacher has a KL of exactly 0.
        difference_nV = teacher_nV.sub_(student_nV).clamp_(min=_IMPOSSIBLE)
        if s.reverse:
            log_ratio_nV = difference_nV.neg_().add_(teacher_lse_n1 - lse_n1)
            kl_n1 = (log_ratio_nV * soft_nV).sum(1, keepdim=True)
            slope_nV = log_ratio_nV.sub_(kl_n1).mul_(soft_nV)
        else:
            kl_n1 = difference_nV.mul_(target_nV).sum(1, keepdim=True) + (lse_n1 - teacher_lse_n1)
            if s.temperature == 1:
                return kl_n1, prob_nV.sub_(target_nV, alpha=s.weight)
            slope_nV = soft_nV.sub_(target_nV)
    return kl_n1, prob_nV.mul_(1 - s.weight).add_(slope_nV, alpha=s.weight * s.temperature)


def _distil_top_k(
    student_nV: Tensor, lse_n1: Tensor, ids_nk: Tensor, top_nk: Tensor, rest_n: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """KL over the k entries and the rest, and what the gradient subtracts from the student's softmax [n, V].

    That is the teacher's probability of an entry; its probability of the rest is spread over the rest as the student
    spreads its own. ``student_nV`` is at the temperature already, and is overwritten.
    """
    ids_nk = ids_nk.long()
    log_target_nK = torch.cat([top_nk.to(student_nV.dtype) / temperature, rest_n[:, None].to(student_nV.dtype)], 1)
    log_target_nK = log_target_nK.log_softmax(1)
    picked_nk = student_nV.gather(1, ids_nk)
    # Summed by itself: what is left of 1 after the k entries' share would be rounding where the student is sure.
    spread_nV, rest_lse_n1 = _softmax(student_nV.scatter_(1, ids_nk, _IMPOSSIBLE))
    target_nK = log_target_nK.exp()
    difference_nK = (log_target_nK - torch.cat([picked_nk, rest_lse_n1], 1)).clamp_(min=_IMPOSSIBLE)
    kl_n1 = (difference_nK * target_nK).sum(1, keepdim=True) + lse_n1
    return kl_n1, spread_nV.mul_(target_nK[:, -1:]).scatter_(1, ids_nk, target_nK[:, :-1])


def _soft_teacher(
    teachers: list[tuple[Tensor, float]], student_nV: Tensor, s: LossSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """The teachers' logits at the temperature, a copy, with their softmax and log-sum-exp [n, 1]."""
    copies = [(x[:, : s.vocab].to(student_nV.dtype, copy=True).contiguous(), mixing) for x, mixing in teachers]
    if len(copies) == 1:
        teacher_nV = copies[0][0]
        if s.temperature != 1:
            teacher_nV.div_(s.temperature)
        return teacher_nV, *_softmax(teacher_nV)
    target_nV = torch.zeros_like(student_nV)
    for logits_nV, mixing in copies:
        target_nV.add_(_softmax(logits_nV.div_(s.temperature))[0], alpha=mixing)
    return target_nV.log(), target_nV, target_nV.new_zeros(())


def _softmax(logits_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax, and the log-sum-exp [n, 1] read off its largest entry: cheaper than a pass of its own."""
    prob_nV = torch.softmax(logits_nV, 1)
    return prob_nV, logits_nV.amax(1, keepdim=True) - prob_nV.amax(1, keepdim=True).log()
