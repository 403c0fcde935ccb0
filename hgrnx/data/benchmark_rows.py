"""Reading of the benchmarks' JSON: every problem is told with its file and line."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hgrnx.errors import UserError


def jsonl_files(folder: Path, what: str) -> list[Path]:
    """The ``*.jsonl`` files of a folder, sorted. Raises :class:`UserError` where there is none; ``what`` names them."""
    if not folder.is_dir():
        raise UserError(f"The folder of {what} {folder} does not exist.")
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        inner = sorted(path.parent.name for path in folder.glob("*/*.jsonl"))
        hint = f" Its folder {inner[0]} has some: give that one." if inner else ""
        raise UserError(f"There are no .jsonl files of {what} in {folder}.{hint}")
    return paths


def read_text(path: Path) -> str:
    """A file as UTF-8. Raises :class:`UserError` where that is not possible."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None


def json_object(path: Path) -> dict[str, Any]:
    """A file that is one JSON object. Raises :class:`UserError` where it is not, or empty."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno}).") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: not a JSON object of relations.")
    return content


def zipped_jsonl(path: Path, password: str) -> Iterator[tuple[str, str, str]]:
    """Stem, place and text of every ``.jsonl`` file of a zip, read in memory. Raises :class:`UserError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".jsonl"):
                    content = archive.read(name, pwd=password.encode())
                    yield Path(name).stem, f"{path}:{name}", content.decode("utf-8")
    except RuntimeError:  # zipfile's word for a wrong password
        raise UserError(f"The password '{password}' does not open {path}.") from None
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError, NotImplementedError) as error:
        raise UserError(f"{path} is not a readable zip ({error}). Get the file again.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None


def json_rows(text: str, where: str, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """``FILE:LINE`` and the object of every line that is not blank.

    Args:
        where: the file, for messages.
        what: its rows, for messages.

    Raises:
        UserError: there is no such line, or one is not a JSON object.
    """
    empty = True
    # Not splitlines(): a sentence may have a line break of another kind than the file's.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        empty = False
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}:{number}: not valid JSON ({error.msg}, column {error.colno}).") from None
        if not isinstance(item, dict):
            raise UserError(f"{where}:{number}: not a JSON object.")
        yield f"{where}:{number}", item
    if empty:
        raise UserError(f"{where} has no {what} in it.")


def text_field(item: dict[str, Any], key: str, where: str, what: str) -> str:
    """The text at ``key``. Raises :class:`UserError` where there is none; ``what`` names the item."""
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {what} needs the key '{key}' with a text.")
    return value
