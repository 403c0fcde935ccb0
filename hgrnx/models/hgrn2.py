"""HGRN2 (arXiv 2404.07904): a gated linear RNN with a matrix state per head.

Parameter names, shapes and arithmetic are those of flash-linear-attention's ``HGRN2ForCausalLM``, so weights go
both ways. Per head, with gate f_t in (lower bound, 1) and input i_t:
S_t = diag(f_t) S_{t-1} + (1 - f_t) i_t^T, o_t = S_t^T q_t.

Shapes: B rows, T tokens, D model width, H heads, K keys per head, V values per head (vocabulary where said),
N packed documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgrnx.config import HGRN2Config
from hgrnx.models.base import LanguageModel, State, padding
from hgrnx.models.mlp import GatedMLP
from hgrnx.models.norm import RMSNorm
from hgrnx.ops import Forest, forest_recurrence, forget_gate, gated_linear_recurrence

_OUTPUT_NORM_EPS = 1e-5  # FLA normalises the recurrence's output with this, whatever the config says


class HGRN2State(NamedTuple):
    """One [B, H, K, V] float32 tensor per layer; its size does not grow with the text."""

    layers: tuple[Tensor, ...]

    def select(self, indices: Tensor) -> HGRN2State:
        """The state of the rows ``indices`` [M], in that order."""
        return HGRN2State(tuple(layer.index_select(0, indices) for layer in self.layers))


class HGRN2Attention(nn.Module):
    """The recurrent token mixer."""

    def __init__(self, config: HGRN2Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_size = config.expand_ratio
        self.q_proj = nn.Linear(size, size, bias=False)
        self.f_proj = nn.Linear(size, size, bias=False)
        self.i_proj = nn.Linear(size, size, bias=False)
        self.g_norm = RMSNorm(size, _OUTPUT_NORM_EPS)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        lower_bound_HK: Tensor | None,
        state_BHKV: Tensor | None,
        documents: Tensor | Forest | None,
        padding_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        heads = (-1, self.head_size)
        q_BTHK = (F.silu(self.q_proj(x_BTD)) * self.head_size**-0.5).unflatten(-1, heads)
        log_f_BTHK, k_BTHK = forget_gate(self.f_proj(x_BTD).unflatten(-1, heads), lower_bound_HK)
        i_BTHV = self.i_proj(x_BTD).unflatten(-1, heads)
        if padding_BT is not None:  # f = 1 and k = 0 leave the state as it is
            log_f_BTHK = log_f_BTHK.masked_fill(padding_BT[..., None, None], 0.0)
            k_BTHK = k_BTHK.masked_fill(padding_BT[..., None, None], 0.0)
        inputs = (q_BTHK, k_BTHK, i_BTHV, log_f_BTHK)
        if isinstance(documents, Forest):
            o_BTHV, state_BHKV = forest_recurrence(*inputs, documents), None
        else:
            o_BTHV, state_BHKV = gated_linear_recurrence(*inputs, state_BHKV, documents)
        return self.o_proj(self.g_norm(o_BTHV.flatten(-2))), state_BHKV


class HGRN2Block(nn.Module):
    """Recurrence and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: HGRN2Config) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = HGRN2Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config.hidden_size, intermediate_size(config))

    def forward(
        self,
        x_BTD: Tensor,
        lower_bound_HK: Tensor | None,
        state_BHKV: Tensor | None,
        documents: Tensor | Forest | None,
        padding_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        mixed_BTD, state_BHKV = self.attn(self.attn_norm(x_BTD), lower_bound_HK, state_BHKV, documents, padding_BT)
        x_BTD = x_BTD + mixed_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), state_BHKV


class HGRN2Body(nn.Module):
    """Everything but the output head (``model.`` in FLA's names)."""

    def __init__(self, config: HGRN2Config, padded_vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(padded_vocab_size, config.hidden_size)
        if config.use_lower_bound:
            self.lower_bounds = nn.Parameter(torch.zeros(config.num_hidden_layers, config.hidden_size))
        self.layers = nn.ModuleList(HGRN2Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def layer_lower_bounds(self) -> list[Tensor | None]:
        """Each layer's lower bounds [H, K]: the cumulated softmax over layers, less its first row (HGRN2, eq. 4)."""
        layers = len(self.layers)
        if not self.config.use_lower_bound:
            return [None] * layers
        shares_LD = self.lower_bounds.float().softmax(0)
        bounds_LD = shares_LD.cumsum(0) - shares_LD[0]
        # The first row is exactly zero: that layer has no bound.
        return [None, *bounds_LD[1:].unflatten(-1, (-1, self.config.expand_ratio)).unbind(0)]

    def forward(
        self,
        tokens_BT: Tensor,
        state: HGRN2State | None,
        documents: Tensor | Forest | None,
        padding_BT: Tensor | None,
    ) -> tuple[Tensor, HGRN2State]:
        """``documents`` are offsets in the single row, or a forest; a forest leaves no state behind."""
        x_BTD = self.embeddings(tokens_BT)
        before = state.layers if state is not None else (None,) * len(self.layers)
        after = []
        for layer, bound_HK, state_BHKV in zip(self.layers, self.layer_lower_bounds(), before, strict=True):
            x_BTD, state_BHKV = layer(x_BTD, bound_HK, state_BHKV, documents, padding_BT)
            if state_BHKV is not None:
                after.append(state_BHKV)
        return self.norm(x_BTD), HGRN2State(tuple(after))


class HGRN2(LanguageModel):
    """The language model; ``head_weight`` is the embedding where the config ties them."""

    config: HGRN2Config
    undecayed = ("lower_bounds",)

    def __init__(self, config: HGRN2Config, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.model = HGRN2Body(config, self.padded_vocab_size)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, self.padded_vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        return self.model.embeddings.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def initialize(self, generator: torch.Generator) -> None:
        """FLA's: linear and embedding weights N(0, ``initializer_range``), norms 1, lower bounds 0."""
        self._initialize_common(generator, self.config.initializer_range)
        if self.config.use_lower_bound:
            self.model.lower_bounds.zero_()

    def hidden(
        self, tokens_BT: Tensor, cu_seqlens: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, HGRN2State]:
        assert state is None or isinstance(state, HGRN2State)
        return self.model(tokens_BT, state, cu_seqlens, None)

    def rows(self, tokens_BT: Tensor, lengths_B: Tensor | None, state: State | None) -> tuple[Tensor, HGRN2State]:
        assert state is None or isinstance(state, HGRN2State)
        return self.model(tokens_BT, state, None, padding(tokens_BT, lengths_B))

    def read_forest(self, tokens_T: Tensor, forest: Forest) -> Tensor:
        hidden_1TD, _ = self.model(tokens_T[None], None, forest, None)
        return hidden_1TD[0]

    def segment_cost(self) -> float:
        """Nothing on a CPU, where the recurrence's states never leave the cache."""
        return 0.0 if self.head_weight.device.type == "cpu" else super().segment_cost()

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> HGRN2State:
        size = self.config.expand_ratio
        shape = (batch_size, self.config.hidden_size // size, size, size)
        device = device if device is not None else self.head_weight.device
        return HGRN2State(tuple(torch.zeros(shape, device=device) for _ in self.model.layers))

    def flops_per_token(self, seq_len: int) -> float:
        """2 per weight of each product and 5 per element of the state (decay, outer product, read-out), three times
        (backward costs twice the forward). ``seq_len`` does not matter: the state has constant size."""
        size, layers = self.config.hidden_size, self.config.num_hidden_layers
        weights = layers * (4 * size * size + 3 * size * intermediate_size(self.config)) + size * self.vocab_size
        return 3.0 * (2 * weights + 5 * layers * size * self.config.expand_ratio)

    def _vocabulary_parameters(self) -> Iterator[Tensor]:
        yield self.model.embeddings.weight
        if not self.config.tie_word_embeddings:
            yield self.lm_head.weight


def intermediate_size(config: HGRN2Config) -> int:
    """Width of the gated MLP."""
    width = int(config.hidden_size * config.hidden_ratio * 2 / 3)
    return -(-width // 256) * 256
