"""How well a model predicts held-out text, in bits per byte: comparable across tokenizers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from hgrnx.errors import UserError
from hgrnx.evaluation.scoring import Precision, Progress, score_tokens
from hgrnx.models import LanguageModel


class Counts(NamedTuple):
    """Sums over documents; those of several ranks add up."""

    nats: float
    """Negative log-probability of all tokens after each document's BOS."""
    bytes: int
    """UTF-8 bytes of the documents' raw text."""
    tokens: int
    """Tokens predicted."""

    def merge(self, other: Counts) -> Counts:
        """The sums over both sets of documents."""
        return Counts(self.nats + other.nats, self.bytes + other.bytes, self.tokens + other.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens


def bits_per_byte(
    model: LanguageModel,
    split: Any,
    *,
    documents: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    batch_tokens: int | None = None,
    precision: Precision = "fp32",
    on_progress: Progress | None = None,
) -> Counts:
    """Predict documents of ``split``, each by itself from its BOS.

    Args:
        model: in evaluation mode.
        split: a ``TokenSplit`` (``tokens``, ``doc_offsets``, ``doc_bytes``).
        documents: use this many, evenly spaced over the split; all when None.
        rank, world_size: this process takes every ``world_size``-th document; merge the ranks' counts.
        batch_tokens, precision, on_progress: see :func:`~hgrnx.evaluation.scoring.score_tokens`.

    Raises:
        UserError: the model's predictions are not finite.
    """
    chosen = spaced_sample(len(split.doc_offsets) - 1, documents)[rank::world_size]
    rows = [np.asarray(split.tokens[split.doc_offsets[i] : split.doc_offsets[i + 1]]).astype(np.int64) for i in chosen]
    scores = score_tokens(model, rows, batch_tokens=batch_tokens, precision=precision, on_progress=on_progress)
    if not np.isfinite(scores).all():
        raise UserError(
            f"The model's predictions are not numbers on document {chosen[int(np.argmin(np.isfinite(scores)))]} "
            "of the held-out text: the weights are broken. Train with a lower learning rate."
        )
    return Counts(
        nats=-math.fsum(scores),
        bytes=int(sum(int(split.doc_bytes[i]) for i in chosen)),
        tokens=sum(len(row) - 1 for row in rows),
    )


def spaced_sample(total: int, count: int | None) -> np.ndarray:
    """Indices of ``count`` of ``total`` items, evenly spaced; always the same ones. All when None or too many."""
    if count is None or count >= total:
        return np.arange(total)
    return np.arange(count) * total // count
