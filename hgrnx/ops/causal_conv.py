"""The short convolution over time before a recurrence: each channel by itself, looking only backwards.

Shapes: B rows, T tokens, C channels, K tokens in a window, P = K - 1 tokens before the first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_conv(
    x_BTC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor,
    past_BPC: Tensor | None = None,
    lengths_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = bias + sum over j < K of weight_j x_{t - K + 1 + j}.

    Args:
        x_BTC: inputs.
        weight_CK: the last weight of a channel is for the token itself.
        bias_C: added to every output.
        past_BPC: the P inputs before the first; zeros when absent.
        lengths_B: row b holds this many tokens and then padding (None: no padding).

    Returns:
        Outputs [B, T, C] in the type of ``x_BTC``, and the last P inputs of each row [B, P, C], from before its
        first token where it has fewer.
    """
    B, T, C = x_BTC.shape
    P = weight_CK.shape[1] - 1
    if past_BPC is None:
        past_BPC = x_BTC.new_zeros(B, P, C)
    window_BSC = torch.cat((past_BPC.to(x_BTC.dtype), x_BTC), 1)
    if lengths_B is None:
        last_BPC = window_BSC[:, T:]
    else:
        index_BP = lengths_B[:, None] + torch.arange(P, device=x_BTC.device)
        last_BPC = window_BSC.gather(1, index_BP[..., None].expand(B, P, C))
    return _CausalConv.apply(window_BSC, weight_CK, bias_C), last_BPC


class _CausalConv(torch.autograd.Function):
    """Sums of shifted inputs: on a CPU quicker than torch's convolution with one group per channel, and its
    backward does not write a whole gradient for each shift as autograd would."""

    @staticmethod
    def forward(ctx: Any, window_BSC: Tensor, weight_CK: Tensor, bias_C: Tensor) -> Tensor:
        ctx.save_for_backward(window_BSC, weight_CK, bias_C)
        K = weight_CK.shape[1]
        T = window_BSC.shape[1] - K + 1
        weights = weight_CK.to(window_BSC.dtype).T.contiguous()
        y_BTC = torch.addcmul(bias_C.to(window_BSC.dtype), window_BSC[:, :T], weights[0])
        for j in range(1, K):
            y_BTC.addcmul_(window_BSC[:, j : j + T], weights[j])
        return y_BTC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        window_BSC, weight_CK, bias_C = ctx.saved_tensors
        K, T = weight_CK.shape[1], dy_BTC.shape[1]
        weights = weight_CK.to(dy_BTC.dtype).T.contiguous()
        d_window_BSC = torch.zeros_like(window_BSC)
        d_weight_CK = torch.empty_like(weight_CK)
        for j in range(K):
            d_window_BSC[:, j : j + T].addcmul_(dy_BTC, weights[j])
            d_weight_CK[:, j] = (window_BSC[:, j : j + T] * dy_BTC).sum((0, 1), dtype=weight_CK.dtype)
        return d_window_BSC, d_weight_CK, dy_BTC.sum((0, 1), dtype=bias_C.dtype)
