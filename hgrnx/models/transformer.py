"""LLaMA (arXiv 2302.13971): causal attention with rotary positions, RMSNorm before each part, SwiGLU, no biases.

Parameter names, shapes and arithmetic are those of transformers' ``LlamaForCausalLM``, so weights go both ways.

Shapes: B rows, T tokens, D model width, H heads, K width of a head, S tokens in the cache; N tokens of a forest, R
trees, t tokens of the largest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgrnx.config import TransformerConfig
from hgrnx.models.base import LanguageModel, State
from hgrnx.models.mlp import GatedMLP
from hgrnx.models.norm import RMSNorm
from hgrnx.ops import Forest


class TransformerState(NamedTuple):
    """The keys (rotated) and values of all tokens so far, [B, H, S, K] per layer; it grows with the text.

    Row b has seen ``lengths_B[b]`` tokens; what stands behind them is arbitrary and never looked at.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths_B: Tensor

    def select(self, indices: Tensor) -> TransformerState:
        """The state of the rows ``indices`` [M], in that order."""
        keys = tuple(layer.index_select(0, indices) for layer in self.keys)
        values = tuple(layer.index_select(0, indices) for layer in self.values)
        return TransformerState(keys, values, self.lengths_B.index_select(0, indices))


class Attention(nn.Module):
    """Causal self-attention (PyTorch's scaled dot product)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_size = size // config.num_attention_heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        turns: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
        places: Places | Trees | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the output and the keys and values to remember; ``past`` are those of earlier calls."""
        q_BHTK, k_BHTK, v_BHTK = (
            proj(x_BTD).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHTK, k_BHTK = rotate(q_BHTK, turns), rotate(k_BHTK, turns)
        if places is None:  # without a past, being causal hides the padding too
            o_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        else:
            if past is not None and isinstance(places, Places):
                k_BHTK, v_BHTK = places.append(past[0], k_BHTK), places.append(past[1], v_BHTK)
            o_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=places.visible_B1TS)
        return self.o_proj(o_BHTK.transpose(1, 2).flatten(-2)), k_BHTK, v_BHTK


class Places:
    """Where new tokens go in the cache of rows that have seen different numbers of tokens, and what they see there.

    A row's tokens lie at the places of their positions, without gaps, so what is later is later in the cache.
    """

    def __init__(self, lengths_B: Tensor, tokens: int) -> None:
        device = lengths_B.device
        self.positions_BT = lengths_B[:, None] + torch.arange(tokens, device=device)
        self.size = int(lengths_B.max()) + tokens
        self.visible_B1TS = torch.arange(self.size, device=device) <= self.positions_BT[:, None, :, None]

    def append(self, old_BHSK: Tensor, new_BHTK: Tensor) -> Tensor:
        """Old keys or values with the new ones put behind each row's own."""
        room_BHSK = F.pad(old_BHSK.to(new_BHTK.dtype), (0, 0, 0, self.size - old_BHSK.shape[2]))
        return room_BHSK.scatter(2, self.positions_BT[:, None, :, None].expand_as(new_BHTK), new_BHTK)


class Trees:
    """Where the tokens of a forest stand when each of its trees is a row of its own, and what they see there."""

    def __init__(self, forest: Forest, device: torch.device) -> None:
        first_N = torch.zeros(int(forest.cu_seqlens[-1]), dtype=torch.int64)
        first_N[forest.cu_seqlens[:-1][forest.generations_N == 0]] = 1
        self.tree_N = first_N.cumsum(0) - 1
        sizes_R = self.tree_N.bincount()
        shifts_N = (sizes_R.cumsum(0) - sizes_R)[self.tree_N]
        self.place_N = torch.arange(len(shifts_N)) - shifts_N
        self.positions_R1t = self._rows(forest.positions())[:, None].to(device)
        # Padding sees itself, and nobody sees it: a row of the softmax without any entry would be NaN.
        order = torch.arange(int(sizes_R.max()))
        ends_Rt = self._rows(forest.ends() - shifts_N)
        seen_Rtt = (order <= order[:, None]) & ((order[:, None] < ends_Rt[:, None]) | (order == order[:, None]))
        self.visible_B1TS = seen_Rtt[:, None].to(device)

    def _rows(self, x_N: Tensor) -> Tensor:
        """Values of tokens as [R, t], 0 in the padding."""
        rows_Rt = x_N.new_zeros(int(self.tree_N[-1]) + 1, int(self.place_N.max()) + 1)
        rows_Rt[self.tree_N, self.place_N] = x_N
        return rows_Rt


def rotate(x_BHTK: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding (arXiv 2104.09864): dimension j and j + K/2 are turned by their position's angle."""
    cos, sin = (turn.to(x_BHTK.dtype) for turn in turns)
    first, second = x_BHTK.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class TransformerBlock(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x_BTD: Tensor,
        turns: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
        places: Places | Trees | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed_BTD, keys, values = self.self_attn(self.input_layernorm(x_BTD), turns, past, places)
        x_BTD = x_BTD + mixed_BTD
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD)), keys, values


class TransformerBody(nn.Module):
    """Everything but the output head (``model.`` in transformers' names)."""

    def __init__(self, config: TransformerConfig, padded_vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(padded_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, tokens_BT: Tensor, lengths_B: Tensor | None, state: TransformerState | None
    ) -> tuple[Tensor, TransformerState]:
        rows, tokens = tokens_BT.shape
        device = tokens_BT.device
        x_BTD = self.embed_tokens(tokens_BT)
        places = None
        positions, seen_B = torch.arange(tokens, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
        if state is not None:
            seen_B = state.lengths_B
            places = Places(seen_B, tokens)
            positions = places.positions_BT[:, None]
        turns = self._turns(positions)
        keys, values = [], []
        for number, layer in enumerate(self.layers):
            past = None if state is None else (state.keys[number], state.values[number])
            x_BTD, k_BHSK, v_BHSK = layer(x_BTD, turns, past, places)
            keys.append(k_BHSK)
            values.append(v_BHSK)
        seen_B = seen_B + (tokens if lengths_B is None else lengths_B)
        return self.norm(x_BTD), TransformerState(tuple(keys), tuple(values), seen_B)

    def read_forest(self, tokens_N: Tensor, forest: Forest) -> Tensor:
        """Hidden states [N, D]: each tree is a row, in which a token sees what it goes on from."""
        trees = Trees(forest, tokens_N.device)
        tree_N, place_N = trees.tree_N.to(tokens_N.device), trees.place_N.to(tokens_N.device)
        tokens_Rt = tokens_N.new_zeros(trees.visible_B1TS.shape[0], trees.visible_B1TS.shape[-1])
        tokens_Rt[tree_N, place_N] = tokens_N
        x_RtD, turns = self.embed_tokens(tokens_Rt), self._turns(trees.positions_R1t)
        for layer in self.layers:
            x_RtD, _, _ = layer(x_RtD, turns, None, trees)
        return self.norm(x_RtD[tree_N, place_N])

    def _turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles at ``positions`` [...], [..., K/2] each, in float32."""
        size = self.config.hidden_size // self.config.num_attention_heads
        exponents = torch.arange(0, size, 2, device=positions.device) / size
        angles = positions[..., None] * self.config.rope_theta**-exponents
        return angles.cos(), angles.sin()


class Transformer(LanguageModel):
    """The language model; ``head_weight`` is the embedding where the config ties them."""

    config: TransformerConfig
    tree_tokens = 256  # every token is compared with every other of its tree

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.model = TransformerBody(config, self.padded_vocab_size)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, self.padded_vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def initialize(self, generator: torch.Generator) -> None:
        """Linear and embedding weights N(0, ``initializer_range``), norms 1, as transformers'."""
        self._initialize_common(generator, self.config.spread)

    def rows(self, tokens_BT: Tensor, lengths_B: Tensor | None, state: State | None) -> tuple[Tensor, TransformerState]:
        assert state is None or isinstance(state, TransformerState)
        return self.model(tokens_BT, lengths_B, state)

    def read_forest(self, tokens_T: Tensor, forest: Forest) -> Tensor:
        return self.model.read_forest(tokens_T, forest)

    def segment_cost(self) -> float:
        """Nothing: a segment is a matter of which tokens are seen."""
        return 0.0

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> TransformerState:
        heads = self.config.num_attention_heads
        device = device if device is not None else self.head_weight.device
        empty = torch.zeros(batch_size, heads, 0, self.config.hidden_size // heads, device=device)
        layers = (empty,) * self.config.num_hidden_layers
        return TransformerState(layers, layers, torch.zeros(batch_size, dtype=torch.int64, device=device))

    def flops_per_token(self, seq_len: int) -> float:
        """2 per weight of each product, and 2 per element of a key and of a value for each of the ``(seq_len + 1) / 2``
        tokens that a token sees on average; three times (backward costs twice the forward)."""
        size, layers = self.config.hidden_size, self.config.num_hidden_layers
        weights = layers * (4 * size * size + 3 * size * self.config.intermediate_size) + size * self.vocab_size
        return 3.0 * (2 * weights + 2 * layers * size * (seq_len + 1))

    def _vocabulary_parameters(self) -> Iterator[Tensor]:
        yield self.model.embed_tokens.weight
        if not self.config.tie_word_embeddings:
            yield self.lm_head.weight
