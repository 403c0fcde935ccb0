"""A random sample of each domain in one pass: the documents with the smallest hashes until the budget is reached.

A document's hash depends on its text and the seed alone. So the sample is the same in whatever order, from however
many files and by however many readers the documents are met, and samples of parts can be merged. Documents with the
same text have the same hash and count as one. Memory holds an index of what is kept; the text waits in a file.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_COMPACT_ABOVE = 64 * 2**20
"""Bytes of dropped text, at least, before the file of waiting text is written anew."""


def document_hash(document: str, seed: int) -> int:
    """128 bits of BLAKE2b of the text, keyed by ``seed``."""
    digest = hashlib.blake2b(document.encode(), digest_size=16, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "big")


class DomainSample:
    """The documents of smallest hash that have ``budget`` words together, and the one after them.

    The last of them completes the budget and may have to be cut; the one after is there to begin other text with.
    What is kept is that set for all documents added so far, which is why order does not matter. About 0.4 KB of
    memory a kept document; ``path`` grows to about twice the kept text.
    """

    def __init__(self, budget: int, path: Path) -> None:
        self.budget = budget
        self.path = path
        self.documents = 0
        """Documents added in all, duplicates included."""
        self.available_words = 0
        """Words of all added documents, duplicates included."""
        self._heap: list[tuple[int, int, int, int]] = []  # minus hash (the largest on top), words, place, bytes
        self._copies: dict[int, int] = {}
        self._words = 0
        self._live_bytes = 0
        self._end = 0
        self._file: BinaryIO | None = None

    def add(self, document: str, words: int, key: int) -> None:
        """Offer a document of ``words`` words whose :func:`document_hash` is ``key``."""
        self.documents += 1
        self.available_words += words
        self._keep(key, words, document.encode(), 1)

    def merge(self, other: DomainSample) -> None:
        """Offer what another sample with the same budget and seed was offered."""
        assert other.budget == self.budget
        self.documents += other.documents
        self.available_words += other.available_words
        for minus_key, words, place, size in other._heap:
            self._keep(-minus_key, words, other._text(place, size), other._copies[-minus_key])

    @property
    def duplicates(self) -> int:
        """Further copies of the kept documents."""
        return sum(self._copies.values()) - len(self._copies)

    def in_order(self) -> Iterator[tuple[str, int]]:
        """The kept documents and their words, by rising hash: a random order."""
        for _, words, place, size in sorted(self._heap, reverse=True):
            yield self._text(place, size).decode(), words

    def close(self) -> None:
        """Let go of the file, and leave it for another process to :meth:`merge`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, key: int, words: int, text: bytes, copies: int) -> None:
        if key in self._copies:
            self._copies[key] += copies
            return
        if self._heap and -key < self._heap[0][0] and self._words - self._heap[0][1] >= self.budget:
            return
        stream = self._stream()
        stream.seek(self._end)
        stream.write(text)
        heapq.heappush(self._heap, (-key, words, self._end, len(text)))
        self._copies[key] = copies
        self._end += len(text)
        self._live_bytes += len(text)
        self._words += words
        while len(self._heap) > 1 and self._words - self._heap[0][1] - self._next()[1] >= self.budget:
            dropped, fewer, _, size = heapq.heappop(self._heap)
            del self._copies[-dropped]
            self._words -= fewer
            self._live_bytes -= size
        if self._end - self._live_bytes > max(self._live_bytes, _COMPACT_ABOVE):
            self._compact()

    def _next(self) -> tuple[int, int, int, int]:
        """The kept document before the last one: the heap's top but one."""
        return min(self._heap[1:3])

    def _stream(self) -> BinaryIO:
        if self._file is None:
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        return self._file

    def _text(self, place: int, size: int) -> bytes:
        stream = self._stream()
        stream.seek(place)
        return stream.read(size)

    def _compact(self) -> None:
        """Move the kept text together, in the order of its places, so that nothing is overwritten before it moved."""
        moved, end = [], 0
        for minus_key, words, place, size in sorted(self._heap, key=lambda entry: entry[2]):
            text = self._text(place, size)
            self._stream().seek(end)
            self._stream().write(text)
            moved.append((minus_key, words, end, size))
            end += size
        self._stream().truncate(end)
        heapq.heapify(moved)
        self._heap, self._end = moved, end


def first_words(document: str, words: int) -> str:
    """The beginning of a raw document with as many words, by white space."""
    end = 0
    for count, match in enumerate(re.finditer(r"\S+", document), start=1):
        if count > words:
            return document[:end] + "\n"
        end = match.end()
    return document
