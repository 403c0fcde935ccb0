"""Training batches: a batch is a function of (seed, step, rank) and of nothing else.

Shapes: B sequences of this rank, T = seq_len.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from hgrnx.config import parse_duration
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError


class Batch(NamedTuple):
    """int64 ``[B, T]`` each; ``targets`` is the text one token further than ``inputs``."""

    inputs: torch.Tensor
    targets: torch.Tensor


class TrainLoader:
    """Batches of the training text as one stream of tokens, in an order shuffled anew for each epoch.

    The stream is cut into chunks of ``seq_len + 1`` tokens; a chunk begins with the last token of the one
    before, so that each token but the first is predicted once. An epoch is a permutation of the chunks, decided
    by (seed, epoch), in batches of ``batch_size``. What does not fill the last batch of an epoch is dropped
    (each epoch other chunks): no batch straddles two epochs, and an epoch has the same length for every number
    of workers.

    The global batch does not depend on ``world_size``; each rank takes ``batch_size / world_size`` consecutive
    rows of it.

    Raises:
        UserError: the text does not fill one batch, or ``batch_size`` is no multiple of ``world_size``.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        seq_len: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise UserError(f"batch_size={batch_size} must be a multiple of the {world_size} workers.")
        split = dataset.split("train")
        self._tokens = split.tokens
        self._chunks = (len(split.tokens) - 1) // seq_len
        if self._chunks < batch_size:
            raise UserError(
                f"The training text of {dataset.dir.name} ({split.words:,} words, {len(split.tokens):,} tokens) makes "
                f"{self._chunks:,} sequences of seq_len={seq_len}, fewer than one batch of batch_size={batch_size}. "
                "Make seq_len or batch_size smaller, or prepare more words."
            )
        self.steps_per_epoch = self._chunks // batch_size
        self._seq_len, self._batch_size, self._seed = seq_len, batch_size, seed
        share = batch_size // world_size
        self._rows = slice(rank * share, (rank + 1) * share)
        stream = split.word_starts[: self._chunks * seq_len].reshape(self._chunks, seq_len)
        self._chunk_words = stream.sum(axis=1, dtype=np.int64)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._words_before = [np.zeros(1, dtype=np.int64)]
        """Per epoch: words seen since the start, before each of its batches and after the last."""

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of ``step``, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        chunks = self._epoch_order(epoch)[position][self._rows]
        rows = self._tokens[chunks[:, None] * self._seq_len + np.arange(self._seq_len + 1)].astype(np.int64)
        return Batch(
            torch.from_numpy(np.ascontiguousarray(rows[:, :-1])),
            torch.from_numpy(np.ascontiguousarray(rows[:, 1:])),
        )

    def words_seen(self, step: int) -> int:
        """Words, by white space, that begin in the inputs of the first ``step`` global batches."""
        epoch, position = divmod(step, self.steps_per_epoch)
        while len(self._words_before) <= epoch + 1:
            words = self._chunk_words[self._epoch_order(len(self._words_before) - 1)].sum(axis=1)
            self._words_before.append(self._words_before[-1][-1] + np.concatenate([[0], np.cumsum(words)]))
        return int(self._words_before[epoch + 1][position])

    def valid_tokens(self, step: int) -> int:
        """Tokens with a target in the global batch of ``step``."""
        return self._batch_size * self._seq_len

    def epoch_of(self, step: int) -> float:
        """Epochs done after ``step`` steps."""
        return step / self.steps_per_epoch

    def steps_for(self, duration: str) -> int:
        """The smallest number of steps, at least one, that lasts ``duration`` (in steps, epochs or words).

        Raises:
            UserError: ``duration`` is a percentage: of what, only the caller knows.
        """
        amount, unit = parse_duration(duration)
        if unit == "percent":
            raise UserError(f"'{duration}' is a share; give steps, epochs or words.")
        if unit == "steps":
            return math.ceil(amount)
        if unit == "epochs":
            return max(1, round(amount * self.steps_per_epoch))
        epoch = 0
        while self.words_seen((epoch + 1) * self.steps_per_epoch) < amount:
            epoch += 1
        within = int(np.searchsorted(self._words_before[epoch + 1], amount))
        return epoch * self.steps_per_epoch + within

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Chunk numbers of each batch of an epoch, int64 ``[steps_per_epoch, batch_size]``."""
        if self._order[0] != epoch:
            # Raw bits, sorted: numpy promises that these stay the same from version to version.
            bits = np.random.Philox(np.random.SeedSequence([self._seed, epoch])).random_raw(self._chunks)
            order = np.argsort(bits, kind="stable")[: self.steps_per_epoch * self._batch_size]
            self._order = (epoch, order.reshape(self.steps_per_epoch, self._batch_size))
        return self._order[1]
