"""Files of an evaluation: written whole or not at all, and read again if they are whole."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgrnx.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Write aside and rename: a reader never meets half a file.

    Raises:
        UserError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}. Free space, or mend its permissions.") from None


def write_gzip(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON object, gzipped; the same object gives the same bytes."""
    write_whole(path, gzip.compress(json.dumps(content).encode(), compresslevel=6, mtime=0))


def read_gzip(path: Path) -> dict[str, Any] | None:
    """What :func:`write_gzip` wrote; None where it is missing or damaged, so that it is made again."""
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return content if isinstance(content, dict) else None
