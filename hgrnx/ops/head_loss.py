"""Output head, cross-entropy and distillation as one torch operator.

Shapes: N tokens, V rows of the head (vocabulary, padding included), D width of the model, k entries of a top-k.

The logits of all tokens are never held at once: the forward goes through the tokens in chunks and, where a
gradient will be wanted, computes it on the way while a chunk's logits are at hand. A joint loss so needs
four large products a chunk (student and teacher logits, gradients of hidden and head). The backward only
scales what is ready, and hands each gradient over once, as ZeRO and DDP expect.

It is a custom operator so that torch.compile leaves it alone: a traced loop over the chunks would keep them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgrnx.ops.chunk_losses import ChunkTeachers, LossSettings, chunk_losses
from hgrnx.ops.compiled_losses import compiled_chunk_losses
from hgrnx.ops.dispatch import choose_kernels

_CHUNK_TOKENS_ON_CPU = 512
_CHUNK_TOKENS = 4096  # the head's gradient is added up once a chunk: on a GPU that must not cost more than the products


@dataclass(frozen=True)
class TeacherSignal:
    """What a teacher says about a batch: exactly one of its fields is given.

    Attributes:
        models: (hidden [N, D_teacher], head weight [V_teacher, D_teacher], mixing weight) per teacher. Mixing
            weights sum to one; an ensemble's distribution is the mixture of its members' probabilities.
        logits_NV: logits of one teacher, [N, V_teacher].
        top_k: (ids [N, k], integers that differ within a row; logits of those, up to a number per row, [N, k]; what is
            beyond them, [N]) of one teacher. The last is the logarithm of the sum of exp(logit / T) over all other
            entries, at the loss's own temperature T and up to the row's number / T, or minus infinity. All that is
            beyond counts as one more outcome, of teacher and student: the KL is the one between the two
            distributions of k + 1 outcomes, with the entries' true probabilities.

    Raises:
        ValueError: none or several fields given, no model, or mixing weights that do not sum to one.
    """

    models: list[tuple[Tensor, Tensor, float]] | None = None
    logits_NV: Tensor | None = None
    top_k: tuple[Tensor, Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if [self.models is None, self.logits_NV is None, self.top_k is None].count(False) != 1:
            raise ValueError("TeacherSignal: give either models, logits_NV or top_k")
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
    reverse_kl: bool = False,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    impl: str | None = None,
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
        reverse_kl: KL(student || teacher) instead (MiniLLM, arXiv 2306.08543). Not with a top-k.
        ignore_index: target of the tokens to leave out.
        vocab_size: entries of the vocabulary; V when absent.
        chunk_tokens: tokens whose logits are held at once; 512 on a CPU and 4,096 elsewhere when absent.
        impl: what computes the losses from the logits: "torch", "compiled" or "triton"; by default "compiled" on a
            CPU where it can be built and "triton" on a GPU where it is installed (not in float64).

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
    if chunk_tokens is None:
        chunk_tokens = _CHUNK_TOKENS_ON_CPU if hidden_ND.device.type == "cpu" else _CHUNK_TOKENS
    _check(hidden_ND, weight_VD, targets_N, teacher, weight, temperature, reverse_kl, vocab, chunk_tokens)
    models = [] if teacher is None or teacher.models is None else teacher.models
    logits_NV = None if teacher is None or teacher.logits_NV is None else teacher.logits_NV.detach()
    ids_Nk, top_Nk, rest_N = (None, None, None) if teacher is None or teacher.top_k is None else teacher.top_k
    device_type = hidden_ND.device.type
    loss, cross_entropy, kl, _, _ = _head_loss(
        hidden_ND,
        weight_VD,
        targets_N,
        [hidden.detach() for hidden, _, _ in models],
        [head.detach() for _, head, _ in models],
        [float(mixing) for _, _, mixing in models],
        logits_NV,
        ids_Nk,
        None if top_Nk is None else top_Nk.detach(),
        None if rest_N is None else rest_N.detach(),
        float(weight),
        float(temperature),
        reverse_kl,
        ignore_index,
        vocab,
        chunk_tokens,
        torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None,
        torch.is_grad_enabled() and hidden_ND.requires_grad,
        torch.is_grad_enabled() and weight_VD.requires_grad,
        choose_kernels("head_loss", impl, hidden_ND),
    )
    return HeadLoss(loss, cross_entropy, None if teacher is None else kl)


@torch.library.custom_op("hgrnx::head_loss", mutates_args=())
def _head_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    teacher_hidden: Sequence[Tensor],
    teacher_heads: Sequence[Tensor],
    mixing: Sequence[float],
    teacher_logits_NV: Tensor | None,
    teacher_ids_Nk: Tensor | None,
    teacher_top_Nk: Tensor | None,
    teacher_rest_N: Tensor | None,
    weight: float,
    temperature: float,
    reverse: bool,
    ignore_index: int,
    vocab: int,
    chunk_tokens: int,
    autocast_dtype: torch.dtype | None,
    hidden_wants_grad: bool,
    weight_wants_grad: bool,
    kernels: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, CE, KL, and the gradients of hidden and head for a loss's gradient of 1 (empty where not wanted)."""
    device = hidden_ND.device
    dtype = _product_dtype(hidden_ND, weight_VD, autocast_dtype)
    accumulate = _sum_dtype(dtype)
    settings = LossSettings(weight, temperature, reverse, ignore_index, vocab, hidden_wants_grad or weight_wants_grad)
    grad_hidden = torch.empty_like(hidden_ND) if hidden_wants_grad else hidden_ND.new_empty(0)
    grad_weight = torch.zeros(weight_VD.shape if weight_wants_grad else 0, dtype=accumulate, device=device)
    cross_entropy = torch.zeros((), dtype=accumulate, device=device)
    kl = torch.zeros((), dtype=accumulate, device=device)
    top_k = None
    if teacher_ids_Nk is not None and teacher_top_Nk is not None and teacher_rest_N is not None:
        top_k = teacher_ids_Nk, teacher_top_Nk, teacher_rest_N
    teachers = _teachers(teacher_hidden, teacher_heads, mixing, teacher_logits_NV, top_k, autocast_dtype)
    losses = {"torch": chunk_losses, "compiled": compiled_chunk_losses, "triton": _triton_losses}[kernels]
    with torch.autocast(device.type, enabled=False):  # the types are chosen here, not by autocast
        head_VD = weight_VD.to(dtype)
        for start in range(0, hidden_ND.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            chunk_nD = hidden_ND[rows].to(dtype)
            logits_nV = chunk_nD @ head_VD.T
            chunk_ce, chunk_kl = losses(logits_nV, targets_N[rows], teachers(rows), settings, accumulate)
            cross_entropy += chunk_ce
            kl += chunk_kl
            # From here logits_nV holds the gradient of the loss with respect to the logits.
            if hidden_wants_grad:
                grad_hidden[rows] = logits_nV @ head_VD
            if weight_wants_grad:
                if dtype == accumulate:
                    grad_weight.addmm_(logits_nV.T, chunk_nD)
                else:
                    grad_weight += logits_nV.T @ chunk_nD
    loss = cross_entropy.clone()
    if weight != 0:
        loss = (1 - weight) * loss + weight * temperature**2 * kl
    return loss, cross_entropy, kl, grad_hidden, grad_weight


@_head_loss.register_fake
def _(
    hidden_ND: Tensor, weight_VD: Tensor, *arguments: Any, **named: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    autocast_dtype, hidden_wants_grad, weight_wants_grad, _ = arguments[-4:]
    dtype = _sum_dtype(_product_dtype(hidden_ND, weight_VD, autocast_dtype))
    loss, cross_entropy, kl = (hidden_ND.new_empty((), dtype=dtype) for _ in range(3))
    grad_hidden = torch.empty_like(hidden_ND) if hidden_wants_grad else hidden_ND.new_empty(0)
    grad_weight = weight_VD.new_empty(weight_VD.shape if weight_wants_grad else 0, dtype=dtype)
    return loss, cross_entropy, kl, grad_hidden, grad_weight


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *others = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*others)
    ctx.save_for_backward(*others[2:])
    ctx.wanted = inputs[-3:-1]
    ctx.weight_dtype = inputs[1].dtype
    ctx.models = len(inputs[3])


def _gradients(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    grad_hidden = grad_weight = None
    if grad_loss is not None:
        unit_hidden, unit_weight = ctx.saved_tensors
        hidden_wanted, weight_wanted = ctx.wanted
        if hidden_wanted:
            grad_hidden = unit_hidden * grad_loss.to(unit_hidden.dtype)
        if weight_wanted:
            grad_weight = (unit_weight * grad_loss).to(ctx.weight_dtype)
    # torch wants an empty list back for an empty one, and None for a list of numbers.
    models: tuple[Any, ...] = ([None] * ctx.models, [None] * ctx.models, None if ctx.models else [])
    return grad_hidden, grad_weight, None, *models, *[None] * 14


_head_loss.register_autograd(_gradients, setup_context=_keep)


def _triton_losses(
    logits_nV: Tensor, targets_n: Tensor, teachers: ChunkTeachers, s: LossSettings, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As :func:`chunk_losses`."""
    from hgrnx.ops.triton_head_loss import logits_to_losses  # needs a GPU's packages

    ce_n, kl_n = logits_to_losses(
        logits_nV,
        targets_n,
        vocab=s.vocab,
        ignore_index=s.ignore_index,
        weight=s.weight,
        temperature=s.temperature,
        reverse=s.reverse,
        wants_grad=s.wants_grad,
        teacher_logits=teachers.logits,
        teacher_top_k=teachers.top_k,
    )
    return ce_n.sum(), kl_n.sum()


def _teachers(
    hidden: Sequence[Tensor],
    heads: Sequence[Tensor],
    mixing: Sequence[float],
    logits_NV: Tensor | None,
    top_k: tuple[Tensor, Tensor, Tensor] | None,
    autocast_dtype: torch.dtype | None,
) -> Callable[[slice], ChunkTeachers]:
    """A function from a slice of tokens to what the teachers say there."""
    if not hidden:
        return ChunkTeachers([] if logits_NV is None else [(logits_NV, 1.0)], top_k).rows
    models = []
    for hidden_ND, weight_VD, share in zip(hidden, heads, mixing, strict=True):
        dtype = _product_dtype(hidden_ND, weight_VD, autocast_dtype)
        models.append((hidden_ND, weight_VD.to(dtype).T, share))
    return lambda rows: ChunkTeachers(
        [(hidden[rows].to(head.dtype) @ head, share) for hidden, head, share in models], None
    )


def _product_dtype(hidden_ND: Tensor, weight_VD: Tensor, autocast_dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    return dtype if autocast_dtype is None or dtype == torch.float64 else autocast_dtype


def _sum_dtype(product_dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if product_dtype == torch.float64 else torch.float32


def _check(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    teacher: TeacherSignal | None,
    weight: float,
    temperature: float,
    reverse_kl: bool,
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
    if teacher.top_k is not None:
        _check_top_k(*teacher.top_k, tokens, reverse_kl)
        return
    if teacher.logits_NV is not None:
        shapes = [("logits_NV", teacher.logits_NV.shape[0], teacher.logits_NV.shape[-1])]
    else:
        shapes = [(f"models[{i}]", h.shape[0], w.shape[0]) for i, (h, w, _) in enumerate(teacher.models or ())]
    for name, rows, entries in shapes:
        if rows != tokens or entries < vocab:
            found = f"{rows} tokens and {entries} entries"
            raise ValueError(f"head_loss: the teacher's {name} has {found}, not {tokens} and at least {vocab}")


def _check_top_k(ids: Tensor, top: Tensor, rest: Tensor, tokens: int, reverse_kl: bool) -> None:
    fits = ids.ndim == 2 and ids.shape[0] == tokens and ids.shape[1] > 0
    if not fits or ids.shape != top.shape or rest.shape != (tokens,):
        raise ValueError(
            f"head_loss: the teacher's top_k must be two tensors [{tokens}, k] and one [{tokens}], not "
            f"{list(ids.shape)}, {list(top.shape)} and {list(rest.shape)}"
        )
    if reverse_kl:
        raise ValueError("head_loss: reverse_kl needs a teacher that gives every entry a probability, not a top_k")
