"""Predictions in the BabyLM challenge's JSON, of scores that were kept.

The file has the preferred texts. EWoK's must not lie about in the clear, so they go into a zip with EWoK's password,
encrypted as EWoK's own zip is (PKWARE's cipher, which every unzip and Python's zipfile read; zipfile does not write
it). It keeps crawlers out, no one else.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hgrnx.data.benchmarks import EWOK_PASSWORD
from hgrnx.errors import UserError
from hgrnx.evaluation.files import write_whole
from hgrnx.evaluation.predictions import CHALLENGE_TASKS

Texts = Mapping[str, Mapping[str, Sequence[Sequence[str]]]]
"""The options of each item, by our name of the task and by subtask."""


def write_submission(path: Path, predictions: Mapping[str, Mapping[str, Any]], texts: Texts) -> list[Path]:
    """Write what ``hgrnx score`` and the challenge read.

    Args:
        path: for everything but EWoK, ending in ``.json.gz`` (or ``.json``). EWoK's part is written beside it, as
            ``<name>-ewok.zip``.
        predictions: by our name of the task and by subtask; each has ``chosen``.
        texts: the options that ``chosen`` counts, for all tasks but GLUE.

    Returns:
        The files written.

    Raises:
        UserError: they cannot be written.
    """
    content = {
        theirs: {
            subtask: {
                "predictions": [
                    {
                        "id": f"{subtask}_{row}",
                        "pred": f" {texts[ours][subtask][row][choice]}" if ours in texts else choice,
                    }
                    for row, choice in enumerate(item["chosen"])
                ]
            }
            for subtask, item in predictions[ours].items()
        }
        for theirs, ours in CHALLENGE_TASKS.items()
        if ours in predictions
    }
    ewok = content.pop("ewok", None)
    text = json.dumps(content).encode()
    written = []
    if content:
        write_whole(path, gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
        written.append(path)
    if ewok is not None:
        beside = ewok_beside(path)
        name = beside.name.removesuffix(".zip") + ".json"
        write_whole(beside, encrypted_zip({name: json.dumps({"ewok": ewok}).encode()}, EWOK_PASSWORD.encode()))
        written.append(beside)
    return written


def check_submission_path(path: Path) -> None:
    """Refuse, before hours of work, a place that :func:`write_submission` would not write to. Raises UserError."""
    if not path.name.endswith((".json.gz", ".json")):
        raise UserError(f"{path}: the challenge's predictions are a .json.gz file; give it such a name.")
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path}: there is no folder {folder} that can be written to.")


def ewok_beside(path: Path) -> Path:
    """Where EWoK's part of ``path`` goes."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".json") + "-ewok.zip")


def encrypted_zip(files: Mapping[str, bytes], password: bytes) -> bytes:
    """A zip of deflated files under PKWARE's traditional encryption (APPNOTE.TXT, section 6.1)."""
    local = central = b""
    for name, content in files.items():
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = deflate.compress(content) + deflate.flush()
        checksum = zlib.crc32(content)
        # Twelve bytes before the data, the last of them the checksum's highest, by which a wrong password is noticed.
        data = _encrypted(os.urandom(11) + bytes([checksum >> 24]) + packed, password)
        encoded = name.encode()
        # Version 2.0, encrypted (bit 0), deflated, 1 January 1980.
        facts = struct.pack("<HHHHHLLLHH", 20, 1, 8, 0, 33, checksum, len(data), len(content), len(encoded), 0)
        place = struct.pack("<HHHLL", 0, 0, 0, 0, len(local))
        central += b"PK\1\2" + struct.pack("<H", 20) + facts + place + encoded
        local += b"PK\3\4" + facts + encoded + data
    end = struct.pack("<HHHHLLH", 0, 0, len(files), len(files), len(central), len(local), 0)
    return local + central + b"PK\5\6" + end


def _encrypted(data: bytes, password: bytes) -> bytes:
    keys = [0x12345678, 0x23456789, 0x34567890]

    def update(byte: int) -> None:
        keys[0] = _crc(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = _crc(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    result = bytearray()
    for byte in data:
        half = keys[2] | 2
        result.append(byte ^ ((half * (half ^ 1) >> 8) & 0xFF))
        update(byte)
    return bytes(result)


def _crc(value: int, byte: int) -> int:
    """One step of CRC-32 without the inversions at its ends."""
    return zlib.crc32(bytes([byte]), value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
