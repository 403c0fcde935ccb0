"""Stacked LSTM layers (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000): ``torch.nn.LSTM``.

The BabyHGRN paper's LSTM (arXiv 2412.15978: embedding 512, hidden 4096, 2 layers, 283.5M parameters with 16,000
tokens) has no projection and an untied head on the last layer:

    embedding   16,000 x 512                             =   8,192,000
    layer 1     4 x 4096 x (512 + 4096)  + 2 x 4 x 4096  =  75,530,240
    layer 2     4 x 4096 x (4096 + 4096) + 2 x 4 x 4096  = 134,250,496
    head        16,000 x 4096                            =  65,536,000
                                                           283,508,736

Shapes: B rows, T tokens, D width of the hidden states given to the head, H units of a layer, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hgrnx.config import LSTMConfig
from hgrnx.models.base import LanguageModel, State


class LSTMState(NamedTuple):
    """Output and cell of every layer after the last token, [B, L, H] each."""

    output_BLH: Tensor
    cell_BLH: Tensor

    def select(self, indices: Tensor) -> LSTMState:
        """The state of the rows ``indices`` [M], in that order."""
        return LSTMState(self.output_BLH.index_select(0, indices), self.cell_BLH.index_select(0, indices))


class LSTM(LanguageModel):
    """Embedding, LSTM, head; where the config ties head and embedding, a projection stands before the head."""

    config: LSTMConfig

    def __init__(self, config: LSTMConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.embedding = nn.Embedding(self.padded_vocab_size, config.embedding_size)
        self.lstm = nn.LSTM(
            config.embedding_size,
            config.hidden_size,
            config.num_hidden_layers,
            dropout=config.dropout,
            batch_first=True,
        )
        if config.tie_word_embeddings:
            self.projection = nn.Linear(config.hidden_size, config.embedding_size, bias=False)
        else:
            self.lm_head = nn.Linear(config.hidden_size, self.padded_vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        return self.embedding.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def initialize(self, generator: torch.Generator) -> None:
        """torch's for embedding and LSTM: N(0, 1), and uniform within ±H^-0.5, the matrices times ``initializer_gain``.
        The rest N(0, ``initializer_range``).

        No norm stands between the embedding and the gates, which hardly feel a token from N(0, 0.02): 5M parameters had
        2.98 bits per byte after 250k words, and 2.48 from N(0, 1) (``hgrnx/recipes/LOG.md``).
        """
        self._initialize_common(generator, self.config.initializer_range)
        self.embedding.weight.normal_(generator=generator)
        bound = self.config.hidden_size**-0.5
        for parameter in self.lstm.parameters():
            reach = bound * self.config.initializer_gain if parameter.ndim > 1 else bound
            parameter.uniform_(-reach, reach, generator=generator)

    def rows(self, tokens_BT: Tensor, lengths_B: Tensor | None, state: State | None) -> tuple[Tensor, LSTMState]:
        assert state is None or isinstance(state, LSTMState)
        x_BTE = self.embedding(tokens_BT)
        before = None if state is None else tuple(part.transpose(0, 1).contiguous() for part in state)
        if lengths_B is None:
            x_BTH, after = self.lstm(x_BTE, before)
        else:
            packed = pack_padded_sequence(x_BTE, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
            packed, after = self.lstm(packed, before)
            x_BTH, _ = pad_packed_sequence(packed, batch_first=True, total_length=tokens_BT.shape[1])
        hidden_BTD = self.projection(x_BTH) if self.config.tie_word_embeddings else x_BTH
        return hidden_BTD, LSTMState(*(part.transpose(0, 1) for part in after))

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LSTMState:
        device = device if device is not None else self.head_weight.device
        zeros = torch.zeros(batch_size, self.config.num_hidden_layers, self.config.hidden_size, device=device)
        return LSTMState(zeros, zeros)

    def flops_per_token(self, seq_len: int) -> float:
        """2 per weight of each product, three times (backward costs twice the forward). ``seq_len`` does not matter:
        the state has constant size."""
        matrices = [parameter for parameter in self.lstm.parameters() if parameter.ndim == 2]
        weights = sum(matrix.numel() for matrix in matrices) + self.vocab_size * self.head_weight.shape[1]
        if self.config.tie_word_embeddings:
            weights += self.projection.weight.numel()
        return 6.0 * weights

    def _vocabulary_parameters(self) -> Iterator[Tensor]:
        yield self.embedding.weight
        if not self.config.tie_word_embeddings:
            yield self.lm_head.weight
