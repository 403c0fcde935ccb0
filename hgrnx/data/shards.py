"""Token shards: documents become arrays on disk, with the words that begin in each token.

A split is a folder of ``tokens.bin`` (uint16, or uint32 for large vocabularies), ``word_starts.bin`` (uint8, one
a token), ``doc_offsets.npy`` (int64 ``[documents + 1]``, in tokens) and ``doc_bytes.npy`` (int64 ``[documents]``,
UTF-8 bytes of the raw text).
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from hgrnx.data.tokenizer import BOS_ID, model_text, token_byte_lengths

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHUNK_CHARACTERS = 1_000_000
_SPACES = np.array([chr(point).isspace() for point in range(0x3001)])  # U+3000 is the last white space


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


class ShardWriter:
    """Encodes documents in chunks and appends them to the files of one split; a context manager."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.counts: dict[int, Counter[str]] = {}
        """Per source: documents, words, bytes, tokens (BOS included)."""
        self._tokenizer = tokenizer
        self._lengths = token_byte_lengths(tokenizer)
        self._dtype = token_dtype(len(self._lengths))
        self._tokens = (folder / "tokens.bin").open("wb")
        self._words = (folder / "word_starts.bin").open("wb")
        self._doc_tokens: list[int] = []
        self._doc_bytes: list[int] = []
        self._pending: list[tuple[int, str]] = []
        self._characters = 0

    def add(self, source: int, document: str) -> None:
        """Append a raw document that came from the source with this number."""
        self._pending.append((source, document))
        self._characters += len(document)
        if self._characters >= _CHUNK_CHARACTERS:
            self._flush()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                offsets = np.concatenate([[0], np.cumsum(self._doc_tokens, dtype=np.int64)]).astype(np.int64)
                _save(self.folder / "doc_offsets.npy", offsets)
                _save(self.folder / "doc_bytes.npy", np.array(self._doc_bytes, dtype=np.int64))
        finally:
            self._tokens.close()
            self._words.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        texts = [model_text(document) for _, document in self._pending]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        documents = [np.array([BOS_ID, *encoding.ids], dtype=self._dtype) for encoding in encodings]
        tokens = np.concatenate(documents)
        word_starts = count_word_starts("".join(texts), tokens, self._lengths)
        self._tokens.write(tokens.tobytes())
        self._words.write(word_starts.tobytes())
        sizes = np.array([len(document) for document in documents])
        words = np.add.reduceat(word_starts, np.cumsum(sizes) - sizes, dtype=np.int64)
        for (source, document), size, count in zip(self._pending, sizes.tolist(), words.tolist(), strict=True):
            raw_bytes = len(document.encode())
            self._doc_tokens.append(size)
            self._doc_bytes.append(raw_bytes)
            totals = self.counts.setdefault(source, Counter())
            totals.update(documents=1, words=count, bytes=raw_bytes, tokens=size)
        self._pending, self._characters = [], 0


def _save(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()  # written to a file directly, numpy hides that the disk is full
    np.save(buffer, array)
    path.write_bytes(buffer.getbuffer())


def count_word_starts(text: str, tokens: np.ndarray, byte_lengths: np.ndarray) -> np.ndarray:
    """How many words, as ``text.split()`` finds them, begin in each token; uint8 ``[tokens]``.

    Args:
        text: the encoded text; texts of several documents one after the other if each ends in white space.
        tokens: the ids whose bytes, one after the other, are the UTF-8 bytes of ``text`` (BOS has none).
        byte_lengths: :func:`token_byte_lengths`.

    Works on bytes, since a token may hold a part of a character: a word begins where its first byte lies, so each
    is counted exactly once.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    space = _SPACES[np.minimum(points, 0x3000)] & (points <= 0x3000)
    begins = ~space
    begins[1:] &= space[:-1]
    point_bytes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    start_bytes = (np.cumsum(point_bytes) - point_bytes)[begins]
    token_ends = np.cumsum(byte_lengths[tokens])
    assert token_ends[-1] == point_bytes.sum(), "the tokens do not spell the text"
    owners = np.searchsorted(token_ends, start_bytes, side="right")
    return np.bincount(owners, minlength=len(tokens)).astype(np.uint8)
