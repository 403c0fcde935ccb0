"""The contract every architecture keeps.

Shapes: B rows, T tokens, D model width, V vocabulary (padded), N packed documents, L tokens of the longest one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hgrnx.config import ModelConfig
from hgrnx.models.norm import RMSNorm
from hgrnx.ops import Forest

VOCAB_MULTIPLE = 64
# Moving an element of a state costs memory's time, a token's work the arithmetic's: about as many operations can be
# done meanwhile, on CPUs and GPUs alike.
_OPERATIONS_PER_STATE_ELEMENT = 160
_CALL_TOKENS = 2.0


class State(Protocol):
    """What a model remembers of the tokens it has seen; a pytree of tensors whose first dimension is the row."""

    def select(self, indices: Tensor) -> State:
        """The state of the rows ``indices`` [M] (int64), in that order; a row may be taken several times."""
        ...


class LanguageModel(nn.Module, ABC):
    """Maps tokens to hidden states; the output head is ``hidden @ head_weight.T``.

    The vocabulary is padded to a multiple of 64 so that it can be sharded and tiled. Rows of the head from
    ``vocab_size`` on belong to no token: whoever uses the head masks them.
    """

    config: ModelConfig
    vocab_size: int
    padded_vocab_size: int
    undecayed: tuple[str, ...] = ()
    """Last parts of the names of the matrices that weight decay leaves alone. Vectors never decay."""
    tree_tokens: int | None = None
    """Largest tree of a forest that is read well; None where any is."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.padded_vocab_size = -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    @abstractmethod
    def head_weight(self) -> Tensor:
        """Weight of the output head, [V, D]."""

    @abstractmethod
    def initialize(self, generator: torch.Generator) -> None:
        """Fill every parameter with its initial value, as the architecture's authors do; called without gradients.

        ``generator`` alone decides the values; what the memory of the parameters held before does not matter.
        """

    @abstractmethod
    def rows(self, tokens_BT: Tensor, lengths_B: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Hidden states [B, T, D] of independent rows, and the state after each row's last valid token.

        Row b holds ``lengths_B[b]`` tokens and then padding (None: no padding); what stands at padded places of
        the result is arbitrary.
        """

    @abstractmethod
    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> State:
        """The state before the first token."""

    @abstractmethod
    def flops_per_token(self, seq_len: int) -> float:
        """Floating-point operations for training on one token (forward and backward) in sequences of ``seq_len``."""

    def hidden(
        self, tokens_BT: Tensor, cu_seqlens: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Hidden states [B, T, D] and the state after the last token.

        Args:
            tokens_BT: token ids, int64.
            cu_seqlens: offsets [N + 1] of documents packed one after the other into the single row of
                ``tokens_BT``: strictly increasing, from 0 to T. Documents do not see each other; states have N rows.
            state: continue from here (one row of state per row of tokens, or per document).
        """
        if cu_seqlens is None:
            return self.rows(tokens_BT, None, state)
        lengths_N = check_cu_seqlens(tokens_BT, cu_seqlens)
        valid_NL = torch.arange(int(lengths_N.max()), device=tokens_BT.device) < lengths_N[:, None]
        padded_NL = tokens_BT.new_zeros(valid_NL.shape)
        padded_NL[valid_NL] = tokens_BT[0]
        hidden_NLD, state = self.rows(padded_NL, lengths_N, state)
        return hidden_NLD[valid_NL][None], state

    def read_forest(self, tokens_T: Tensor, forest: Forest) -> Tensor:
        """Hidden states [T, D] of the tokens of a forest, each after those before it in its row."""
        hidden_TD, state = None, None
        for places_t, cu_seqlens, parents_M in forest.by_generation(tokens_T.device):
            if state is not None and parents_M is not None:
                state = state.select(parents_M)
            hidden_1tD, state = self.hidden(tokens_T[places_t][None], cu_seqlens, state)
            if hidden_TD is None:
                hidden_TD = hidden_1tD.new_empty(len(tokens_T), hidden_1tD.shape[-1])
            hidden_TD[places_t] = hidden_1tD[0]
        assert hidden_TD is not None
        return hidden_TD

    def segment_cost(self) -> float:
        """Tokens that can be read in the time that it takes a segment of a forest to go on from another one."""
        elements = sum(leaf.numel() for leaf in tree_leaves(self.init_state(1)))
        operations = 2 * sum(parameter.numel() for parameter in self.parameters())
        return _CALL_TOKENS + _OPERATIONS_PER_STATE_ELEMENT * elements / operations

    def forward(self, tokens_BT: Tensor, cu_seqlens: Tensor | None = None, state: State | None = None) -> Tensor:
        """Logits [B, T, ``vocab_size``] in float32; for small inputs, training and scoring never hold them all."""
        hidden_BTD, _ = self.hidden(tokens_BT, cu_seqlens, state)
        return (hidden_BTD @ self.head_weight.to(hidden_BTD.dtype).T)[..., : self.vocab_size].float()

    def parameter_counts(self) -> dict[str, int]:
        """``total``, ``embedding`` (embedding and, where it is separate, output head) and ``other`` parameters."""
        total = sum(parameter.numel() for parameter in self.parameters())
        embedding = sum(parameter.numel() for parameter in self._vocabulary_parameters())
        return {"total": total, "embedding": embedding, "other": total - embedding}

    def _initialize_common(self, generator: torch.Generator, spread: float) -> None:
        """Linear and embedding weights N(0, ``spread``), linear biases 0, norms 1; the rest is left as it is."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0.0, spread, generator=generator)
            elif isinstance(module, (RMSNorm, nn.LayerNorm)):
                module.weight.fill_(1.0)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()

    @abstractmethod
    def _vocabulary_parameters(self) -> Iterator[Tensor]:
        """Parameters whose first dimension is the padded vocabulary."""


def padding(tokens_BT: Tensor, lengths_B: Tensor | None) -> Tensor | None:
    """Which places of rows of ``lengths_B`` tokens are padding, bool [B, T]; None where there is none."""
    if lengths_B is None:
        return None
    return torch.arange(tokens_BT.shape[1], device=tokens_BT.device) >= lengths_B[:, None]


def check_cu_seqlens(tokens_BT: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Lengths [N] of packed documents. Raises ValueError where the offsets do not cover the single row."""
    lengths_N = cu_seqlens.diff().long()
    if tokens_BT.shape[0] != 1:
        raise ValueError(f"packed documents need batch 1, not {tokens_BT.shape[0]}")
    if len(cu_seqlens) < 2 or cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens_BT.shape[1] or (lengths_N < 1).any():
        raise ValueError(f"cu_seqlens must rise strictly from 0 to {tokens_BT.shape[1]}, not {cu_seqlens.tolist()}")
    return lengths_N
