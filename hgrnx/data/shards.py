"""Token shards: what is on disk of one split, and how it reads as one array.

A split is a folder of shards of about 4 MB of text. Shard 0 is ``00000.tokens.bin`` (uint16, or uint32 for large
vocabularies; every document begins with BOS), ``00000.words.bin`` (uint8: words, by white space, that begin in each
token) and ``00000.docs.npy`` (int64 ``[documents, 3]``: where each document ends in tokens, in UTF-8 bytes of its raw
text and in words, all counted from the shard's beginning).
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hgrnx.data.encoder import DocumentEncoder
from hgrnx.data.folders import write_pieces

SHARD_BYTES = 1 << 22
"""Documents that begin in the same 4 MB of a split's text share a shard: its content depends on nothing else."""


def write_shard(
    folder: Path, number: int, encoder: DocumentEncoder, documents: Iterable[tuple[int, Sequence[bytes]]]
) -> dict[str, Any]:
    """Encode lists of raw documents, each list with the number of its source; the files appear when they are whole.

    Returns ``totals`` (documents, words, bytes, tokens), the same per ``sources``, and the ``files`` with their
    ``bytes`` and ``sha256``.
    """
    tokens, words, rows = [], [], []
    sources: dict[int, Counter[str]] = {}
    for source, texts in documents:
        encoded = encoder.encode(texts)
        starts = np.cumsum(encoded.doc_tokens) - encoded.doc_tokens
        doc_words = np.add.reduceat(encoded.word_starts, starts, dtype=np.int64)
        doc_bytes = np.array([len(text) for text in texts], dtype=np.int64)
        tokens.append(encoded.tokens)
        words.append(encoded.word_starts)
        rows.append(np.stack([encoded.doc_tokens, doc_bytes, doc_words], axis=1))
        sums = {"words": doc_words.sum(), "bytes": doc_bytes.sum(), "tokens": len(encoded.tokens)}
        counts = sources.setdefault(source, Counter())
        counts.update(documents=len(texts), **{key: int(value) for key, value in sums.items()})
    ends = np.cumsum(np.concatenate(rows), axis=0)
    arrays: dict[str, Sequence[np.ndarray | bytes]] = {
        "tokens.bin": tokens,
        "words.bin": words,
        "docs.npy": [_npy(ends)],
    }
    return {
        "totals": dict(sum(sources.values(), Counter())),
        "sources": {str(source): dict(counts) for source, counts in sources.items()},
        "files": {
            f"{number:05d}.{name}": write_pieces(folder / f"{number:05d}.{name}", arrays[name]) for name in arrays
        },
    }


class ShardedArray:
    """One-dimensional arrays one after the other, read as one."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, place: slice) -> np.ndarray:
        """A piece of consecutive values; of memory-mapped parts only that piece is read."""
        start, stop, step = place.indices(len(self))
        assert step == 1, "only consecutive values"
        first = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        while start < stop:
            begin, part = int(self._ends[first]) - len(self.parts[first]), self.parts[first]
            pieces.append(part[start - begin : stop - begin])
            start, first = int(self._ends[first]), first + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, np.int64)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def block_sums(self, length: int, count: int) -> np.ndarray:
        """Sums of the first ``count`` blocks of ``length`` values, int64 ``[count]``; reads one part at a time."""
        sums = np.zeros(count, dtype=np.int64)
        for part, end in zip(self.parts, self._ends.tolist(), strict=True):
            begin = end - len(part)
            first, last = begin // length, min(count, -(-end // length))  # blocks with values in this part
            if first < last:
                cuts = np.maximum(np.arange(first, last) * length - begin, 0)
                sums[first:last] += np.add.reduceat(part[: last * length - begin], cuts, dtype=np.int64)
        return sums


class TokenSplit:
    """The tokens of one split, memory-mapped: opening it reads nothing but the manifest.

    Attributes:
        tokens: uint16 or uint32 ``[tokens]``; every document begins with BOS.
        word_starts: uint8 ``[tokens]``: words, by white space, that begin in each token.
        words: in all.
        documents: in all.
    """

    def __init__(self, folder: Path, dtype: np.dtype, shards: Sequence[dict[str, int]]) -> None:
        self._folder, self._shards = folder, shards
        self.words = sum(shard["words"] for shard in shards)
        self.documents = sum(shard["documents"] for shard in shards)
        self.tokens = self._array("tokens.bin", dtype)
        self.word_starts = self._array("words.bin", np.dtype(np.uint8))

    @property
    def doc_offsets(self) -> np.ndarray:
        """int64 ``[documents + 1]``, in tokens."""
        return np.concatenate([[0], self._doc_ends[:, 0]])

    @property
    def doc_bytes(self) -> np.ndarray:
        """int64 ``[documents]``: UTF-8 bytes of each document's raw text."""
        return np.diff(self._doc_ends[:, 1], prepend=0)

    @property
    def doc_words(self) -> np.ndarray:
        """int64 ``[documents + 1]``: words before each document, and in all."""
        return np.concatenate([[0], self._doc_ends[:, 2]])

    @cached_property
    def _doc_ends(self) -> np.ndarray:
        ends, before = [np.empty((0, 3), np.int64)], np.zeros(3, np.int64)
        for number, shard in enumerate(self._shards):
            ends.append(np.load(self._folder / f"{number:05d}.docs.npy") + before)
            before = before + np.array([shard["tokens"], shard["bytes"], shard["words"]])
        return np.concatenate(ends)

    def _array(self, name: str, dtype: np.dtype) -> ShardedArray:
        paths = [self._folder / f"{number:05d}.{name}" for number in range(len(self._shards))]
        return ShardedArray([np.memmap(path, dtype=dtype, mode="r") for path in paths])


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
