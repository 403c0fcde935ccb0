"""Overlap of text with benchmarks: runs of words that both have, whatever their case and punctuation.

Shapes: W words of a document, N = W - n + 1 runs of n words in it, G different runs in the benchmarks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MOST_WORDS_KNOWN = 1_000_000
_NONE = np.zeros(0, dtype=np.int64)


class _Hasher:
    """64-bit hashes of words and of runs of words, the same in every process."""

    def __init__(self, ngram: int) -> None:
        self.ngram = ngram
        self._known: dict[str, int] = {}

    def words(self, text: str) -> list[int]:
        """A hash for each word of ``text``."""
        known, hashes = self._known, []
        for word in _WORD.findall(text.lower()):
            value = known.get(word)
            if value is None:
                if len(known) >= _MOST_WORDS_KNOWN:
                    known.clear()
                value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big")
                known[word] = value
            hashes.append(value)
        return hashes

    def runs(self, words: list[int]) -> np.ndarray:
        """uint64 [N]; empty where there are fewer than n words."""
        words_W = np.array(words, dtype=np.uint64)
        count = len(words) - self.ngram + 1
        if count <= 0:
            return words_W[:0]
        runs_N = np.zeros(count, dtype=np.uint64)
        for offset in range(self.ngram):  # wraps around at 64 bits, as a hash may
            runs_N = runs_N * _FACTOR + words_W[offset : offset + count]
        runs_N ^= runs_N >> np.uint64(29)
        return runs_N


@dataclass(frozen=True)
class NgramIndex:
    """The runs of words of the benchmarks, as hashes: none of their text."""

    ngram: int
    names: tuple[str, ...]
    items: tuple[int, ...]
    """Items of each benchmark; one shorter than a run cannot be found anywhere."""
    runs_G: np.ndarray
    """uint64, sorted."""
    benchmarks_G: np.ndarray
    """uint8: bit i is set where benchmark i has the run."""
    pairs: tuple[np.ndarray, ...]
    """For each benchmark, int64 [pairs, 2]: index of a run, and number of an item that has it."""

    @classmethod
    def build(cls, texts: Mapping[str, Iterable[list[str]]], ngram: int) -> NgramIndex:
        """Of the items of each benchmark, each a list of strings; at most eight benchmarks."""
        assert len(texts) <= 8
        hasher, items, raw = _Hasher(ngram), [], []
        for benchmark in texts.values():
            runs, owners, number = [], [], -1
            for number, strings in enumerate(benchmark):
                for string in strings:
                    found = hasher.runs(hasher.words(string))
                    runs.append(found)
                    owners.append(np.full(len(found), number, dtype=np.int64))
            items.append(number + 1)
            raw.append((np.concatenate([np.zeros(0, np.uint64), *runs]), np.concatenate([_NONE, *owners])))
        runs_G = np.unique(np.concatenate([runs for runs, _ in raw]))
        benchmarks_G, pairs = np.zeros(len(runs_G), dtype=np.uint8), []
        for bit, (runs_of, owners_of) in enumerate(raw):
            places = np.searchsorted(runs_G, runs_of)
            benchmarks_G[places] |= np.uint8(1 << bit)
            both = np.unique(places * (items[bit] + 1) + owners_of)  # as one number: many times faster
            pairs.append(np.stack(np.divmod(both, items[bit] + 1), axis=1))
        return cls(ngram, tuple(texts), tuple(items), runs_G, benchmarks_G, tuple(pairs))

    def save(self, path: Path) -> None:
        """Write it aside and rename, for other processes to :meth:`load`."""
        aside = path.with_name(f"aside-{path.name}")
        names = np.array(self.names)
        pairs = {f"pairs{bit}": pairs for bit, pairs in enumerate(self.pairs)}
        arrays: dict[str, Any] = {"names": names, "runs": self.runs_G, "bits": self.benchmarks_G, **pairs}
        np.savez(aside, ngram=self.ngram, items=self.items, **arrays)
        aside.rename(path)

    @classmethod
    def load(cls, path: Path) -> NgramIndex:
        """What :meth:`save` wrote; read once in a process."""
        return _loaded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(path: Path, changed: int) -> NgramIndex:
    with np.load(path) as content:
        names = tuple(content["names"].tolist())
        return NgramIndex(
            int(content["ngram"]),
            names,
            tuple(content["items"].tolist()),
            content["runs"],
            content["bits"],
            tuple(content[f"pairs{bit}"] for bit in range(len(names))),
        )


class Decontaminator:
    """Finds, and where asked to leaves out, what documents have in common with the benchmarks; counts it."""

    def __init__(self, index: NgramIndex, remove: str = "nothing", threshold: float = 0.0) -> None:
        """``remove``: ``nothing``, ``lines`` or ``documents`` of whose words more than ``threshold`` overlap."""
        self.index, self.remove, self.threshold = index, remove, threshold
        self._hasher = _Hasher(index.ngram)
        self._hit_G = np.zeros(len(index.runs_G), dtype=bool)
        self._documents = np.zeros(len(index.names), dtype=np.int64)
        self.removed = {"documents": 0, "lines": 0, "words": 0}

    def clean(self, document: str) -> str:
        """What is left of a raw document; empty where nothing is."""
        lines = document.split("\n")[:-1]
        words_of_line = [self._hasher.words(line) for line in lines]
        words = [word for line in words_of_line for word in line]
        covered_W = self._covered(self._hasher.runs(words), len(words))
        if covered_W is None or self.remove == "nothing":
            return document
        if self.remove == "documents":
            if covered_W.mean() <= self.threshold:
                return document
            self._note_removed(document, len(lines), 1)
            return ""
        ends = np.cumsum([len(line) for line in words_of_line])
        before = np.concatenate([[0], np.cumsum(covered_W)])
        starts = ends - [len(line) for line in words_of_line]
        share = (before[ends] - before[starts]) / np.maximum(1, ends - starts)
        kept = [line for line, part in zip(lines, share.tolist(), strict=True) if part <= self.threshold]
        gone = [line for line, part in zip(lines, share.tolist(), strict=True) if part > self.threshold]
        self._note_removed("\n".join(gone), len(gone), 0 if kept else 1)
        return "".join(line + "\n" for line in kept)

    def state(self) -> dict[str, Any]:
        """All counts, for JSON."""
        hits = np.flatnonzero(self._hit_G).tolist()
        return {"hits": hits, "documents": self._documents.tolist(), "removed": self.removed}

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Add the counts of another one with the same index."""
        self._hit_G[state["hits"]] = True
        self._documents += state["documents"]
        for key, count in state["removed"].items():
            self.removed[key] += count

    def report(self) -> dict[str, dict[str, int]]:
        """Per benchmark: ``items``, those long enough to be ``checked``, those with an ``overlap``, ``documents``."""
        rows = {}
        for bit, (name, items, pairs) in enumerate(zip(self.index.names, self.index.items, self.index.pairs)):
            rows[name] = {
                "items": items,
                "checked": len(np.unique(pairs[:, 1])),
                "overlap": len(np.unique(pairs[self._hit_G[pairs[:, 0]], 1])),
                "documents": int(self._documents[bit]),
            }
        return rows

    def _covered(self, runs_N: np.ndarray, words: int) -> np.ndarray | None:
        """bool [W]: whether a word lies in an overlap; None if none does. Notes the overlaps."""
        if len(runs_N) == 0 or len(self.index.runs_G) == 0:
            return None
        places_N = np.minimum(np.searchsorted(self.index.runs_G, runs_N), len(self.index.runs_G) - 1)
        hits = np.flatnonzero(self.index.runs_G[places_N] == runs_N)
        if len(hits) == 0:
            return None
        places = places_N[hits]
        self._hit_G[places] = True
        bits = np.bitwise_or.reduce(self.index.benchmarks_G[places])
        self._documents += (int(bits) >> np.arange(len(self.index.names))) & 1
        covered_W = np.zeros(words, dtype=bool)
        for offset in range(self.index.ngram):
            covered_W[hits + offset] = True
        return covered_W

    def _note_removed(self, text: str, lines: int, documents: int) -> None:
        self.removed["documents"] += documents
        self.removed["lines"] += lines
        self.removed["words"] += len(text.split())
