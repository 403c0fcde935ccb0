"""The text store: the documents of every source as they will be trained on, cleaned and counted, read once.

Per source, by its number: ``00000.txt`` (UTF-8 documents one after the other), ``00000.index`` (:data:`INDEX`,
one row a document) and ``00000.json`` (what the source was and what was met in it), which is written last: a source
without it is not finished. The store is there while a dataset is made, and gone when it is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hgrnx.config import CleaningConfig
from hgrnx.data.cleaning import Cleaner
from hgrnx.data.folders import file_sha256, size_and_time, write_json
from hgrnx.data.sources import LineCounts, TextFile, read_documents
from hgrnx.data.workers import Tick
from hgrnx.errors import UserError

INDEX = np.dtype([("end", np.int64), ("words", np.int64)])
"""Of a document: where it ends in the text file (bytes), and its words."""

_BUFFER_BYTES = 1 << 20
_ROWS = 1 << 16


@dataclass(frozen=True)
class TextTask:
    """Read one source into the store; done by :func:`store_text`, in any process."""

    folder: Path
    number: int
    file: TextFile
    block_lines: int
    cleaning: CleaningConfig
    benchmarks: Path | None
    """The index of the benchmarks, where ``cleaning`` needs it."""


def store_text(task: TextTask, tick: Tick) -> None:
    """Read, clean, count and store one source; ticks add up to about the size of its file.

    Raises:
        UserError: the source is unreadable, or was changed while it was read.
    """
    path, counts = task.file.path, LineCounts()
    size, mtime_ns = size_and_time(path)
    cleaner = Cleaner(task.cleaning, task.benchmarks)
    documents = map(cleaner.clean, read_documents(task.file, task.block_lines, counts))
    stored = StoredText(task.folder, task.number)
    totals = _append(stored, filter(None, documents), tick)
    sha256 = file_sha256(path)
    if size_and_time(path) != (size, mtime_ns):
        raise UserError(f"{path} was changed while it was read. Run the command again.")
    facts = {
        "name": task.file.name,
        "split": task.file.split,
        "file_bytes": size,
        "mtime_ns": mtime_ns,
        "sha256": sha256,
        "counts": counts.as_dict(),
        "cleaned": cleaner.state(),
        **totals,
        "index_sha256": file_sha256(stored.index_path),
    }
    write_json(stored.facts_path, facts)


class StoredText:
    """One source in the store."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.text_path = folder / f"{number:05d}.txt"
        self.index_path = folder / f"{number:05d}.index"
        self.facts_path = folder / f"{number:05d}.json"

    def is_whole(self) -> bool:
        """Whether it was finished, and is still what it was then."""
        try:
            facts = json.loads(self.facts_path.read_text(encoding="utf-8"))
            return (
                file_sha256(self.text_path) == facts["text_sha256"]
                and file_sha256(self.index_path) == facts["index_sha256"]
            )
        except (OSError, ValueError, KeyError):
            return False

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What :func:`store_text` noted: ``name``, ``split``, ``file_bytes``, ``mtime_ns``, ``sha256``, ``counts``,
        ``cleaned``, ``documents``, ``words``, ``bytes``."""
        facts: dict[str, Any] = json.loads(self.facts_path.read_text(encoding="utf-8"))
        return facts

    def index(self) -> np.ndarray:
        """:data:`INDEX` of every document, memory-mapped."""
        if not self.facts["documents"]:
            return np.empty(0, INDEX)
        return np.memmap(self.index_path, dtype=INDEX, mode="r")

    def documents(self, chosen: np.ndarray, most_bytes: int) -> Iterator[list[bytes]]:
        """The documents with these ascending numbers, in lists from at most ``most_bytes`` of the file, or of one."""
        index = self.index()
        with self.text_path.open("rb") as stream:
            for rows in np.split(chosen, range(_ROWS, len(chosen), _ROWS)):
                ends = index["end"][rows]
                begins = np.where(rows > 0, index["end"][rows - 1], 0)
                first = 0
                while first < len(rows):
                    base = int(begins[first])
                    last = max(first + 1, int(np.searchsorted(ends, base + most_bytes, side="right")))
                    stream.seek(base)
                    data = stream.read(int(ends[last - 1]) - base)
                    pairs = zip((begins[first:last] - base).tolist(), (ends[first:last] - base).tolist(), strict=True)
                    yield [data[begin:end] for begin, end in pairs]
                    first = last


def _append(stored: StoredText, documents: Iterable[str], tick: Tick) -> dict[str, Any]:
    """Write text and index. What is half written has no facts, so the next call writes it anew."""
    digest, words, end = hashlib.sha256(), 0, 0
    texts: list[bytes] = []
    rows: list[tuple[int, int]] = []
    written = total = 0
    with stored.text_path.open("wb") as text_file, stored.index_path.open("wb") as index_file:

        def flush() -> None:
            nonlocal written, total
            data = b"".join(texts)
            text_file.write(data)
            digest.update(data)
            index_file.write(np.array(rows, INDEX).tobytes())
            written, total = end, total + len(rows)
            texts.clear()
            rows.clear()
            tick(len(data))

        for text in documents:
            data, count = text.encode(), len(text.split())
            end, words = end + len(data), words + count
            texts.append(data)
            rows.append((end, count))
            if end - written >= _BUFFER_BYTES:
                flush()
        flush()
    return {
        "documents": total,
        "words": words,
        "bytes": end,
        "text_sha256": digest.hexdigest(),
    }
