"""The gated linear recurrence in plain torch: chunked, recomputing, with a backward written by hand.

Shapes: B batch, T time, H heads, K keys, V values per head. Inside, the work is cut into slabs that fit
a core's cache; in a slab R is its (sequence, head) pairs, N chunks of one pair, M = R N chunks in all, C tokens
of a chunk, P tokens of a block, J = M C / P blocks.

Within a chunk, o_i = sum over j <= i of ((q_i decay(j+1..i)) . k_j) v_j, where decay(j+1..i) is a product of
gates. It must never be split as decay(..i) / decay(..j), which overflows. It is built as a tree instead:

- in blocks of P tokens, from one row to the next: every earlier key is multiplied by the new row's gate;
- then blocks are joined by two, to pairs of s tokens, until they are chunks: queries of the upper half carry
  the decay from its start, keys of the lower half the decay to its end, and the rest is a matrix product.

So every factor is a product of gates, at most 1, and gates of 0 are as good as any. The backward walks the
same tree downwards. The gradient of a log-gate is the sum over pairs (j, i) that the gate lies between;
it comes out of the tree as just that sum, without a difference of larger ones.

Forward and backward are custom operators so that torch.compile leaves them alone: traced, the loops over the slabs,
which share their buffers, would make a graph that grows with the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgrnx.ops.cpu import flushed_denormals
from hgrnx.ops.packing import in_padded_rows
from hgrnx.ops.slabs import chunking, compute_dtype, pad_time, put, slabs, take

_CHUNK = 32
_BLOCK = 4


def chunked_recurrence(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_f_BTHK: Tensor,
    initial_state_BHKV: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results are those of :func:`hgrnx.ops.gated_linear_recurrence`."""
    if cu_seqlens is not None:
        sequence = (q_BTHK, k_BTHK, v_BTHV, log_f_BTHK)
        return in_padded_rows(_forward, *sequence, initial_state_BHKV, cu_seqlens)
    return _forward(q_BTHK, k_BTHK, v_BTHV, log_f_BTHK, initial_state_BHKV)


class _Level(NamedTuple):
    """A joining of two halves of s tokens."""

    q_up: Tensor  # [pairs, s, K], queries of the upper half, decayed from its start
    k_low: Tensor  # [pairs, s, K], keys of the lower half, decayed to its end
    decay_low: Tensor  # [pairs, 1, K]
    decay_up: Tensor  # [pairs, 1, K]
    scores: Tensor  # [pairs, s, s]


class _Tree(NamedTuple):
    """The decays and scores of a slab. Without ``keep`` only what the outputs need is right."""

    q_JPK: Tensor
    k_JPK: Tensor
    f_JPK: Tensor
    prefix_JPK: Tensor  # decay from the block's start
    keys: list[Tensor]  # per row i of a block, [J, i, K]: the earlier keys, decayed to that row
    scores_JPP: Tensor
    levels: list[_Level]
    q_MCK: Tensor  # decayed from the chunk's start
    k_MCK: Tensor  # decayed to the chunk's end
    decay_MK: Tensor  # of the whole chunk


@torch.library.custom_op("hgrnx::chunked_recurrence", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    B, T, H, K = q.shape
    V = v.shape[-1]
    chunk, padded = chunking(T, _CHUNK)
    inputs = [pad_time(x, padded) for x in (q, k, v, log_f)]
    o = v.new_empty(B, padded, H, V)
    final = q.new_empty(B, H, K, V, dtype=compute_dtype(q))
    with torch.autocast(q.device.type, enabled=False), flushed_denormals():
        for slab in slabs(B, padded, H, K):
            q_RTK, k_RTK, v_RTV, g_RTK = (take(x, slab) for x in inputs)
            tree = _build_tree(q_RTK, k_RTK, g_RTK, chunk, keep=False)
            v_MCV = v_RTV.view(-1, chunk, V)
            state = None if initial_state is None else initial_state[slab].flatten(0, 1)
            states_MKV, last_RKV = _chunk_states(tree, v_MCV, state, q_RTK.shape[0])
            o_MCV = _outputs(tree, v_MCV)
            o_MCV.baddbmm_(tree.q_MCK, states_MKV)
            put(o, slab, o_MCV)
            final[slab] = last_RKV.view(final[slab].shape)
    return o[:, :T], final


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    B, T, H, K = q.shape
    _, padded = chunking(T, _CHUNK)
    return v.new_empty(B, padded, *v.shape[2:])[:, :T], q.new_empty(B, H, K, v.shape[-1], dtype=compute_dtype(q))


@torch.library.custom_op("hgrnx::chunked_recurrence_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None, grad_o: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_f and the initial state (an empty tensor without one)."""
    B, T, H, K = q.shape
    chunk, padded = chunking(T, _CHUNK)
    inputs = [pad_time(x, padded) for x in (q, k, v, log_f, grad_o)]
    grads = [x.new_empty(B, padded, *x.shape[2:]) for x in (q, k, v, log_f)]
    grad_initial = q.new_empty(0) if initial_state is None else torch.empty_like(initial_state)
    with torch.autocast(q.device.type, enabled=False), flushed_denormals():
        for slab in slabs(B, padded, H, K):
            q_RTK, k_RTK, v_RTV, g_RTK, do_RTV = (take(x, slab) for x in inputs)
            state = None if initial_state is None else initial_state[slab].flatten(0, 1)
            d_last_RKV = grad_final[slab].flatten(0, 1)
            *slab_grads, grad_state = _slab_backward(q_RTK, k_RTK, v_RTV, g_RTK, do_RTV, state, d_last_RKV, chunk)
            for grad, slab_grad in zip(grads, slab_grads):
                put(grad, slab, slab_grad)
            if initial_state is not None:
                grad_initial[slab] = grad_state.view(grad_initial[slab].shape)
    dq, dk, dv, dlog_f = (grad[:, :T] for grad in grads)
    return dq, dk, dv, dlog_f, grad_initial


@_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None, grad_o: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T = q.shape[:2]
    _, padded = chunking(T, _CHUNK)
    dq, dk, dv, dlog_f = (x.new_empty(B, padded, *x.shape[2:])[:, :T] for x in (q, k, v, log_f))
    return dq, dk, dv, dlog_f, q.new_empty(0) if initial_state is None else torch.empty_like(initial_state)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_o: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors  # once: activation checkpointing hands them out a single time
    *grads, grad_initial = _backward(*inputs, grad_o, grad_final)
    return (*grads, None if inputs[4] is None else grad_initial)


_forward.register_autograd(_gradients, setup_context=_keep_inputs)


def _slab_backward(
    q_RTK: Tensor,
    k_RTK: Tensor,
    v_RTV: Tensor,
    g_RTK: Tensor,
    do_RTV: Tensor,
    initial_RKV: Tensor | None,
    d_final_RKV: Tensor,
    chunk: int,
) -> tuple[Tensor, ...]:
    tree = _build_tree(q_RTK, k_RTK, g_RTK, chunk, keep=True)
    R, T, K = q_RTK.shape
    N, V = T // chunk, v_RTV.shape[-1]
    v_MCV, do_MCV = v_RTV.view(-1, chunk, V), do_RTV.view(-1, chunk, V)
    states_MKV, _ = _chunk_states(tree, v_MCV, initial_RKV, R)

    # Gradients of the state after each chunk, from the last to the first.
    d_states_MKV = torch.bmm(tree.q_MCK.mT, do_MCV)
    d_states_RNKV = d_states_MKV.view(R, N, K, V)
    decay_RNK1 = tree.decay_MK.view(R, N, K, 1)
    d_state_RKV = d_final_RKV.to(d_states_MKV.dtype, copy=True)
    for inside_RKV, decay_RK1 in zip(d_states_RNKV.unbind(1)[::-1], decay_RNK1.unbind(1)[::-1]):
        before = torch.addcmul(inside_RKV, d_state_RKV, decay_RK1)
        inside_RKV.copy_(d_state_RKV)
        d_state_RKV = before

    dq_MCK = torch.bmm(do_MCV, states_MKV.mT)
    dk_MCK = torch.bmm(v_MCV, d_states_MKV.mT)
    dv_MCV = torch.bmm(tree.k_MCK, d_states_MKV)
    # Gradient of the log of the chunk's decay; handed down, and added to, by each level.
    d_decay = states_MKV.mul_(d_states_MKV).sum(-1).mul_(tree.decay_MK)

    for level in reversed(tree.levels):
        pairs, s, _ = level.q_up.shape
        dq_up, dk_low = dq_MCK.view(pairs, 2 * s, K)[:, s:], dk_MCK.view(pairs, 2 * s, K)[:, :s]
        do_up, v_low = do_MCV.view(pairs, 2 * s, V)[:, s:], v_MCV.view(pairs, 2 * s, V)[:, :s]
        dq_up *= level.decay_low
        dk_low *= level.decay_up
        d_decays = d_decay.new_empty(pairs, 2, K)
        torch.sum(dq_up * level.q_up, 1, out=d_decays[:, 0])
        torch.sum(dk_low * level.k_low, 1, out=d_decays[:, 1])
        d_decay = d_decays.add_(d_decay[:, None]).view(2 * pairs, K)
        # Products are added, not accumulated by baddbmm_, which is slow into a strided result.
        d_scores = torch.bmm(do_up, v_low.mT)
        dq_up += torch.bmm(d_scores, level.k_low)
        dk_low += torch.bmm(d_scores.mT, level.q_up)
        dv_MCV.view(pairs, 2 * s, V)[:, :s] += torch.bmm(level.scores.mT, do_up)

    J, P, _ = tree.q_JPK.shape
    do_JPV = do_MCV.view(J, P, V)
    d_scores_JPP = torch.bmm(do_JPV, v_MCV.view(J, P, V).mT)
    dv_MCV.view(J, P, V).add_(torch.bmm(tree.scores_JPP.mT, do_JPV))
    dq_JPK, dk_JPK = dq_MCK.view(J, P, K), dk_MCK.view(J, P, K)
    dg_JPK = _block_backward(tree, dq_JPK, dk_JPK, d_scores_JPP, d_decay)
    return dq_JPK, dk_JPK, dv_MCV, dg_JPK, d_state_RKV


def _block_backward(tree: _Tree, dq_JPK: Tensor, dk_JPK: Tensor, d_scores_JPP: Tensor, d_decay_JK: Tensor) -> Tensor:
    """Turns the gradients of a block's decayed queries and keys into those of the plain ones; returns the gates'."""
    P = tree.q_JPK.shape[1]
    dq_JPK *= tree.prefix_JPK
    dg_JPK = dq_JPK * tree.q_JPK
    q_rows, f_rows, dq_rows, dg_rows = (x.split(1, 1) for x in (tree.q_JPK, tree.f_JPK, dq_JPK, dg_JPK))
    d_scores_rows = d_scores_JPP[..., None].unbind(1)
    dg_rows[P - 1].add_(d_decay_JK[:, None])
    for i in reversed(range(P - 1)):
        dg_rows[i].add_(dg_rows[i + 1])
    # Row by row, from the last: `earlier` is the gradient of the keys as decayed to row i.
    for i in reversed(range(1, P)):
        earlier, keys, d_scores_Ji1 = dk_JPK[:, :i], tree.keys[i], d_scores_rows[i][:, :i]
        earlier.addcmul_(d_scores_Ji1, q_rows[i])
        dq_rows[i].add_((keys * d_scores_Ji1).sum(1, keepdim=True))
        dg_rows[i].add_((keys * earlier).sum(1, keepdim=True))
        earlier *= f_rows[i]
    diagonal_JP1 = d_scores_JPP.diagonal(dim1=1, dim2=2)[..., None]
    dq_JPK.addcmul_(diagonal_JP1, tree.k_JPK)
    dk_JPK.addcmul_(diagonal_JP1, tree.q_JPK)
    return dg_JPK


def _build_tree(q_RTK: Tensor, k_RTK: Tensor, g_RTK: Tensor, chunk: int, keep: bool) -> _Tree:
    """The decays and scores of a slab, whose tensors it may overwrite."""
    K = q_RTK.shape[-1]
    P = min(_BLOCK, chunk)
    q_JPK, k_JPK, f_JPK = (x.view(-1, P, K) for x in (q_RTK, k_RTK, g_RTK))
    J = q_JPK.shape[0]
    # The chunk's decay from the sum of logs: a product would round the same way for each gate near 1.
    decay_MK = f_JPK.view(-1, chunk, K).sum(1).exp_()
    f_JPK.exp_()

    scores_JPP = q_JPK.new_zeros(J, P, P)
    torch.sum(q_JPK * k_JPK, -1, out=scores_JPP.diagonal(dim1=1, dim2=2))
    decayed_JPK = k_JPK.clone() if keep else k_JPK
    prefix_JPK = f_JPK.clone()
    keys = [decayed_JPK[:, :0]]
    q_rows, f_rows, prefix_rows = (x.split(1, 1) for x in (q_JPK, f_JPK, prefix_JPK))  # each [J, 1, K]
    for i in range(1, P):
        earlier = decayed_JPK[:, :i]
        earlier *= f_rows[i]
        prefix_rows[i].mul_(prefix_rows[i - 1])
        keys.append(earlier.clone() if keep else earlier)
        torch.sum(earlier * q_rows[i], -1, out=scores_JPP[:, i, :i])

    decay = prefix_rows[P - 1]
    q_MCK = (q_JPK * prefix_JPK).view(-1, chunk, K)
    k_MCK = decayed_JPK.view(-1, chunk, K)
    levels = []
    s = P
    while s < chunk:
        q_up, k_low = q_MCK.view(-1, 2 * s, K)[:, s:], k_MCK.view(-1, 2 * s, K)[:, :s]
        decay_low, decay_up = decay.view(-1, 2, 1, K).unbind(1)
        scores = torch.bmm(q_up, k_low.mT)
        kept = (q_up.clone(), k_low.clone()) if keep else (q_up, k_low)
        levels.append(_Level(*kept, decay_low, decay_up, scores))
        q_up *= decay_low
        k_low *= decay_up
        decay = (decay_low * decay_up).view(-1, K)
        s *= 2
    return _Tree(q_JPK, k_JPK, f_JPK, prefix_JPK, keys, scores_JPP, levels, q_MCK, k_MCK, decay_MK)


def _outputs(tree: _Tree, v_MCV: Tensor) -> Tensor:
    """Outputs from the values of the same chunk."""
    J, P, _ = tree.scores_JPP.shape
    V = v_MCV.shape[-1]
    o_JPV = torch.bmm(tree.scores_JPP, v_MCV.view(J, P, V))
    for level in tree.levels:
        pairs, s, _ = level.scores.shape
        o_JPV.view(pairs, 2 * s, V)[:, s:] += torch.bmm(level.scores, v_MCV.view(pairs, 2 * s, V)[:, :s])
    return o_JPV.view(v_MCV.shape)


def _chunk_states(tree: _Tree, v_MCV: Tensor, initial_RKV: Tensor | None, R: int) -> tuple[Tensor, Tensor]:
    """States before each chunk, [M, K, V], and after the last, [R, K, V]."""
    states_MKV = torch.bmm(tree.k_MCK.mT, v_MCV)
    M, K, V = states_MKV.shape
    states_RNKV, decay_RNK1 = states_MKV.view(R, M // R, K, V), tree.decay_MK.view(R, M // R, K, 1)
    if initial_RKV is None:
        state_RKV = states_MKV.new_zeros(R, K, V)
    else:
        state_RKV = initial_RKV.to(states_MKV.dtype, copy=True)
    for inside_RKV, decay_RK1 in zip(states_RNKV.unbind(1), decay_RNK1.unbind(1)):
        after = torch.addcmul(inside_RKV, state_RKV, decay_RK1)
        inside_RKV.copy_(state_RKV)
        state_RKV = after
    return states_MKV, state_RKV
