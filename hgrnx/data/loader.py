"""Training batches: a batch is a function of (seed, step, rank) and of nothing else.

Shapes: B sequences of this rank, T = seq_len, M of them in a micro-batch, N documents in it.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Generator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from hgrnx.config import parse_duration
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError


class Batch(NamedTuple):
    """int64 ``[B, T]`` each; ``targets`` is the text one token further than ``inputs``."""

    inputs: torch.Tensor
    targets: torch.Tensor
    chunks: tuple[int, ...]
    """Which chunk of the stream each row is."""


class MicroBatch(NamedTuple):
    """What goes through the model at once: int64 ``[M, T]`` each, or ``[1, M * T]`` where states are reset."""

    inputs: torch.Tensor
    targets: torch.Tensor
    cu_seqlens: torch.Tensor | None
    """int64 ``[N + 1]``: where documents, or parts of them, begin in the single row. None: nothing is reset."""
    chunks: tuple[int, ...]
    """Which M chunks of the stream these are."""

    def cut(self, length: int) -> MicroBatch:
        """The same tokens in the same order, in sequences of ``length`` tokens, which divides theirs."""
        if self.cu_seqlens is None:
            return self._replace(inputs=self.inputs.reshape(-1, length), targets=self.targets.reshape(-1, length))
        starts = torch.arange(0, self.inputs.numel(), length)
        return self._replace(cu_seqlens=torch.cat([self.cu_seqlens, starts]).unique())


PREFETCHED = 4
"""Batches made ahead."""


class TrainLoader:
    """Batches of the training text as one stream of tokens, in an order shuffled anew for each epoch.

    The stream is cut into chunks of ``seq_len + 1`` tokens; a chunk begins with the last token of the one
    before, so that each token but the first is predicted once. An epoch is a permutation of the chunks, decided
    by (seed, epoch), in batches of ``batch_size``. What does not fill the last batch of an epoch is dropped
    (each epoch other chunks): no batch straddles two epochs, and an epoch has the same length for every number
    of workers.

    The global batch does not depend on ``world_size``; each rank takes ``batch_size / world_size`` consecutive
    rows of it.

    With ``reset_state="document"`` a model's state is reset where a document begins within a sequence (at BOS, which
    is still predicted: it is the end of the text before). The tokens of a batch are the same.

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
        reset_state: Literal["never", "document"] = "never",
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
        self.batches_ready = 0
        """How many batches had been made ahead when the last one was asked of :meth:`batches`."""
        self._seq_len, self._batch_size, self._seed = seq_len, batch_size, seed
        share = batch_size // world_size
        self._rows = slice(rank * share, (rank + 1) * share)
        self._reset_id = dataset.bos_id if reset_state == "document" else None
        self._chunk_words = split.word_starts.block_sums(seq_len, self._chunks)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._words_before = [np.zeros(1, dtype=np.int64)]
        """Per epoch: words seen since the start, before each of its batches and after the last."""

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of ``step``, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.read(self._epoch_order(epoch)[position][self._rows].tolist())

    def read(self, chunks: Sequence[int]) -> Batch:
        """These chunks of the stream, whatever the order of the training."""
        inputs, targets = (np.empty((len(chunks), self._seq_len), np.int64) for _ in range(2))
        for row, chunk in enumerate(chunks):
            tokens = self._tokens[chunk * self._seq_len : (chunk + 1) * self._seq_len + 1]
            inputs[row], targets[row] = tokens[:-1], tokens[1:]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), tuple(chunks))

    def chunks_before(self, step: int) -> np.ndarray:
        """The chunks in the first ``step`` global batches, each once, in their order in the stream; int64."""
        epochs, position = divmod(step, self.steps_per_epoch)
        seen = [self._epoch_order(epoch).ravel() for epoch in range(epochs)]
        if position:
            seen.append(self._epoch_order(epochs)[:position].ravel())
        return np.unique(np.concatenate([np.empty(0, np.int64), *seen]))

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """This rank's batches of steps ``first`` to before ``last``, made ahead by a thread so that none waits."""
        made: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCHED)
        left = threading.Event()

        def make() -> None:
            for step in range(first, last):
                try:
                    batch: Batch | BaseException = self.batch(step)
                except BaseException as error:  # raised again where the batch is asked for
                    batch = error
                while not left.is_set():
                    try:
                        made.put(batch, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if left.is_set() or isinstance(batch, BaseException):
                    return

        thread = threading.Thread(target=make, name="batches", daemon=True)
        thread.start()
        try:
            for _ in range(first, last):
                self.batches_ready = made.qsize()
                batch = made.get()
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
        finally:
            left.set()
            thread.join()

    def micro_batches(self, batch: Batch, rows: int) -> list[MicroBatch]:
        """``batch`` in pieces of ``rows`` sequences."""
        chunks = [batch.chunks[first : first + rows] for first in range(0, len(batch.chunks), rows)]
        pieces = zip(batch.inputs.split(rows), batch.targets.split(rows), chunks, strict=True)
        if self._reset_id is None:
            return [MicroBatch(inputs, targets, None, chunks) for inputs, targets, chunks in pieces]
        return [_packed(inputs, targets, chunks, self._reset_id) for inputs, targets, chunks in pieces]

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
        known, order = self._order  # the thread that makes batches ahead may be an epoch further
        if known != epoch:
            # Raw bits, sorted: numpy promises that these stay the same from version to version.
            bits = np.random.Philox(np.random.SeedSequence([self._seed, epoch])).random_raw(self._chunks)
            order = np.argsort(bits, kind="stable")[: self.steps_per_epoch * self._batch_size]
            order = order.reshape(self.steps_per_epoch, self._batch_size)
            self._order = (epoch, order)
        return order


def _packed(inputs: torch.Tensor, targets: torch.Tensor, chunks: tuple[int, ...], begin_id: int) -> MicroBatch:
    """The rows one after the other, cut where a row or a document begins."""
    begins = inputs == begin_id
    begins[:, 0] = True
    starts = begins.flatten().nonzero()[:, 0]
    cu_seqlens = torch.cat([starts, starts.new_tensor([inputs.numel()])])
    return MicroBatch(inputs.reshape(1, -1), targets.reshape(1, -1), cu_seqlens, chunks)
