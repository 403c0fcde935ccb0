"""Documents from text files: plain lines, JSON lines and parquet, each checked while it is read.

A document is handed on as its raw text: non-blank lines, each ended by ``"\\n"``. Lines end at ``"\\n"`` only
(a carriage return before it is dropped); every other character stays as it is in the file.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from hgrnx.data.tracks import Track
from hgrnx.errors import UserError

Split = Literal["train", "dev"]

_KINDS = {".txt": "lines", ".train": "lines", ".dev": "lines", ".jsonl": "jsonl", ".parquet": "parquet"}
_DEV = {"dev", "valid", "validation"}
_HUB_SHARD = re.compile(r"^(train|dev|valid|validation|test)-\d+-of-\d+$")
READABLE = ".txt, .train, .dev, .jsonl (each also .gz) and .parquet"


@dataclass(frozen=True)
class TextFile:
    """One file of a source folder. ``name`` is its path relative to that folder."""

    path: Path
    name: str
    split: Split
    kind: str


@dataclass
class LineCounts:
    """What was met, and in part left out, while reading a file."""

    lines: int = 0
    """Lines of text, or records of a JSON lines or parquet file."""
    blank_lines: int = 0
    """Lines without any character but white space, and records without text; left out."""
    crlf_lines: int = 0
    """Lines that ended in carriage return and newline; the carriage return was dropped."""
    nul_characters: int = 0
    """Characters U+0000; kept."""
    byte_order_mark: int = 0
    """1 if the file began with a byte order mark; dropped."""

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def find_text_files(source: str, track: Track) -> list[TextFile]:
    """The text files of a folder, sorted by name, with the split that each belongs to.

    In BabyLM's layout (``train_10M/``, ``train_100M/``, ``dev/``) the track chooses the training folder, and
    what lies beside these folders is left alone. In any other folder, files under ``dev/`` or named like
    ``x.dev`` are the development text, those under ``test/`` or named like ``x.test.txt`` are left alone, and
    all others are training text.

    Raises:
        UserError: no such folder, no text in it, or not the training folder of this track.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        what = "is a file; give the folder it lies in" if folder.exists() else "does not exist"
        raise UserError(f"The source {folder} {what}.")
    only = _babylm_folder(folder, track)
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        kind = _kind(path)
        if kind is None or not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        split = _split_of(relative)
        if split is None or (only and relative.parts[0] not in (only, "dev")):
            continue
        files.append(TextFile(path, relative.as_posix(), split, kind))
    if not any(file.split == "train" for file in files):
        raise UserError(f"There is no training text in {folder / (only or '')}: text files are {READABLE}.")
    return files


def read_documents(file: TextFile, block_lines: int, counts: LineCounts) -> Iterator[str]:
    """The documents of ``file`` as raw text, read as a stream; ``counts`` is filled in on the way.

    A document is ``block_lines`` consecutive non-blank lines of a line file (fewer at its end), or the
    ``text`` of one record of a JSON lines or parquet file.

    Raises:
        UserError: the file is unreadable, empty, damaged or not UTF-8; the message says where.
    """
    read = {"lines": _read_lines, "jsonl": _read_jsonl, "parquet": _read_parquet}[file.kind]
    found = False
    try:
        for document in read(file.path, block_lines, counts):
            found = True
            counts.nul_characters += document.count("\0")
            yield document
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file.path} is damaged or cut short: {error}. Get the file again.") from None
    except OSError as error:
        raise UserError(f"Cannot read {file.path}: {error.strerror or error}.") from None
    if not found:
        raise UserError(f"{file.path} has no text in it. Remove the file, or put its text back.")


def document_from_text(text: str, counts: LineCounts) -> str:
    """The raw document of a record's text: its non-blank lines, each ended by a newline; empty if there are none."""
    lines = []
    for line in text.split("\n"):
        line = _without_carriage_return(line, counts)
        if line and not line.isspace():
            lines.append(line + "\n")
    return "".join(lines)


def _babylm_folder(folder: Path, track: Track) -> str | None:
    present = [entry.name for entry in sorted(folder.glob("train_*M")) if entry.is_dir()]
    if not present or track.folder in present:
        return track.folder if present else None
    raise UserError(
        f"{folder} has {', '.join(present)} but not {track.folder}, the training text of the track {track.name}. "
        f"Choose the track that fits, or give {folder / present[0]} itself as the source."
    )


def _kind(path: Path) -> str | None:
    kind = _KINDS.get(Path(path.name.removesuffix(".gz")).suffix)
    return None if kind == "parquet" and path.suffix == ".gz" else kind


def _split_of(relative: Path) -> Split | None:
    """``None`` for test text, which nothing here may touch."""
    words = {part.lower() for part in relative.parts[:-1]} | set(relative.name.lower().split("."))
    shard = _HUB_SHARD.match(relative.name.lower().split(".")[0])
    if shard:
        words.add(shard[1])
    if "test" in words:
        return None
    return "dev" if words & _DEV else "train"


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _text_lines(path: Path, counts: LineCounts) -> Iterator[tuple[int, str]]:
    """Numbered non-blank lines without their line end."""
    offset = 0
    with _open(path) as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                counts.byte_order_mark, raw, offset = 1, raw[3:], 3
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                hint = " It looks like UTF-16." if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise UserError(
                    f"{path}, line {number}, byte {offset + error.start} of the file: "
                    f"0x{raw[error.start]:02x} is not UTF-8 text.{hint} Save the file as UTF-8."
                ) from None
            offset += len(raw)
            counts.lines += 1
            line = _without_carriage_return(line.removesuffix("\n"), counts)
            if line and not line.isspace():
                yield number, line
            else:
                counts.blank_lines += 1


def _without_carriage_return(line: str, counts: LineCounts) -> str:
    if not line.endswith("\r"):
        return line
    counts.crlf_lines += 1
    return line[:-1]


def _read_lines(path: Path, block_lines: int, counts: LineCounts) -> Iterator[str]:
    block: list[str] = []
    for _, line in _text_lines(path, counts):
        block.append(line + "\n")
        if len(block) == block_lines:
            yield "".join(block)
            block = []
    if block:
        yield "".join(block)


def _read_jsonl(path: Path, block_lines: int, counts: LineCounts) -> Iterator[str]:
    for number, line in _text_lines(path, counts):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}).") from None
        text = record.get("text") if isinstance(record, dict) else None
        yield from _record(text, f"{path}, line {number}", counts)


def _read_parquet(path: Path, block_lines: int, counts: LineCounts) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if "text" not in names:
                raise UserError(f"{path} has no column 'text'; its columns are {', '.join(names)}.")
            for batch in table.iter_batches(batch_size=1_000, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    counts.lines += 1
                    yield from _record("" if text is None else text, f"{path}, row {counts.lines}", counts)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable parquet file: {error}.") from None


def _record(text: Any, where: str, counts: LineCounts) -> Iterator[str]:
    if not isinstance(text, str):
        raise UserError(f"{where}: a record needs a key 'text' that holds a string.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the text has half a surrogate pair at character {error.start}.") from None
    document = document_from_text(text, counts)
    if document:
        yield document
    else:
        counts.blank_lines += 1
