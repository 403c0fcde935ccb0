"""The gated linear recurrence, one token after the other: slow, and what all other implementations are held to.

Shapes: B batch, T time, H heads, K keys and V values per head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_recurrence(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_f_BTHK: Tensor,
    initial_state_BHKV: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = diag(f_t) S_{t-1} + k_t v_t^T and o_t = S_t^T q_t, in float32 (float64 for float64 inputs).

    Arguments and results are those of :func:`hgrnx.ops.gated_linear_recurrence`.
    """
    dtype = torch.float64 if q_BTHK.dtype == torch.float64 else torch.float32
    q, k, v, log_f = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, log_f_BTHK))
    state = None if initial_state_BHKV is None else initial_state_BHKV.to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        if cu_seqlens is None:
            o_BTHV, state = _scan(q, k, v, log_f, state)
            return o_BTHV.to(v_BTHV.dtype), state
        bounds = cu_seqlens.tolist()
        outputs, states = [], []
        for n, (start, end) in enumerate(zip(bounds, bounds[1:])):
            q_n, k_n, v_n, log_f_n = (x[:, start:end] for x in (q, k, v, log_f))
            o, last = _scan(q_n, k_n, v_n, log_f_n, None if state is None else state[n : n + 1])
            outputs.append(o)
            states.append(last)
        return torch.cat(outputs, 1).to(v_BTHV.dtype), torch.cat(states)


def _scan(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    B, _, H, K = q.shape
    state_BHKV = q.new_zeros(B, H, K, v.shape[-1]) if state is None else state
    outputs = []
    # unbind, not x[:, t]: the backward of indexing writes a whole [B, T, H, K] gradient for every t.
    for q_BHK, k_BHK, v_BHV, f_BHK in zip(q.unbind(1), k.unbind(1), v.unbind(1), log_f.exp().unbind(1)):
        state_BHKV = state_BHKV * f_BHK[..., None] + k_BHK[..., None] * v_BHV[..., None, :]
        outputs.append((state_BHKV * q_BHK[..., None]).sum(-2))
    return torch.stack(outputs, 1), state_BHKV
