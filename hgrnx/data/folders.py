"""Folders that appear whole or not at all: built aside under a lock, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hgrnx.errors import UserError


@contextmanager
def exclusive(final: Path) -> Iterator[None]:
    """Let one process at a time work on ``final``; others wait. Clears what a killed process left behind.

    Raises:
        UserError: the folder around ``final`` cannot be written to, or the disk is full.
    """
    with _explained(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = (final.parent / f".{final.name}.lock").open("w")
    with lock:
        with _explained(final.parent):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _old(final).exists():  # killed between the two renames of a replacement
                if final.exists():
                    shutil.rmtree(_old(final))
                else:
                    _old(final).rename(final)
            shutil.rmtree(_partial(final), ignore_errors=True)
        yield


@contextmanager
def building(final: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``final`` at the end of the block; on any error nothing is left.

    Raises:
        UserError: the disk is full or does not let itself be written to.
    """
    partial = _partial(final)
    try:
        with _explained(final.parent):
            partial.mkdir()
            yield partial
            _flush_to_disk(partial)
            if final.exists():
                final.rename(_old(final))
            partial.rename(final)
            _fsync(final.parent)
            shutil.rmtree(_old(final), ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(final: Path) -> Path:
    return final.parent / f".{final.name}.partial"


def _old(final: Path) -> Path:
    return final.parent / f".{final.name}.old"


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk that holds {folder} is full; what was half written is removed. "
                "Free some space, or set HGRNX_DATA to a folder on a larger disk."
            ) from None
        raise UserError(
            f"Cannot write {error.filename or folder}: {error.strerror or error}. "
            "Set HGRNX_DATA to a folder that can be written to."
        ) from None


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
