"""Readers of benchmark files: minimal pairs in BLiMP's format, which the BLiMP Supplement shares."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hgrnx.errors import UserError


@dataclass(frozen=True)
class MinimalPair:
    """An acceptable sentence and its unacceptable twin; either may have line breaks."""

    good: str
    bad: str
    phenomenon: str
    """The group a file belongs to: BLiMP's ``linguistics_term``; the file's name where it has none."""
    field: str
    """BLiMP's ``field`` (syntax, morphology, ...); empty where the file has none."""


def read_minimal_pairs(folder: Path) -> dict[str, list[MinimalPair]]:
    """The pairs of every ``*.jsonl`` file of ``folder``, by file name without suffix, in order.

    Raises:
        UserError: no such folder, no files in it, or a line that is not a pair; the message names the line.
    """
    if not folder.is_dir():
        raise UserError(f"The folder of minimal pairs {folder} does not exist.")
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        inner = sorted(path.parent.name for path in folder.glob("*/*.jsonl"))
        hint = f" Its folder {inner[0]} has some: give that one." if inner else ""
        raise UserError(f"There are no .jsonl files of minimal pairs in {folder}.{hint}")
    return {path.stem: _read_file(path) for path in paths}


def _read_file(path: Path) -> list[MinimalPair]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    # Not splitlines(): a sentence may have a line break of another kind than the file's.
    lines = enumerate(text.split("\n"), start=1)
    pairs = [_read_pair(line, f"{path}:{number}", path.stem) for number, line in lines if line.strip()]
    if not pairs:
        raise UserError(f"{path} has no pairs in it.")
    return pairs


def _read_pair(line: str, where: str, stem: str) -> MinimalPair:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg}, column {error.colno}).") from None
    if not isinstance(item, dict):
        raise UserError(f"{where}: not a JSON object.")
    for key in ("sentence_good", "sentence_bad"):
        if not isinstance(item.get(key), str) or not item[key].strip():
            raise UserError(f"{where}: a minimal pair needs the key '{key}' with a sentence.")
    return MinimalPair(
        good=item["sentence_good"],
        bad=item["sentence_bad"],
        phenomenon=str(item.get("linguistics_term") or stem),
        field=str(item.get("field") or ""),
    )
