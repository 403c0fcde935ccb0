"""Mamba (arXiv 2312.00752): a state space model per channel whose steps and projections depend on the input.

Parameter names, shapes and arithmetic are those of transformers' ``MambaForCausalLM``, so weights go both ways.

Shapes: B rows, T tokens, D model width, C channels of the mixer, S states of a channel, R rank of the time steps,
P = conv_kernel - 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgrnx.config import MambaConfig
from hgrnx.models.base import LanguageModel, State, padding
from hgrnx.models.conv import CausalConv1d
from hgrnx.models.norm import RMSNorm
from hgrnx.ops import selective_scan

_SHORTEST_STEP, _LONGEST_STEP = 1e-3, 1e-1  # between these the initial time steps lie, evenly in their logarithm


class MambaState(NamedTuple):
    """Per layer, the last inputs of the convolution [B, P, C] and the states of the scan [B, C, S], float32."""

    inputs: tuple[Tensor, ...]
    states: tuple[Tensor, ...]

    def select(self, indices: Tensor) -> MambaState:
        """The state of the rows ``indices`` [M], in that order."""
        return MambaState(*(tuple(layer.index_select(0, indices) for layer in part) for part in self))


class TimeStep(nn.Module):
    """softplus(weight x + bias), in float32 from where the bias is added: steps differ by factors of a hundred."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, rank))
        self.bias = nn.Parameter(torch.zeros(channels))

    def initialize(self, generator: torch.Generator, gain: float) -> None:
        """Weights uniform within ±gain R^-0.5, biases such that softplus(bias) is log-uniform within usual steps."""
        bound = gain * self.weight.shape[1] ** -0.5
        self.weight.uniform_(-bound, bound, generator=generator)
        self.bias.uniform_(math.log(_SHORTEST_STEP), math.log(_LONGEST_STEP), generator=generator)
        step = self.bias.exp()
        self.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def forward(self, x_BTR: Tensor) -> Tensor:
        return F.softplus(F.linear(x_BTR, self.weight) + self.bias)


class MambaMixer(nn.Module):
    """Convolution, selective scan and gate."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        channels = config.intermediate_size
        self.splits = [config.rank, config.state_size, config.state_size]
        self.in_proj = nn.Linear(config.hidden_size, 2 * channels, bias=False)
        self.conv1d = CausalConv1d(channels, config.conv_kernel)
        self.x_proj = nn.Linear(channels, sum(self.splits), bias=False)
        self.dt_proj = TimeStep(config.rank, channels)
        self.A_log = nn.Parameter(torch.zeros(channels, config.state_size))
        self.D = nn.Parameter(torch.zeros(channels))
        self.out_proj = nn.Linear(channels, config.hidden_size, bias=False)

    def initialize(self, generator: torch.Generator, config: MambaConfig) -> None:
        """As mamba_ssm: torch's uniform weights (times ``initializer_gain``), those of the output divided by the root
        of the number of layers; A = -1 ... -S in every channel; D = 1."""
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            bound = config.initializer_gain * linear.in_features**-0.5
            linear.weight.uniform_(-bound, bound, generator=generator)
        self.out_proj.weight.div_(config.num_hidden_layers**0.5)
        self.conv1d.initialize(generator)
        self.dt_proj.initialize(generator, config.initializer_gain)
        self.A_log.copy_(torch.arange(1, self.A_log.shape[1] + 1).log().expand_as(self.A_log))
        self.D.fill_(1.0)

    def forward(
        self,
        x_BTD: Tensor,
        inputs_BPC: Tensor | None,
        state_BCS: Tensor | None,
        lengths_B: Tensor | None,
        padding_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        u_BTC, gate_BTC = self.in_proj(x_BTD).chunk(2, -1)
        u_BTC, inputs_BPC = self.conv1d(u_BTC, inputs_BPC, lengths_B)
        u_BTC = F.silu(u_BTC)
        r_BTR, b_BTS, c_BTS = self.x_proj(u_BTC).split(self.splits, -1)
        dt_BTC = self.dt_proj(r_BTR)
        if padding_BT is not None:  # a step of 0 leaves the state as it is
            dt_BTC = dt_BTC.masked_fill(padding_BT[..., None], 0.0)
        y_BTC, state_BCS = selective_scan(u_BTC, dt_BTC, -self.A_log.exp(), b_BTS, c_BTS, state_BCS)
        y_BTC = torch.addcmul(y_BTC, u_BTC, self.D.to(u_BTC.dtype)) * F.silu(gate_BTC)
        return self.out_proj(y_BTC), inputs_BPC, state_BCS


class MambaBlock(nn.Module):
    """The mixer behind a norm, added to the residual stream; there is no MLP."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = MambaMixer(config)

    def forward(
        self,
        x_BTD: Tensor,
        inputs_BPC: Tensor | None,
        state_BCS: Tensor | None,
        lengths_B: Tensor | None,
        padding_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed_BTD, inputs_BPC, state_BCS = self.mixer(self.norm(x_BTD), inputs_BPC, state_BCS, lengths_B, padding_BT)
        return x_BTD + mixed_BTD, inputs_BPC, state_BCS


class MambaBody(nn.Module):
    """Everything but the output head (``backbone.`` in transformers' names)."""

    def __init__(self, config: MambaConfig, padded_vocab_size: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(padded_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MambaBlock(config) for _ in range(config.num_hidden_layers))
        self.norm_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)

    def forward(
        self, tokens_BT: Tensor, lengths_B: Tensor | None, state: MambaState | None
    ) -> tuple[Tensor, MambaState]:
        x_BTD = self.embeddings(tokens_BT)
        padding_BT = padding(tokens_BT, lengths_B)
        inputs, states = [], []
        for number, layer in enumerate(self.layers):
            before = (None, None) if state is None else (state.inputs[number], state.states[number])
            x_BTD, inputs_BPC, state_BCS = layer(x_BTD, *before, lengths_B, padding_BT)
            inputs.append(inputs_BPC)
            states.append(state_BCS)
        return self.norm_f(x_BTD), MambaState(tuple(inputs), tuple(states))


class Mamba(LanguageModel):
    """The language model; ``head_weight`` is the embedding where the config ties them."""

    config: MambaConfig
    undecayed = ("A_log",)

    def __init__(self, config: MambaConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.backbone = MambaBody(config, self.padded_vocab_size)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, self.padded_vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        return self.backbone.embeddings.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def initialize(self, generator: torch.Generator) -> None:
        """Embedding and head N(0, ``initializer_range``), norms 1, mixers as their authors do."""
        self._initialize_common(generator, self.config.initializer_range)
        for layer in self.backbone.layers:
            assert isinstance(layer, MambaBlock)
            layer.mixer.initialize(generator, self.config)

    def rows(self, tokens_BT: Tensor, lengths_B: Tensor | None, state: State | None) -> tuple[Tensor, MambaState]:
        assert state is None or isinstance(state, MambaState)
        return self.backbone(tokens_BT, lengths_B, state)

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> MambaState:
        channels, layers = self.config.intermediate_size, self.config.num_hidden_layers
        device = device if device is not None else self.head_weight.device
        inputs = torch.zeros(batch_size, self.config.conv_kernel - 1, channels, device=device)
        states = torch.zeros(batch_size, channels, self.config.state_size, device=device)
        return MambaState((inputs,) * layers, (states,) * layers)

    def flops_per_token(self, seq_len: int) -> float:
        """2 per weight of each product, and 7 per element of the state (its decay's exponent and exponential, decay,
        input and sum, read-out), three times (backward costs twice the forward). ``seq_len`` does not matter: the
        state has constant size."""
        size, channels, states = self.config.hidden_size, self.config.intermediate_size, self.config.state_size
        mixer = 3 * size * channels + channels * (2 * self.config.rank + 2 * states + self.config.conv_kernel)
        weights = self.config.num_hidden_layers * mixer + size * self.vocab_size
        return 3.0 * (2 * weights + 7 * self.config.num_hidden_layers * channels * states)

    def _vocabulary_parameters(self) -> Iterator[Tensor]:
        yield self.backbone.embeddings.weight
        if not self.config.tie_word_embeddings:
            yield self.lm_head.weight
