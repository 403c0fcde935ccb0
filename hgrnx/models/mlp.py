"""The gated MLP (SwiGLU, arXiv 2002.05202) of HGRN2 and of the Transformer.

Shapes: B rows, T tokens, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from hgrnx.ops import gated_unit


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), ``width`` wide inside."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(gated_unit(self.gate_proj(x_BTD), self.up_proj(x_BTD)))
