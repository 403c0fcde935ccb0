"""xLSTM's matrix memory (mLSTM; arXiv 2405.04517, equations 19 to 27), chunk by chunk.

Per head, with log f_t = logsigmoid(forget gate) and i_t the input gate's pre-activation:
C_t = f_t C_{t-1} + exp(i_t) k_t v_t^T, n_t = f_t n_{t-1} + exp(i_t) k_t, o_t = C_t^T q_t / max(|n_t . q_t|, 1).

exp(i_t) has no bound, so C and n are kept divided by exp(m), where m_t = max(log f_t + m_{t-1}, i_t) is the largest
exponent so far. m cancels in the quotient: any other would give the same outputs, and no gradient goes through it.

Shapes: B rows, H heads, T tokens, K keys per head, V values per head; N chunks of L tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK = 64
_EPS = 1e-6  # as in the authors' code; matters only where all exponents are above 80


class MLSTMMemory(NamedTuple):
    """C / exp(m) [B, H, K, V], n / exp(m) [B, H, K] and m [B, H], all float32; m is -inf before the first token."""

    C_BHKV: Tensor
    n_BHK: Tensor
    m_BH: Tensor


def mlstm(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    i_BHT: Tensor,
    f_BHT: Tensor,
    memory: MLSTMMemory | None = None,
    padding_BT: Tensor | None = None,
) -> tuple[Tensor, MLSTMMemory]:
    """Outputs o and the memory after each row's last valid token.

    Args:
        q_BHTK: queries, not scaled: the keys are divided by the root of K here.
        k_BHTK: keys.
        v_BHTV: values.
        i_BHT: pre-activations of the input gate, whose exponential is the gate.
        f_BHT: pre-activations of the forget gate, a sigmoid.
        memory: from before the first token; empty when absent.
        padding_BT: True where a row has ended; what is put out there is arbitrary. A row has at least one token.

    Returns:
        Outputs [B, H, T, V] in the type of ``v_BHTV``, and the memory. Gradients recompute all that is inside.
    """
    dtype = torch.float64 if i_BHT.dtype == torch.float64 else torch.float32
    i_BHT, log_f_BHT = i_BHT.to(dtype), F.logsigmoid(f_BHT.to(dtype))
    if padding_BT is not None:  # nothing enters and nothing is forgotten
        i_BHT = i_BHT.masked_fill(padding_BT[:, None], -torch.inf)
        log_f_BHT = log_f_BHT.masked_fill(padding_BT[:, None], 0.0)
    if memory is None and i_BHT.shape[-1] > _CHUNK:
        memory = empty_mlstm_memory(k_BHTK.shape[0], k_BHTK.shape[1], k_BHTK.shape[3], v_BHTV.shape[3], i_BHT)
    arguments = (q_BHTK, k_BHTK, v_BHTV, i_BHT, log_f_BHT, *(memory or ()))
    if torch.is_grad_enabled():  # the [L, L] and [K, V] tensors of all chunks and layers would not fit
        o_BHTV, *after = checkpoint(_chunkwise, *arguments, use_reentrant=False, preserve_rng_state=False)
    else:
        o_BHTV, *after = _chunkwise(*arguments)
    return o_BHTV, MLSTMMemory(*after)


def empty_mlstm_memory(B: int, H: int, K: int, V: int, like: Tensor) -> MLSTMMemory:
    """The memory before the first token, on the device and in the type of ``like``."""
    return MLSTMMemory(like.new_zeros(B, H, K, V), like.new_zeros(B, H, K), like.new_full((B, H), -torch.inf))


def _chunkwise(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_f: Tensor, *memory: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Without a memory for one chunk only: there are many short texts to be scored, and [K, V] is large beside one."""
    T, K = k.shape[2:]
    L = min(_CHUNK, T)
    missing = -T % L
    q, k, v = (F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, L)) for x in (q, k, v))
    i_BHNL = F.pad(i, (0, missing), value=-torch.inf).unflatten(2, (-1, L))
    log_f_BHNL = F.pad(log_f, (0, missing)).unflatten(2, (-1, L))
    k = k * K**-0.5
    dtype = i.dtype

    # decay: the sum of log f from the chunk's start. What remains of a token at the chunk's end is summed up by
    # itself, not taken as a difference, whose gradient would be lost to rounding where gates are closed.
    decay_BHNL = log_f_BHNL.cumsum(-1)
    rest_BHNL = F.pad(log_f_BHNL[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1) + i_BHNL
    top_BHN = rest_BHNL.detach().amax(-1).clamp(min=torch.finfo(dtype).min)  # a chunk may be all padding
    weighted_BHNLK = k * (rest_BHNL - top_BHN[..., None]).exp()[..., None].to(k.dtype)
    inside_BHNKV = (weighted_BHNLK.mT @ v).to(dtype)
    inside_BHNK = weighted_BHNLK.to(dtype).sum(-2)

    # exponents[l, j] of token j's share in token l's output, and carried[l] of the memory from before the chunk.
    ones_LL = torch.ones(L, L, dtype=torch.bool, device=k.device)
    between_BHNLL = (decay_BHNL[..., None] - decay_BHNL[..., None, :]).masked_fill(ones_LL.triu(), 0.0)
    exponents_BHNLL = (between_BHNLL + i_BHNL[..., None, :]).masked_fill(ones_LL.triu(1), -torch.inf)
    m_BHNL = exponents_BHNLL.detach().amax(-1)
    scores_BHNLL = q @ k.mT
    if memory:
        C_BHNKV, n_BHNK, m_BHN, after = _before_each(decay_BHNL[..., -1], top_BHN, inside_BHNKV, inside_BHNK, *memory)
        carried_BHNL = decay_BHNL + m_BHN[..., None]
        m_BHNL = torch.maximum(m_BHNL, carried_BHNL.detach())
    else:
        after = (inside_BHNKV[:, :, 0], inside_BHNK[:, :, 0], top_BHN[:, :, 0])
    scores_BHNLL = scores_BHNLL * (exponents_BHNLL - m_BHNL[..., None]).exp()
    total_BHNL = scores_BHNLL.sum(-1)
    o_BHNLV = scores_BHNLL.to(v.dtype) @ v
    if memory:
        carried_q_BHNLK = q * (carried_BHNL - m_BHNL).exp()[..., None].to(q.dtype)
        total_BHNL = total_BHNL + (carried_q_BHNLK @ n_BHNK.to(q.dtype)[..., None])[..., 0]
        o_BHNLV = o_BHNLV + carried_q_BHNLK @ C_BHNKV.to(q.dtype)
    norm_BHNL = torch.maximum(total_BHNL.abs(), (-m_BHNL).exp()) + _EPS
    o_BHNLV = o_BHNLV / norm_BHNL[..., None]
    return o_BHNLV.to(v.dtype).flatten(2, 3)[:, :, :T], *after


def _before_each(
    whole_BHN: Tensor,
    top_BHN: Tensor,
    inside_BHNKV: Tensor,
    inside_BHNK: Tensor,
    C_BHKV: Tensor,
    n_BHK: Tensor,
    m_BH: Tensor,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """C, n and m before each chunk, and the three after the last. ``whole_BHN``: the sum of a chunk's log f."""
    Cs, ns, ms = [], [], []
    for whole_BH, top_BH, new_BHKV, new_BHK in zip(
        *(x.unbind(2) for x in (whole_BHN, top_BHN, inside_BHNKV, inside_BHNK)), strict=True
    ):
        Cs.append(C_BHKV)
        ns.append(n_BHK)
        ms.append(m_BH)
        next_m_BH = torch.maximum(whole_BH.detach() + m_BH, top_BH)
        old_BH1 = (whole_BH + m_BH - next_m_BH).exp()[..., None]
        new_BH1 = (top_BH - next_m_BH).exp()[..., None]
        C_BHKV = old_BH1[..., None] * C_BHKV + new_BH1[..., None] * new_BHKV
        n_BHK = old_BH1 * n_BHK + new_BH1 * new_BHK
        m_BH = next_m_BH
    return torch.stack(Cs, 2), torch.stack(ns, 2), torch.stack(ms, 2), (C_BHKV, n_BHK, m_BH)
