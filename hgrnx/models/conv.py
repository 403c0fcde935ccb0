"""The short causal convolution of Mamba, xLSTM and HGRN2 as a module, with torch.nn.Conv1d's parameters.

Shapes: B rows, T tokens, C channels, K tokens in a window, P = K - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hgrnx.ops import causal_conv


class CausalConv1d(nn.Module):
    """Each channel by itself; see :func:`hgrnx.ops.causal_conv`."""

    def __init__(self, channels: int, kernel: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def initialize(self, generator: torch.Generator) -> None:
        """torch's: uniform within ±K^-0.5."""
        bound = self.weight.shape[-1] ** -0.5
        self.weight.uniform_(-bound, bound, generator=generator)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound, generator=generator)

    def forward(
        self, x_BTC: Tensor, past_BPC: Tensor | None, lengths_B: Tensor | None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return causal_conv(x_BTC, self.weight[:, 0], self.bias, past_BPC, lengths_B, cu_seqlens)
