"""The short convolution over time before a recurrence: each channel by itself, looking only backwards.

Shapes: B rows, T tokens, C channels, K tokens in a window, P = K - 1 tokens before the first, N packed documents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_conv(
    x_BTC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None,
    past_BPC: Tensor | None = None,
    lengths_B: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = bias + sum over j < K of weight_j x_{t - K + 1 + j}.

    Args:
        x_BTC: inputs.
        weight_CK: the last weight of a channel is for the token itself.
        bias_C: added to every output; None for none.
        past_BPC: the P inputs before the first; zeros when absent.
        lengths_B: row b holds this many tokens and then padding (None: no padding).
        cu_seqlens: offsets [N + 1] of documents packed one after the other into the single row; they do not see each
            other, and the inputs before and the last inputs have N rows.

    Returns:
        Outputs [B, T, C] in the type of ``x_BTC``, and the last P inputs of each row [B, P, C], from before its
        first token where it has fewer.
    """
    B, T, C = x_BTC.shape
    P = weight_CK.shape[1] - 1
    if cu_seqlens is not None:
        return _packed_conv(x_BTC, weight_CK, bias_C, past_BPC, cu_seqlens)
    if past_BPC is None:
        past_BPC = x_BTC.new_zeros(B, P, C)
    window_BSC = torch.cat((past_BPC.to(x_BTC.dtype), x_BTC), 1)
    if lengths_B is None:
        last_BPC = window_BSC[:, T:]
    else:
        index_BP = lengths_B[:, None] + torch.arange(P, device=x_BTC.device)
        last_BPC = window_BSC.gather(1, index_BP[..., None].expand(B, P, C))
    return _CausalConv.apply(window_BSC, weight_CK, bias_C), last_BPC


def _packed_conv(
    x_1TC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, past_NPC: Tensor | None, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    """One row for all documents, each with the P inputs from before it."""
    _, T, C = x_1TC.shape
    N, P = len(cu_seqlens) - 1, weight_CK.shape[1] - 1
    before_P = torch.arange(P, device=x_1TC.device)
    document_T = torch.arange(N, device=x_1TC.device).repeat_interleave(cu_seqlens.diff(), output_size=T)
    places_T = torch.arange(T, device=x_1TC.device) + P * (document_T + 1)
    ends_N1 = (cu_seqlens[1:] + P * torch.arange(1, N + 1, device=x_1TC.device))[:, None]
    window_1SC = x_1TC.new_zeros(1, T + N * P, C).index_copy(1, places_T, x_1TC)
    if past_NPC is not None:
        starts_N1 = (cu_seqlens[:-1] + P * torch.arange(N, device=x_1TC.device))[:, None]
        past_1sC = past_NPC.to(x_1TC.dtype).reshape(1, N * P, C)
        window_1SC = window_1SC.index_copy(1, (starts_N1 + before_P).flatten(), past_1sC)
    last_NPC = window_1SC[0, ends_N1 - P + before_P]
    y_1sC = _CausalConv.apply(window_1SC, weight_CK, bias_C)
    return y_1sC.index_select(1, places_T - P), last_NPC


class _CausalConv(torch.autograd.Function):
    """Sums of shifted inputs: on a CPU quicker than torch's convolution with one group per channel, and its
    backward does not write a whole gradient for each shift as autograd would."""

    @staticmethod
    def forward(ctx: Any, window_BSC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
        ctx.save_for_backward(window_BSC, weight_CK)
        ctx.bias_dtype = None if bias_C is None else bias_C.dtype
        K = weight_CK.shape[1]
        T = window_BSC.shape[1] - K + 1
        weights = weight_CK.to(window_BSC.dtype).T.contiguous()
        if bias_C is None:
            y_BTC = window_BSC[:, :T] * weights[0]
        else:
            y_BTC = torch.addcmul(bias_C.to(window_BSC.dtype), window_BSC[:, :T], weights[0])
        for j in range(1, K):
            y_BTC.addcmul_(window_BSC[:, j : j + T], weights[j])
        return y_BTC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        window_BSC, weight_CK = ctx.saved_tensors
        K, T = weight_CK.shape[1], dy_BTC.shape[1]
        weights = weight_CK.to(dy_BTC.dtype).T.contiguous()
        d_window_BSC = torch.zeros_like(window_BSC)
        d_weight_CK = torch.empty_like(weight_CK)
        for j in range(K):
            d_window_BSC[:, j : j + T].addcmul_(dy_BTC, weights[j])
            d_weight_CK[:, j] = (window_BSC[:, j : j + T] * dy_BTC).sum((0, 1), dtype=weight_CK.dtype)
        d_bias_C = None if ctx.bias_dtype is None else dy_BTC.sum((0, 1), dtype=ctx.bias_dtype)
        return d_window_BSC, d_weight_CK, d_bias_C
