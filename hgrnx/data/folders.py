"""Folders and files that appear whole or not at all: made aside, folders under a lock and flushed, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hgrnx.errors import UserError

WORK = "work"
"""Name of the part of a folder that is there only while it is built."""


@contextmanager
def exclusive(final: Path, variable: str = "HGRNX_DATA") -> Iterator[None]:
    """Let one process at a time work on ``final``; others wait. ``variable`` can move the folder around it.

    Raises:
        UserError: the folder around ``final`` cannot be written to, or the disk is full.
    """
    with explained(final.parent, variable):
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = (final.parent / f".{final.name}.lock").open("w")
    with lock:
        with explained(final.parent, variable):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _old(final).exists():  # killed between the two renames of a replacement
                if final.exists():
                    shutil.rmtree(_old(final))
                else:
                    _old(final).rename(final)
        yield


@contextmanager
def building(final: Path, key: str) -> Iterator[Path]:
    """A folder to fill, which becomes ``final`` at the end of the block.

    Where a process was killed in the block, or interrupted, the folder is as that process left it, if ``key`` (what
    decides the content) is the same. After any error that the user has to put right nothing is left.
    ``<folder>/work`` is for what is needed on the way; it is removed at the end.

    Raises:
        UserError: the disk is full or does not let itself be written to.
    """
    partial = _partial(final)
    key_file = partial / WORK / "key"
    with explained(final.parent):
        try:
            if not (key_file.is_file() and key_file.read_text(encoding="utf-8") == key):
                discard(final)
                key_file.parent.mkdir(parents=True)
                _write(key_file, key)
            yield partial
            shutil.rmtree(partial / WORK)
            _flush_to_disk(partial)
            if final.exists():
                final.rename(_old(final))
            partial.rename(final)
            _fsync(final.parent)
            shutil.rmtree(_old(final), ignore_errors=True)
        except (OSError, UserError):
            discard(final)
            raise


@contextmanager
def explained(folder: Path, variable: str = "HGRNX_DATA") -> Iterator[None]:
    """Errors of the disk under ``folder``, which ``variable`` moves, as what the person can do about them."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk that holds {folder} is full; what was half written is removed. "
                f"Free some space, or set {variable} to a folder on a larger disk."
            ) from None
        raise UserError(
            f"Cannot write {error.filename or folder}: {error.strerror or error}. "
            f"Set {variable} to a folder that can be written to."
        ) from None


def discard(final: Path) -> None:
    """Remove what a killed process left of ``final``."""
    shutil.rmtree(_partial(final), ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write aside and rename, so that a kill never leaves half a file."""
    _write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_pieces(path: Path, pieces: Sequence[np.ndarray | bytes], *, flush: bool = False) -> dict[str, Any]:
    """Write aside, then rename; ``flush`` first waits for the disk. Returns ``bytes`` and ``sha256`` of the file.

    Two processes that write the same file (one left over from a kill) do no harm.
    """
    digest, size = hashlib.sha256(), 0
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as stream:
        for piece in pieces:
            data = piece if isinstance(piece, bytes) else piece.tobytes()
            stream.write(data)
            digest.update(data)
            size += len(data)
        if flush:
            stream.flush()
            os.fsync(stream.fileno())
    os.replace(aside, path)
    return {"bytes": size, "sha256": digest.hexdigest()}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size_and_time(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change, in nanoseconds, of a source file."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    return stat.st_size, stat.st_mtime_ns


def _write(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _partial(final: Path) -> Path:
    return final.parent / f".{final.name}.partial"


def _old(final: Path) -> Path:
    return final.parent / f".{final.name}.old"


def _flush_to_disk(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
