"""HGRN2 (arXiv 2404.07904): a gated linear RNN with a matrix state per head.

Parameter names, shapes and arithmetic are those of flash-linear-attention's ``HGRN2ForCausalLM``, so weights go
both ways. Per head, with gate f_t in (lower bound, 1) and input i_t:
S_t = diag(f_t) S_{t-1} + (1 - f_t) i_t^T, o_t = S_t^T q_t.

Shapes: B rows, T tokens, D model width, H heads, K keys per head, V values per head (vocabulary where said),
N packed documents, P = conv_size - 1, C = 3 D channels of the short convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgrnx.config import HGRN2Config
from hgrnx.models.base import LanguageModel, State, padding
from hgrnx.models.conv import CausalConv1d
from hgrnx.models.mlp import GatedMLP
from hgrnx.models.norm import RMSNorm
from hgrnx.ops import Forest, forest_recurrence, forget_gate, gated_linear_recurrence

_OUTPUT_NORM_EPS = 1e-5  # FLA normalises the recurrence's output with this, whatever the config says


class HGRN2State(NamedTuple):
    """One [B, H, K, V] float32 tensor per layer; its size does not grow with the text.

    Models with short convolutions also have the last inputs of these, [B, P, C] per layer.
    """

    layers: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...] = ()

    def select(self, indices: Tensor) -> HGRN2State:
        """The state of the rows ``indices`` [M], in that order."""
        return HGRN2State(*(tuple(layer.index_select(0, indices) for layer in part) for part in self))


class Context(NamedTuple):
    """Where rows end and documents begin; the same in every layer."""

    documents: Tensor | Forest | None
    """Offsets of documents in the single row, or a forest, which leaves no state behind."""
    lengths_B: Tensor | None
    padding_BT: Tensor | None


class HGRN2Attention(nn.Module):
    """The recurrent token mixer."""

    def __init__(self, config: HGRN2Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_size = config.expand_ratio
        self.use_short_conv = config.use_short_conv
        self.q_proj = nn.Linear(size, size, bias=False)
        self.f_proj = nn.Linear(size, size, bias=False)
        self.i_proj = nn.Linear(size, size, bias=False)
        if config.use_short_conv:
            self.q_conv1d = CausalConv1d(size, config.conv_size, bias=False)
            self.f_conv1d = CausalConv1d(size, config.conv_size, bias=False)
            self.i_conv1d = CausalConv1d(size, config.conv_size, bias=False)
        self.g_norm = RMSNorm(size, _OUTPUT_NORM_EPS)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        lower_bound_HK: Tensor | None,
        state_BHKV: Tensor | None,
        inputs_BPC: Tensor | None,
        context: Context,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        heads = (-1, self.head_size)
        q_BTD, f_BTD, i_BTD = self.q_proj(x_BTD), self.f_proj(x_BTD), self.i_proj(x_BTD)
        if self.use_short_conv:
            (q_BTD, f_BTD, i_BTD), inputs_BPC = self._convolve((q_BTD, f_BTD, i_BTD), inputs_BPC, context)
        q_BTHK = (F.silu(q_BTD) * self.head_size**-0.5).unflatten(-1, heads)
        log_f_BTHK, k_BTHK = forget_gate(f_BTD.unflatten(-1, heads), lower_bound_HK)
        i_BTHV = i_BTD.unflatten(-1, heads)
        if context.padding_BT is not None:  # f = 1 and k = 0 leave the state as it is
            log_f_BTHK = log_f_BTHK.masked_fill(context.padding_BT[..., None, None], 0.0)
            k_BTHK = k_BTHK.masked_fill(context.padding_BT[..., None, None], 0.0)
        inputs = (q_BTHK, k_BTHK, i_BTHV, log_f_BTHK)
        if isinstance(context.documents, Forest):
            o_BTHV, state_BHKV = forest_recurrence(*inputs, context.documents), None
        else:
            o_BTHV, state_BHKV = gated_linear_recurrence(*inputs, state_BHKV, context.documents)
        return self.o_proj(self.g_norm(o_BTHV.flatten(-2))), state_BHKV, inputs_BPC

    def _convolve(
        self, projections: tuple[Tensor, ...], inputs_BPC: Tensor | None, context: Context
    ) -> tuple[list[Tensor], Tensor]:
        """Queries, gates and inputs, each convolved over time, and the last that went in."""
        assert not isinstance(context.documents, Forest)
        past = (None,) * 3 if inputs_BPC is None else inputs_BPC.chunk(3, -1)
        convs = (self.q_conv1d, self.f_conv1d, self.i_conv1d)
        done = [
            conv(x_BTD, past_BPD, context.lengths_B, context.documents)
            for conv, x_BTD, past_BPD in zip(convs, projections, past, strict=True)
        ]
        return [y_BTD for y_BTD, _ in done], torch.cat([last_BPD for _, last_BPD in done], -1)


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
        inputs_BPC: Tensor | None,
        context: Context,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        mixed_BTD, state_BHKV, inputs_BPC = self.attn(
            self.attn_norm(x_BTD), lower_bound_HK, state_BHKV, inputs_BPC, context
        )
        x_BTD = x_BTD + mixed_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), state_BHKV, inputs_BPC


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
        lengths_B: Tensor | None,
    ) -> tuple[Tensor, HGRN2State]:
        """``documents`` are those of :class:`Context`; rows of ``lengths_B`` tokens end in padding."""
        x_BTD = self.embeddings(tokens_BT)
        context = Context(documents, lengths_B, padding(tokens_BT, lengths_B))
        nothing = (None,) * len(self.layers)
        states, inputs = (nothing, nothing) if state is None else (state.layers, state.inputs or nothing)
        after: tuple[list[Tensor], list[Tensor]] = ([], [])
        for layer, bound_HK, *before in zip(self.layers, self.layer_lower_bounds(), states, inputs, strict=True):
            x_BTD, *now = layer(x_BTD, bound_HK, *before, context)
            for kept, value in zip(after, now, strict=True):
                if value is not None:
                    kept.append(value)
        return self.norm(x_BTD), HGRN2State(*map(tuple, after))


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
        """Linear and embedding weights N(0, ``initializer_range``), norms 1, lower bounds 0, as FLA's.

        Convolutions are torch's; with FLA's N(0, 0.02) next to nothing comes through at first.
        """
        self._initialize_common(generator, self.config.spread)
        for module in self.modules():
            if isinstance(module, CausalConv1d):
                module.initialize(generator)
        if self.config.use_lower_bound:
            self.model.lower_bounds.zero_()

    def hidden(
        self, tokens_BT: Tensor, cu_seqlens: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, HGRN2State]:
        assert state is None or isinstance(state, HGRN2State)
        return self.model(tokens_BT, state, cu_seqlens, None)

    def rows(self, tokens_BT: Tensor, lengths_B: Tensor | None, state: State | None) -> tuple[Tensor, HGRN2State]:
        assert state is None or isinstance(state, HGRN2State)
        return self.model(tokens_BT, state, None, lengths_B)

    def read_forest(self, tokens_T: Tensor, forest: Forest) -> Tensor:
        if self.config.use_short_conv:
            return super().read_forest(tokens_T, forest)
        hidden_1TD, _ = self.model(tokens_T[None], None, forest, None)
        return hidden_1TD[0]

    def segment_cost(self) -> float:
        """Nothing on a CPU where all is one recurrence, whose states never leave the cache."""
        at_once = self.head_weight.device.type == "cpu" and not self.config.use_short_conv
        return 0.0 if at_once else super().segment_cost()

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> HGRN2State:
        size = self.config.expand_ratio
        shape = (batch_size, self.config.hidden_size // size, size, size)
        device = device if device is not None else self.head_weight.device
        states = tuple(torch.zeros(shape, device=device) for _ in self.model.layers)
        if not self.config.use_short_conv:
            return HGRN2State(states)
        inputs = torch.zeros(batch_size, self.config.conv_size - 1, 3 * self.config.hidden_size, device=device)
        return HGRN2State(states, (inputs,) * len(states))

    def flops_per_token(self, seq_len: int) -> float:
        """2 per weight of each product and 5 per element of the state (decay, outer product, read-out), three times
        (backward costs twice the forward). ``seq_len`` does not matter: the state has constant size."""
        size, layers = self.config.hidden_size, self.config.num_hidden_layers
        convolutions = 3 * size * self.config.conv_size if self.config.use_short_conv else 0
        mixer = 4 * size * size + convolutions
        weights = layers * (mixer + 3 * size * intermediate_size(self.config)) + size * self.vocab_size
        return 3.0 * (2 * weights + 5 * layers * size * self.config.expand_ratio)

    def _vocabulary_parameters(self) -> Iterator[Tensor]:
        yield self.model.embeddings.weight
        if not self.config.tie_word_embeddings:
            yield self.lm_head.weight


def intermediate_size(config: HGRN2Config) -> int:
    """Width of the gated MLP."""
    width = int(config.hidden_size * config.hidden_ratio * 2 / 3)
    return -(-width // 256) * 256
