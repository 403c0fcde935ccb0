"""xLSTM's scalar memory with mixing (sLSTM; arXiv 2405.04517, equations 8 to 17), token by token.

Per unit, with pre-activations i, f, z, o that also depend on the last output of the unit's head:
c_t = f_t c_{t-1} + exp(i_t) tanh(z_t), n_t = f_t n_{t-1} + exp(i_t), y_t = sigmoid(o_t) c_t / n_t, f_t = sigmoid(f).

c and n are kept divided by exp(m), where m_t = max(log f_t + m_{t-1}, i_t); m cancels in the quotient, so no
gradient goes through it.

Shapes: B rows, T tokens, H heads, K units of a head; the 4 gates come in the order i, f, z, o.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class SLSTMMemory(NamedTuple):
    """Last output, c / exp(m), n / exp(m) and m, each [B, H, K] in float32; m is -inf before the first token."""

    y_BHK: Tensor
    c_BHK: Tensor
    n_BHK: Tensor
    m_BHK: Tensor


def slstm(
    gates_BTH4K: Tensor,
    recurrent_HK4K: Tensor,
    memory: SLSTMMemory | None = None,
    padding_BT: Tensor | None = None,
) -> tuple[Tensor, SLSTMMemory]:
    """Outputs y and the memory after each row's last valid token.

    Args:
        gates_BTH4K: the share of the inputs in the pre-activations, biases included.
        recurrent_HK4K: weights from a head's last outputs to its gates.
        memory: from before the first token; empty when absent.
        padding_BT: True where a row has ended; what is put out there is arbitrary. A row has at least one token.

    Returns:
        Outputs [B, T, H, K] and the memory, float32 (float64 for float64 gates).
    """
    dtype = torch.float64 if gates_BTH4K.dtype == torch.float64 else torch.float32
    B, _, H, _, K = gates_BTH4K.shape
    if memory is None:
        memory = empty_slstm_memory(B, H, K, gates_BTH4K.new_zeros((), dtype=dtype))
    with torch.autocast(gates_BTH4K.device.type, enabled=False):
        # Heads first, so that all heads' products are one call.
        gates_THBG = gates_BTH4K.to(dtype).permute(1, 2, 0, 3, 4).flatten(-2)
        recurrent_HKG = recurrent_HK4K.to(dtype).flatten(-2)
        y, c, n, m = (part.transpose(0, 1) for part in memory)
        outputs = []
        for t, inputs_HBG in enumerate(gates_THBG.unbind(0)):
            i, f, z, o = torch.baddbmm(inputs_HBG, y, recurrent_HKG).unflatten(-1, (4, K)).unbind(-2)
            log_f = F.logsigmoid(f)
            if padding_BT is not None:  # nothing enters and nothing is forgotten
                i = i.masked_fill(padding_BT[:, t, None], -torch.inf)
                log_f = log_f.masked_fill(padding_BT[:, t, None], 0.0)
            kept = log_f + m
            m = torch.maximum(kept, i).detach()
            kept, entering = (kept - m).exp(), (i - m).exp()
            c = torch.addcmul(kept * c, entering, z.tanh())
            n = torch.addcmul(entering, kept, n)
            y = o.sigmoid() * c / n
            outputs.append(y)
        y_BTHK = torch.stack(outputs).permute(2, 0, 1, 3)
    last_BHK = y_BTHK[:, -1]
    if padding_BT is not None:
        last_BHK = y_BTHK[torch.arange(B, device=y_BTHK.device), (~padding_BT).sum(1) - 1]
    return y_BTHK, SLSTMMemory(last_BHK, *(part.transpose(0, 1) for part in (c, n, m)))


def empty_slstm_memory(B: int, H: int, K: int, like: Tensor) -> SLSTMMemory:
    """The memory before the first token, on the device and in the type of ``like``."""
    zeros = like.new_zeros(B, H, K)
    return SLSTMMemory(zeros, zeros, zeros, torch.full_like(zeros, -torch.inf))
