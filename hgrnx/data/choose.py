"""Which of the stored documents are taken, for which split, and in which shard they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hgrnx.data.duplicates import Copies
from hgrnx.data.shards import SHARD_BYTES
from hgrnx.data.sources import Split
from hgrnx.data.text_store import StoredText

HELD_OUT_EVERY = 100
"""Where a source has no development text, every 100th document of its training text, the first included."""

SPLITS: tuple[Split, ...] = ("train", "dev")
_LEFT_OUT = len(SPLITS)

Segment = tuple[int, int, int]
"""Number of a source, and the numbers of its first document and of the one after its last."""


@dataclass
class Chosen:
    """What is taken of one source: ``path`` holds the split of every document, uint8."""

    stored: StoredText
    path: Path
    words: dict[Split, int]
    """As if all were taken."""
    limit: int = 0
    """Training words to take at most."""

    def documents(self, split: Split, first: int = 0, last: int | None = None) -> np.ndarray:
        """Numbers of the documents from ``first`` to before ``last`` that are taken for ``split``."""
        splits = np.fromfile(self.path, np.uint8, count=-1 if last is None else last - first, offset=first)
        return first + np.flatnonzero(splits == SPLITS.index(split))


def split_documents(stored: Sequence[StoredText], folder: Path, copies: Copies | None = None) -> list[Chosen]:
    """Give every document its split: that of its file, or held out where no file is of development text.

    ``copies`` tells which are left out, because they are copies of ones before.
    """
    hold_out = all(text.facts["split"] == "train" for text in stored)
    chosen, position = [], 0
    for text in stored:
        words = text.index()["words"]
        splits = np.full(len(words), SPLITS.index(text.facts["split"]), np.uint8)
        if hold_out:
            splits[-position % HELD_OUT_EVERY :: HELD_OUT_EVERY] = SPLITS.index("dev")
            position += len(words)
        if copies is not None:
            splits[copies.among(text)] = _LEFT_OUT
        path = folder / f"{text.number:05d}.splits"
        splits.tofile(path)
        totals = {split: int(words[splits == code].sum()) for code, split in enumerate(SPLITS)}
        chosen.append(Chosen(text, path, totals, totals["train"]))
    return chosen


def leave_out_the_rest(source: Chosen) -> None:
    """Take training documents of ``source`` from its beginning until one does not fit into its limit."""
    if source.words["train"] <= source.limit:
        return
    splits = np.fromfile(source.path, np.uint8)
    train = np.flatnonzero(splits == SPLITS.index("train"))
    taken = np.cumsum(source.stored.index()["words"][train])
    splits[train[taken > source.limit]] = _LEFT_OUT
    splits.tofile(source.path)


def shard_segments(sources: Sequence[Chosen], split: Split) -> list[list[Segment]]:
    """The documents of each shard of ``split``, in order; decided by the chosen text alone."""
    shards: dict[int, list[Segment]] = {}
    before = 0
    for number, source in enumerate(sources):
        documents = source.documents(split)
        if not len(documents):
            continue
        ends = source.stored.index()["end"]
        sizes = ends[documents] - np.where(documents > 0, ends[documents - 1], 0)
        places = (before + np.cumsum(sizes) - sizes) // SHARD_BYTES
        before += int(sizes.sum())
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        for first, last in zip(starts, [*starts[1:], len(places)], strict=True):
            segment = (number, int(documents[first]), int(documents[last - 1]) + 1)
            shards.setdefault(int(places[first]), []).append(segment)
    return [shards[place] for place in sorted(shards)]
