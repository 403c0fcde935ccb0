"""Losses of a chunk of logits as Triton kernels, which leave the gradient in the logits' place.

Shapes: n tokens of a chunk, V rows of the head (padding included), k entries of a stored top-k.

The matrix products stay with cuBLAS (:mod:`hgrnx.ops.head_loss` calls it, four large ones a chunk for CE + KL):
at a model width of 1,000 they are bound by arithmetic, where a hand-written product that recomputes the logits for
each of its passes would pay for a fifth and a sixth. What is left is bound by memory, and done here with the
least of it: a program reads a token's logits twice, the second time mostly from the cache, and writes the gradient
over them.
"""
# mypy: disallow-untyped-defs=False
# The arguments of a kernel are pointers, numbers and compile-time constants: there are no useful types for them.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrnx.ops.triton_common import check_device

_LARGEST_BLOCK = 4096


def logits_to_losses(
    logits_nV: Tensor,
    targets_n: Tensor,
    *,
    vocab: int,
    ignore_index: int,
    weight: float,
    temperature: float,
    reverse: bool,
    wants_grad: bool,
    teacher_logits: list[tuple[Tensor, float]],
    teacher_top_k: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """CE and KL per token, [n] in float32; 0 where the target is to be ignored.

    Args:
        logits_nV: the student's; replaced by the gradient of the loss with respect to them if ``wants_grad``, and not
            to be used again in any case.
        teacher_logits: teachers' logits [n, at least vocab] and mixing weights; empty without such a teacher.
        teacher_top_k: ids and logits, both [n, k], and the rest [n].

    The other arguments are those of :func:`hgrnx.ops.head_loss`.
    """
    check_device("head_loss", logits_nV)
    n, V = logits_nV.shape
    ce_n, kl_n = torch.empty(2, n, dtype=torch.float32, device=logits_nV.device)
    teacher, teacher_nV, teacher_scale = "none", None, 1 / temperature
    ids_nk = top_nk = rest_n = None
    if teacher_top_k is not None:
        teacher = "top_k"
        ids_nk, top_nk, rest_n = (x.contiguous() for x in teacher_top_k)
    elif teacher_logits:
        teacher, teacher_nV = "logits", teacher_logits[0][0]
        if len(teacher_logits) > 1:
            teacher_nV, teacher_scale = _log_mixture(teacher_logits, vocab, temperature), 1.0
        if teacher_nV.stride(1) != 1:
            teacher_nV = teacher_nV.contiguous()
    assert logits_nV.stride(1) == 1
    k = 0 if ids_nk is None else ids_nk.shape[1]
    _losses[(n,)](
        logits_nV,
        targets_n.contiguous(),
        teacher_nV,
        ids_nk,
        top_nk,
        rest_n,
        ce_n,
        kl_n,
        logits_nV.stride(0),
        0 if teacher_nV is None else teacher_nV.stride(0),
        vocab,
        V,
        k,
        ignore_index,
        float(1 - weight) if teacher != "none" else 1.0,
        float(weight * temperature),
        float(1 / temperature),
        float(teacher_scale),
        TEACHER=teacher,
        SOFT=temperature != 1,
        REVERSE=reverse,
        WANTS_GRAD=wants_grad,
        BLOCK=_block(V),
        BLOCK_K=triton.next_power_of_2(max(k, 1)),
        num_warps=8,
    )
    return ce_n, kl_n


def _log_mixture(teachers: list[tuple[Tensor, float]], vocab: int, temperature: float) -> Tensor:
    """Logarithm of the teachers' mixed probabilities at the temperature, [n, vocab]."""
    n = teachers[0][0].shape[0]
    mixture_nV = torch.empty(n, vocab, dtype=torch.float32, device=teachers[0][0].device)
    for i, (logits_nV, mixing) in enumerate(teachers):
        logits_nV = logits_nV if logits_nV.stride(1) == 1 else logits_nV.contiguous()
        _mix[(n,)](
            logits_nV,
            mixture_nV,
            logits_nV.stride(0),
            vocab,
            float(mixing),
            float(1 / temperature),
            FIRST=i == 0,
            LAST=i == len(teachers) - 1,
            BLOCK=_block(vocab),
            num_warps=8,
        )
    return mixture_nV


def _block(entries: int) -> int:
    return min(_LARGEST_BLOCK, triton.next_power_of_2(entries))


@triton.jit
def _logits(ptr, columns, vocab, scale):
    """A block of logits in float32, softened; next to minus infinity, but finite, beyond the vocabulary."""
    return tl.load(ptr + columns, mask=columns < vocab, other=-1e30).to(tl.float32) * scale


@triton.jit
def _difference(of, minus):
    """Kept finite where a teacher's logit is minus infinity: times a probability of 0 it is then 0."""
    return tl.minimum(tl.maximum(of - minus, -1e30), 1e30)


@triton.jit
def _mix(
    logits_ptr, mixture_ptr, stride, vocab, mixing, scale, FIRST: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    mixture_ptr += row * vocab
    top = -1e30
    total = 0.0
    for start in range(0, vocab, BLOCK):
        z = _logits(logits_ptr, start + tl.arange(0, BLOCK), vocab, scale)
        new_top = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(z - new_top), 0)
        top = new_top
    share = mixing / total
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mixture = share * tl.exp(_logits(logits_ptr, columns, vocab, scale) - top)
        if not FIRST:
            mixture += tl.load(mixture_ptr + columns, mask=columns < vocab, other=0.0)
        if LAST:
            mixture = tl.log(tl.maximum(mixture, 1e-38))
        tl.store(mixture_ptr + columns, mixture, mask=columns < vocab)


@triton.jit
def _losses(
    logits_ptr,
    targets_ptr,
    teacher_ptr,
    ids_ptr,
    top_ptr,
    rest_ptr,
    ce_ptr,
    kl_ptr,
    logits_stride,
    teacher_stride,
    vocab,
    V,
    k,
    ignore_index,
    hard,  # the cross-entropy's share of the gradient
    soft,  # the KL's, times the temperature
    scale,  # 1 / temperature
    teacher_scale,
    TEACHER: tl.constexpr,
    SOFT: tl.constexpr,
    REVERSE: tl.constexpr,
    WANTS_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    target = tl.load(targets_ptr + row)
    valid = target != ignore_index
    target = tl.where(valid, target, 0)

    # Sums of exponentials relative to the largest logit so far: of the student at temperature 1 (total) and T
    # (soft_total), and of the teacher; `weighted` is the sum of the differences, weighted by their exponentials.
    top = -1e30
    total = 0.0
    soft_total = 0.0
    teacher_top = -1e30
    teacher_total = 0.0
    weighted = 0.0
    if TEACHER == "logits":
        teacher_ptr += row * teacher_stride
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = _logits(logits_ptr, columns, vocab, 1.0)
        new_top = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(z - new_top), 0)
        if TEACHER != "none":
            softened = z * scale
            soft_exp = tl.exp(softened - new_top * scale)
            soft_fade = tl.exp((top - new_top) * scale)
            soft_total = soft_total * soft_fade + tl.sum(soft_exp, 0)
        if TEACHER == "logits":
            t = _logits(teacher_ptr, columns, vocab, teacher_scale)
            new_teacher_top = tl.maximum(teacher_top, tl.max(t, 0))
            teacher_exp = tl.exp(t - new_teacher_top)
            teacher_fade = tl.exp(teacher_top - new_teacher_top)
            teacher_total = teacher_total * teacher_fade + tl.sum(teacher_exp, 0)
            if REVERSE:
                weighted = weighted * soft_fade + tl.sum(soft_exp * _difference(softened, t), 0)
            else:
                weighted = weighted * teacher_fade + tl.sum(teacher_exp * _difference(t, softened), 0)
            teacher_top = new_teacher_top
        top = new_top

    log_total = top + tl.log(total)
    ce = log_total - tl.load(logits_ptr + target).to(tl.float32)
    kl = 0.0
    soft_log_total = log_total
    teacher_log_total = 0.0
    if TEACHER != "none":
        soft_log_total = top * scale + tl.log(soft_total)
    if TEACHER == "logits":
        teacher_log_total = teacher_top + tl.log(teacher_total)
        if REVERSE:
            kl = weighted / soft_total + (teacher_log_total - soft_log_total)
        else:
            kl = weighted / teacher_total + (soft_log_total - teacher_log_total)
    if TEACHER == "top_k":
        entry = tl.arange(0, BLOCK_K)
        stored = entry < k
        ids = tl.load(ids_ptr + row * k + entry, mask=stored, other=0)
        t = tl.load(top_ptr + row * k + entry, mask=stored, other=-1e30).to(tl.float32) * scale
        t_rest = tl.load(rest_ptr + row).to(tl.float32)
        picked = tl.load(logits_ptr + ids, mask=stored, other=0.0).to(tl.float32)
        largest = tl.maximum(tl.max(t, 0), t_rest)
        log_partition = tl.log(tl.sum(tl.exp(t - largest), 0) + tl.exp(t_rest - largest))
        t = (t - largest) - log_partition
        t_rest = (t_rest - largest) - log_partition
        t_prob = tl.exp(t)
        rest_prob = tl.exp(t_rest)
        # The student's rest is summed by itself: what is left of 1 would be rounding where the student is sure. The
        # stored entries are taken out of the row for that; their gradient is written at the end.
        tl.debug_barrier()
        tl.store(logits_ptr + ids, tl.full([BLOCK_K], -1e30, logits_ptr.dtype.element_ty), mask=stored)
        tl.debug_barrier()
        rest_top = -1e30
        rest_total = 0.0
        for start in range(0, vocab, BLOCK):
            softened = _logits(logits_ptr, start + tl.arange(0, BLOCK), vocab, scale)
            new_rest_top = tl.maximum(rest_top, tl.max(softened, 0))
            rest_total = rest_total * tl.exp(rest_top - new_rest_top) + tl.sum(tl.exp(softened - new_rest_top), 0)
            rest_top = new_rest_top
        rest_log_total = rest_top + tl.log(tl.maximum(rest_total, 1e-38))  # nothing, if every entry is stored
        kl = tl.sum(t_prob * _difference(t, picked * scale), 0) + rest_prob * _difference(t_rest, rest_log_total)
        kl += soft_log_total
    tl.store(ce_ptr + row, tl.where(valid, ce, 0.0))
    tl.store(kl_ptr + row, tl.where(valid, kl, 0.0))
    if not WANTS_GRAD:
        return

    # No thread may overwrite a logit that another has still to pick.
    tl.debug_barrier()
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = _logits(logits_ptr, columns, vocab, 1.0)
        prob = tl.exp(z - log_total)
        grad = hard * (prob - tl.where(columns == target, 1.0, 0.0))
        if TEACHER != "none":
            soft_prob = prob
            if SOFT:
                soft_prob = tl.exp(z * scale - soft_log_total)
            if TEACHER == "logits":
                t = _logits(teacher_ptr, columns, vocab, teacher_scale)
                if REVERSE:
                    log_ratio = _difference(z * scale, t) + (teacher_log_total - soft_log_total)
                    grad += soft * soft_prob * (log_ratio - kl)
                else:
                    grad += soft * (soft_prob - tl.exp(t - teacher_log_total))
            else:
                grad += soft * (soft_prob - rest_prob * tl.exp(z * scale - rest_log_total))
        grad = tl.where(valid & (columns < vocab), grad, 0.0)
        tl.store(logits_ptr + columns, grad.to(logits_ptr.dtype.element_ty), mask=columns < V)
    if TEACHER == "top_k":
        # Anew and whole, so that the teacher's share is not lost in the rounding of what was just written.
        tl.debug_barrier()
        grad = hard * (tl.exp(picked - log_total) - tl.where(ids == target, 1.0, 0.0))
        grad += soft * (tl.exp(picked * scale - soft_log_total) - t_prob)
        tl.store(logits_ptr + ids, grad.to(logits_ptr.dtype.element_ty), mask=entry < tl.where(valid, k, 0))
