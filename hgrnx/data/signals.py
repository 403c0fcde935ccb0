"""A teacher's signal on a training text, stored: its k likeliest tokens at every position of the chunks asked for.

A store is a folder with ``manifest.json`` (all that decides its content) and shards. A shard is ``NAME.bin`` and
``NAME.json``, which says which chunks of :class:`hgrnx.data.loader.TrainLoader` it holds, and its size and SHA-256.
The two appear one after the other, each whole; without the second a shard does not exist. So a kill at any instant
loses only the shards that were being made, and chunks can be added at any time.

``NAME.bin`` has, for its n chunks one after the other, the arrays of :class:`StoredSignal`.

Shapes: B chunks, T tokens of a chunk, k entries, R temperatures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hgrnx.config import SIGNAL_TEMPERATURES
from hgrnx.data.dataset import MANIFEST
from hgrnx.data.folders import explained, file_sha256, write_json, write_pieces
from hgrnx.errors import UserError

FORMAT = 1
VARIABLE = "HGRNX_SIGNALS"
"""The variable that moves the stores."""
SHARD_TOKENS = 1 << 16
SHARD_BYTES = 1 << 26
"""A shard has at most so many tokens and bytes, but at least one chunk."""

Values = Literal["float16", "float32"]
"""Type of the stored logits."""


class StoredSignal(NamedTuple):
    """What a teacher says about B chunks, in the order of a shard's file."""

    rest_BTR: np.ndarray
    """float32: log of the sum of exp(logit / T) over all entries but the k, at each of ``SIGNAL_TEMPERATURES``."""
    top_BTk: np.ndarray
    """The k largest logits; as those of the rest counted from the largest of all, so that half precision serves."""
    ids_BTk: np.ndarray
    """Which entries these are: uint16, or uint32 for large vocabularies."""


class SignalLayout(NamedTuple):
    """Sizes and types of a store's arrays."""

    seq_len: int
    k: int
    vocab_size: int
    values: Values

    @property
    def bytes_per_token(self) -> int:
        return sum(np.dtype(dtype).itemsize * width for dtype, width in self._columns())

    @property
    def shard_chunks(self) -> int:
        """Chunks of a whole shard."""
        return max(1, min(SHARD_TOKENS // self.seq_len, SHARD_BYTES // (self.seq_len * self.bytes_per_token)))

    def empty(self, chunks: int) -> StoredSignal:
        """Room for so many chunks."""
        return StoredSignal(*(np.empty((chunks, self.seq_len, width), dtype) for dtype, width in self._columns()))

    def mapped(self, path: Path, chunks: int) -> StoredSignal:
        """The arrays in a shard's file; nothing is read."""
        arrays, offset = [], 0
        for dtype, width in self._columns():
            shape = (chunks, self.seq_len, width)
            arrays.append(np.memmap(path, dtype, "r", offset, shape))
            offset += arrays[-1].nbytes
        return StoredSignal(*arrays)

    def _columns(self) -> tuple[tuple[str, int], ...]:
        ids = "uint16" if self.vocab_size <= 1 << 16 else "uint32"
        return (("float32", len(SIGNAL_TEMPERATURES)), (self.values, self.k), (ids, self.k))


class SignalStore:
    """The store in ``folder``, made anew where there is none.

    Args:
        settings: all that decides what the store says, as plain values; ``seq_len``, ``k``, ``vocab_size`` and
            ``values`` are those of :class:`SignalLayout`.

    Raises:
        UserError: the folder holds the signal of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.layout = SignalLayout(*(settings[name] for name in SignalLayout._fields))
        self._places: dict[int, tuple[StoredSignal, int]] = {}
        self._opened: set[str] = set()
        manifest = {"format": FORMAT, **settings}
        path = folder / MANIFEST
        if not path.exists():
            with explained(folder, VARIABLE):
                folder.mkdir(parents=True, exist_ok=True)
                write_json(path, manifest)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if found != manifest:
            raise UserError(
                f"{path} is damaged, or of another teacher or text than the folder's name says. Remove the folder "
                f"{folder} and start the job again: it makes the teacher's signal anew."
            )

    def open(self) -> None:
        """Map the shards that have appeared since the last call.

        A shard's size is always checked, its SHA-256 where the file is not as old as when it was written.

        Raises:
            UserError: a shard is missing, cut short or altered.
        """
        for path in self._new_shards():
            facts, problem = self._check(path)
            if problem is not None:
                raise UserError(
                    f"{path.with_suffix('.bin')} {problem}. Start the job again: it makes what is damaged of the "
                    "teacher's signal anew before it trains."
                )
            self._map(path, facts)

    def repair(self) -> list[str]:
        """Map the shards as :meth:`open` does, but remove those that are damaged, and return what was found.

        What a killed process left half written goes as well: nobody else may be writing.
        """
        found = []
        for path in self._new_shards():
            facts, problem = self._check(path)
            if problem is None:
                self._map(path, facts)
                continue
            found.append(f"{path.with_suffix('.bin')} {problem}")
            path.unlink()
        for path in self.folder.iterdir():
            if path.suffix == ".tmp" or (path.suffix == ".bin" and not path.with_suffix(".json").exists()):
                path.unlink()
        return found

    def missing(self, chunks: np.ndarray) -> np.ndarray:
        """Those of ``chunks`` that no opened shard holds."""
        return np.array([chunk for chunk in chunks.tolist() if chunk not in self._places], np.int64)

    def read(self, chunks: Sequence[int]) -> StoredSignal:
        """The signal on these chunks, copied."""
        signal = self.layout.empty(len(chunks))
        for row, chunk in enumerate(chunks):
            shard, place = self._places[chunk]
            for to, stored in zip(signal, shard, strict=True):
                to[row] = stored[place]
        return signal

    def write(self, chunks: Sequence[int], signal: StoredSignal) -> None:
        """Add a shard; :meth:`open` finds it. Raises UserError where the disk refuses."""
        path = self.folder / _name(chunks)
        data = path.with_suffix(".bin")
        with explained(self.folder, VARIABLE):
            written = write_pieces(data, signal, flush=True)
            time = data.stat().st_mtime_ns
            write_json(path, {**written, "mtime_ns": time, "chunks": list(chunks)})

    def written(self, chunks: Sequence[int]) -> bool:
        """Whether there is a shard of just these chunks by now, opened or not."""
        return (self.folder / _name(chunks)).exists()

    def _new_shards(self) -> list[Path]:
        paths = sorted(self.folder.glob("*.json"))
        return [path for path in paths if path.name != MANIFEST and path.name not in self._opened]

    def _check(self, path: Path) -> tuple[dict[str, Any], str | None]:
        """What the shard says of itself, and what is wrong with it."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if _name(facts["chunks"]) != path.name:
                return facts, f"is not what {path.name} describes"
            stat = path.with_suffix(".bin").stat()
        except (ValueError, KeyError, TypeError):
            return {}, f"cannot be read: {path.name} is damaged"
        except OSError:
            return {}, "is missing"
        if stat.st_size != facts["bytes"]:
            return facts, f"has {stat.st_size:,} bytes instead of {facts['bytes']:,}"
        if stat.st_mtime_ns != facts["mtime_ns"] and file_sha256(path.with_suffix(".bin")) != facts["sha256"]:
            return facts, "was altered: its SHA-256 is not the one that was noted"
        return facts, None

    def _map(self, path: Path, facts: dict[str, Any]) -> None:
        shard = self.layout.mapped(path.with_suffix(".bin"), len(facts["chunks"]))
        self._places.update({chunk: (shard, place) for place, chunk in enumerate(facts["chunks"])})
        self._opened.add(path.name)


def _name(chunks: Sequence[int]) -> str:
    """A shard's file is called after the chunks in it, so two processes that make the same one do no harm."""
    digest = hashlib.sha256(np.array(chunks, np.int64).tobytes()).hexdigest()
    return f"{min(chunks):08d}-{digest[:12]}.json"
