"""Documents that are equal to, or resemble, one that came before."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np

from hgrnx.config import CleaningConfig, NearDuplicatesConfig
from hgrnx.data.text_store import StoredText
from hgrnx.errors import UserError

_PERMUTATIONS = 128
_SEED = 1
_RECALL = 0.9
_BATCH_BYTES = 1 << 20
_WORD = re.compile(r"\w+")


class ExactDuplicates:
    """Remembers 128 bits of every document: about 0.15 KB of memory each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_copy(self, document: str) -> bool:
        """Whether the same text was asked about before."""
        digest = hashlib.blake2b(document.encode(), digest_size=16).digest()
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


class NearDuplicates:
    """MinHash (Broder 1997) of the set of word runs, found by locality-sensitive hashing, as ``rensa`` does it.

    The similarity is estimated from 128 permutations: its standard deviation is 0.035 at a similarity of 0.8.
    About 2 KB of memory a document that is kept.
    """

    def __init__(self, config: NearDuplicatesConfig) -> None:
        try:
            import rensa
        except ImportError:
            raise UserError("data.cleaning.near_duplicates needs the package rensa: pip install rensa") from None
        self._minhash = rensa.RMinHash
        self._config = config
        self._index = rensa.RMinHashLSH(config.threshold, _PERMUTATIONS, _bands(config.threshold))
        self._kept: list[np.ndarray] = []

    def is_copy(self, document: str) -> bool:
        """Whether ``document`` resembles one that was asked about before and was no copy itself."""
        words = _WORD.findall(document.lower())
        size = min(self._config.ngram, len(words))
        if size == 0:
            return False
        minhash = self._minhash(_PERMUTATIONS, _SEED)
        minhash.update([" ".join(words[start : start + size]) for start in range(len(words) - size + 1)])
        digest = np.array(minhash.digest(), dtype=np.uint32)
        for other in self._index.query(minhash):
            if (self._kept[other] == digest).mean() >= self._config.threshold:
                return True
        self._index.insert(len(self._kept), minhash)
        self._kept.append(digest)
        return False


def _bands(threshold: float) -> int:
    """The fewest bands that find nine in ten of the pairs whose similarity is just the threshold."""
    for bands in (1, 2, 4, 8, 16, 32, 64):
        if 1 - (1 - threshold ** (_PERMUTATIONS // bands)) ** bands >= _RECALL:
            return bands
    return _PERMUTATIONS


class Copies:
    """Both kinds as asked for, with counts."""

    def __init__(self, exact: bool, near: NearDuplicatesConfig | None) -> None:
        self._exact = ExactDuplicates() if exact else None
        self._near = NearDuplicates(near) if near is not None else None
        self._counts: dict[str, dict[str, int]] = {}
        if exact:
            self._counts["exact_duplicates"] = {"documents": 0, "words": 0}
        if near is not None:
            self._counts["near_duplicates"] = {"documents": 0, "words": 0}

    @classmethod
    def wanted(cls, config: CleaningConfig) -> Copies | None:
        """What ``config`` asks for; None if nothing."""
        if not config.exact_duplicates and config.near_duplicates is None:
            return None
        return cls(config.exact_duplicates, config.near_duplicates)

    def is_copy(self, document: str) -> bool:
        """Whether ``document`` is to be left out; if not, later ones are compared with it."""
        if self._exact is not None and self._exact.is_copy(document):
            return self._counted("exact_duplicates", document)
        if self._near is not None and self._near.is_copy(document):
            return self._counted("near_duplicates", document)
        return False

    def among(self, stored: StoredText) -> np.ndarray:
        """Bool, for every document of a stored source: whether it is to be left out."""
        copies = np.zeros(stored.facts["documents"], dtype=bool)
        number = 0
        for batch in stored.documents(np.arange(len(copies)), _BATCH_BYTES):
            for document in batch:
                copies[number] = self.is_copy(document.decode())
                number += 1
        return copies

    def summary(self) -> dict[str, Any]:
        """Documents and words left out, by kind; only of the kinds asked for."""
        return self._counts

    def _counted(self, kind: str, document: str) -> bool:
        self._counts[kind]["documents"] += 1
        self._counts[kind]["words"] += len(document.split())
        return True
