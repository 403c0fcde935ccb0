"""xLSTM (arXiv 2405.04517): a stack of mLSTM blocks with sLSTM blocks among them.

Layout, sizes and initial weights are those of the authors' package ``xlstm`` (``xLSTMLMModel``); its norms store
their weight less one, and in its sLSTM layers ``fgate`` and ``igate`` change places.

Shapes: B rows, T tokens, D model width, C channels inside an mLSTM block (2 D), H heads, K channels of a head,
P = 3 tokens that the convolution looks back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgrnx.config import XLSTMConfig
from hgrnx.models.base import LanguageModel, State, padding
from hgrnx.models.conv import CausalConv1d
from hgrnx.ops import (
    MLSTMMemory,
    SLSTMMemory,
    empty_mlstm_memory,
    empty_slstm_memory,
    mlstm,
    slstm,
)

_KERNEL = 4  # tokens in a window of the convolution
_PROJECTION_BLOCK = 4  # channels that queries, keys and values mix
_PRODUCT_BLOCK = 64  # channels of one matrix product: copying and multiplying fours takes longer than the zeros do
_NORM_EPS = 1e-5


class BlockState(NamedTuple):
    """What a block remembers: the last inputs of its convolution [B, P, C or D], and its memory."""

    inputs: Tensor
    memory: MLSTMMemory | SLSTMMemory


class XLSTMState(NamedTuple):
    """One state per block; its size does not grow with the text."""

    blocks: tuple[BlockState, ...]

    def select(self, indices: Tensor) -> XLSTMState:
        """The state of the rows ``indices`` [M], in that order."""
        return XLSTMState(
            tuple(
                BlockState(
                    block.inputs.index_select(0, indices),
                    type(block.memory)(*(part.index_select(0, indices) for part in block.memory)),
                )
                for block in self.blocks
            )
        )


class HeadwiseLinear(nn.Module):
    """A linear map within each of several equal parts of the input; no bias."""

    def __init__(self, size: int, parts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(parts, size // parts, size // parts))  # [part, output, input]

    def forward(self, x_BTD: Tensor) -> Tensor:
        parts, size, _ = self.weight.shape
        together = math.gcd(parts, max(1, _PRODUCT_BLOCK // size))
        weight = self.weight.unflatten(0, (-1, together))
        # Several parts next to each other as one block-diagonal matrix.
        diagonal = torch.eye(together, dtype=weight.dtype, device=weight.device)
        blocks_hoi = torch.einsum("hpoi,pq->hpoqi", weight, diagonal).flatten(3).flatten(1, 2)
        return torch.einsum("bthi,hoi->btho", x_BTD.unflatten(-1, (len(blocks_hoi), -1)), blocks_hoi).flatten(-2)


class HeadNorm(nn.Module):
    """LayerNorm of each head by itself, with one weight per channel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x_BTHK: Tensor) -> Tensor:
        return F.layer_norm(x_BTHK, x_BTHK.shape[-1:], eps=_NORM_EPS).flatten(-2) * self.weight


class MLSTMLayer(nn.Module):
    """Matrix memory between an up- and a down-projection, gated by the other half of the up-projection."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        channels = 2 * config.hidden_size
        self.heads = config.num_heads
        self.proj_up = nn.Linear(config.hidden_size, 2 * channels, bias=False)
        self.conv1d = CausalConv1d(channels, _KERNEL)
        self.q_proj = HeadwiseLinear(channels, channels // _PROJECTION_BLOCK)
        self.k_proj = HeadwiseLinear(channels, channels // _PROJECTION_BLOCK)
        self.v_proj = HeadwiseLinear(channels, channels // _PROJECTION_BLOCK)
        self.igate = nn.Linear(3 * channels, config.num_heads)
        self.fgate = nn.Linear(3 * channels, config.num_heads)
        self.outnorm = HeadNorm(channels)
        self.learnable_skip = nn.Parameter(torch.ones(channels))
        self.proj_down = nn.Linear(channels, config.hidden_size, bias=False)

    def initialize(self, generator: torch.Generator, config: XLSTMConfig) -> None:
        """The gates start from their biases alone: forget gates between sigmoid(3) and sigmoid(6)."""
        for module in (self.proj_up, self.q_proj, self.k_proj, self.v_proj):
            small(module.weight, config, generator)
        down(self.proj_down.weight, config, generator)
        self.conv1d.initialize(generator)
        self.igate.weight.zero_()
        self.igate.bias.normal_(0.0, 0.1, generator=generator)
        self.fgate.weight.zero_()
        self.fgate.bias.copy_(torch.linspace(3.0, 6.0, self.heads))
        self.outnorm.weight.fill_(1.0)
        self.learnable_skip.fill_(1.0)

    def forward(
        self, x_BTD: Tensor, state: BlockState | None, lengths_B: Tensor | None, padding_BT: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        x_BTC, gate_BTC = self.proj_up(x_BTD).chunk(2, -1)
        mixed_BTC, inputs_BPC = self.conv1d(x_BTC, None if state is None else state.inputs, lengths_B)
        mixed_BTC = F.silu(mixed_BTC)
        qkv = (self.q_proj(mixed_BTC), self.k_proj(mixed_BTC), self.v_proj(x_BTC))
        together_BTE = torch.cat(qkv, -1)
        i_BHT, f_BHT = (gate(together_BTE).transpose(1, 2) for gate in (self.igate, self.fgate))
        q_BHTK, k_BHTK, v_BHTK = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv)
        memory = None if state is None else MLSTMMemory(*state.memory)
        o_BHTK, memory = mlstm(q_BHTK, k_BHTK, v_BHTK, i_BHT, f_BHT, memory, padding_BT)
        o_BTC = self.outnorm(o_BHTK.transpose(1, 2)) + self.learnable_skip * mixed_BTC
        return self.proj_down(o_BTC * F.silu(gate_BTC)), BlockState(inputs_BPC, memory)


class SLSTMLayer(nn.Module):
    """Scalar memory whose gates also see the last outputs of their head."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_heads
        self.heads = heads
        self.conv1d = CausalConv1d(size, _KERNEL)
        self.igate = HeadwiseLinear(size, heads)
        self.fgate = HeadwiseLinear(size, heads)
        self.zgate = HeadwiseLinear(size, heads)
        self.ogate = HeadwiseLinear(size, heads)
        self.recurrent = nn.Parameter(torch.zeros(heads, size // heads, 4, size // heads))  # [H, input, gate, output]
        self.gate_bias = nn.Parameter(torch.zeros(heads * 4 * (size // heads)))
        self.outnorm = HeadNorm(size)

    def initialize(self, generator: torch.Generator, config: XLSTMConfig, place: int) -> None:
        """No recurrent weights yet, and forget gates that spread over the units, the more so the deeper the block."""
        for module in (self.igate, self.fgate, self.zgate, self.ogate):
            small(module.weight, config, generator)
        self.conv1d.initialize(generator)
        self.recurrent.zero_()
        self.gate_bias.zero_()
        depth = place / max(config.num_hidden_layers - 1, 1)
        units = config.hidden_size // self.heads
        forget = self.gate_bias.view(self.heads, 4, units)[:, 1]
        forget.copy_(5.0 - 12.0 * torch.linspace(0.0, 1.0, units) ** (0.3 + 1.3 * depth))
        self.outnorm.weight.fill_(1.0)

    def forward(
        self, x_BTD: Tensor, state: BlockState | None, lengths_B: Tensor | None, padding_BT: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        mixed_BTD, inputs_BPD = self.conv1d(x_BTD, None if state is None else state.inputs, lengths_B)
        mixed_BTD = F.silu(mixed_BTD)
        gates = (self.igate(mixed_BTD), self.fgate(mixed_BTD), self.zgate(x_BTD), self.ogate(x_BTD))
        gates_BTH4K = torch.stack([gate.unflatten(-1, (self.heads, -1)) for gate in gates], -2)
        gates_BTH4K = gates_BTH4K + self.gate_bias.view(gates_BTH4K.shape[2:])  # float32 from here on
        memory = None if state is None else SLSTMMemory(*state.memory)
        y_BTHK, memory = slstm(gates_BTH4K, self.recurrent, memory, padding_BT)
        # With bfloat16 weights the residual stream stays bfloat16: its norms take no float32 then.
        return self.outnorm(y_BTHK).to(x_BTD.dtype), BlockState(inputs_BPD, memory)


class GatedGELU(nn.Module):
    """down(gelu(gate) * up), both halves of one projection; 1.3 D wide, rounded up to a multiple of 64."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        width = feedforward_size(config)
        self.proj_up = nn.Linear(config.hidden_size, 2 * width, bias=False)
        self.proj_down = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.proj_up(x_BTD).chunk(2, -1)
        return self.proj_down(F.gelu(gate) * up)


class MLSTMBlock(nn.Module):
    """The layer behind a norm, added to the residual stream."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, _NORM_EPS, bias=False)
        self.layer = MLSTMLayer(config)

    def initialize(self, generator: torch.Generator, config: XLSTMConfig, place: int) -> None:
        self.layer.initialize(generator, config)

    def forward(
        self, x_BTD: Tensor, state: BlockState | None, lengths_B: Tensor | None, padding_BT: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        y_BTD, state = self.layer(self.norm(x_BTD), state, lengths_B, padding_BT)
        return x_BTD + y_BTD, state


class SLSTMBlock(nn.Module):
    """The layer and an MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, _NORM_EPS, bias=False)
        self.layer = SLSTMLayer(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, _NORM_EPS, bias=False)
        self.mlp = GatedGELU(config)

    def initialize(self, generator: torch.Generator, config: XLSTMConfig, place: int) -> None:
        self.layer.initialize(generator, config, place)
        small(self.mlp.proj_up.weight, config, generator)
        down(self.mlp.proj_down.weight, config, generator)

    def forward(
        self, x_BTD: Tensor, state: BlockState | None, lengths_B: Tensor | None, padding_BT: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        y_BTD, state = self.layer(self.norm(x_BTD), state, lengths_B, padding_BT)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), state


class XLSTM(LanguageModel):
    """The language model; ``head_weight`` is the embedding where the config ties them."""

    config: XLSTMConfig
    undecayed = ("recurrent",)

    def __init__(self, config: XLSTMConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.embedding = nn.Embedding(self.padded_vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(
            SLSTMBlock(config) if place in config.slstm_at else MLSTMBlock(config)
            for place in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, _NORM_EPS, bias=False)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, self.padded_vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def initialize(self, generator: torch.Generator) -> None:
        """Embedding, head and what opens a block N(0, 2 / (5 D)) (variance), what closes a block much smaller, both
        in the blocks times ``initializer_gain``; norms 1, gates as their layers say."""
        self._initialize_common(generator, small_spread(self.config))
        for place, block in enumerate(self.blocks):
            assert isinstance(block, (MLSTMBlock, SLSTMBlock))
            block.initialize(generator, self.config, place)

    def rows(self, tokens_BT: Tensor, lengths_B: Tensor | None, state: State | None) -> tuple[Tensor, XLSTMState]:
        assert state is None or isinstance(state, XLSTMState)
        x_BTD = self.embedding(tokens_BT)
        padding_BT = padding(tokens_BT, lengths_B)
        after = []
        for place, block in enumerate(self.blocks):
            x_BTD, block_state = block(x_BTD, None if state is None else state.blocks[place], lengths_B, padding_BT)
            after.append(block_state)
        return self.norm(x_BTD), XLSTMState(tuple(after))

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> XLSTMState:
        size, heads = self.config.hidden_size, self.config.num_heads
        like = torch.zeros((), device=device if device is not None else self.head_weight.device)
        blocks = []
        for place in range(self.config.num_hidden_layers):
            scalar = place in self.config.slstm_at
            channels = size if scalar else 2 * size
            units = channels // heads
            memory: MLSTMMemory | SLSTMMemory = (
                empty_slstm_memory(batch_size, heads, units, like)
                if scalar
                else empty_mlstm_memory(batch_size, heads, units, units, like)
            )
            blocks.append(BlockState(like.new_zeros(batch_size, _KERNEL - 1, channels), memory))
        return XLSTMState(tuple(blocks))

    def flops_per_token(self, seq_len: int) -> float:
        """2 per weight of each product and 5 per element of a matrix memory (decay, outer product, read-out), three
        times (backward costs twice the forward). ``seq_len`` does not matter: the state has constant size."""
        size, heads = self.config.hidden_size, self.config.num_heads
        weights = sum(p.numel() for p in self.blocks.parameters() if p.ndim >= 2) + size * self.vocab_size
        matrix_blocks = self.config.num_hidden_layers - len(self.config.slstm_at)
        return 3.0 * (2 * weights + 5 * matrix_blocks * (2 * size) ** 2 / heads)

    def _vocabulary_parameters(self) -> Iterator[Tensor]:
        yield self.embedding.weight
        if not self.config.tie_word_embeddings:
            yield self.lm_head.weight


def feedforward_size(config: XLSTMConfig) -> int:
    """Width of the MLP of an sLSTM block."""
    return math.ceil(1.3 * config.hidden_size / 64) * 64


def small_spread(config: XLSTMConfig) -> float:
    """Standard deviation of the "small init" (arXiv 1910.05895)."""
    return math.sqrt(2 / (5 * config.hidden_size))


def small(weight: Tensor, config: XLSTMConfig, generator: torch.Generator) -> None:
    weight.normal_(0.0, config.initializer_gain * small_spread(config), generator=generator)


def down(weight: Tensor, config: XLSTMConfig, generator: torch.Generator) -> None:
    """The smaller the deeper the stack, so that the residual stream does not grow with depth."""
    spread = config.initializer_gain * 2 / config.num_hidden_layers / math.sqrt(config.hidden_size)
    weight.normal_(0.0, spread, generator=generator)
