"""Documents from text files: plain lines, JSON lines, parquet and tars of these, each checked while it is read.

A document is handed on as its raw text: non-blank lines, each ended by ``"\\n"``. Lines end at ``"\\n"`` only
(a carriage return before it is dropped); every other character stays as it is in the file.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, cast

from hgrnx.data.hub import HubFile, hub_files
from hgrnx.data.tracks import Track
from hgrnx.errors import UserError

Split = Literal["train", "dev"]

_KINDS = {
    ".txt": "lines",
    ".train": "lines",
    ".dev": "lines",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".tar": "tar",
}
_DEV = {"dev", "val", "valid", "validation"}
_HUB_SHARD = re.compile(r"^(train|dev|valid|validation|test)-\d+-of-\d+$")
READABLE = ".txt, .train, .dev, .jsonl, .tar (each also .gz or .zst) and .parquet"


@dataclass(frozen=True)
class TextFile:
    """One file of a source folder. ``name`` is its path relative to that folder."""

    path: Path
    name: str
    split: Split
    kind: str


@dataclass(frozen=True)
class DomainFile:
    """One file that domains are sampled from."""

    path: Path | HubFile
    name: str
    kind: str
    size: int
    """In bytes; 0 where the hub does not say it."""
    domain: str | None = None
    """Of the documents that do not name theirs in ``meta.pile_set_name``."""


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
        kind = _kind(path.name)
        if kind is None or not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        split = _split_of(relative)
        if split is None or (only and relative.parts[0] not in (only, "dev")):
            continue
        files.append(TextFile(path, relative.as_posix(), split, kind))
    if not any(file.split == "train" for file in files):
        raise UserError(f"There is no training text in {folder / (only or '')}: text files are {READABLE}.")
    return files


def find_domain_files(track: Track, source: str | None) -> list[DomainFile]:
    """The files that the domains of a track are sampled from: those of ``source``, or of the track's own sources.

    Documents name their domain in ``meta.pile_set_name``. Where they do not, it is the one whose name the file or
    its first folder has (in ``source``), or the only one of its source (in the track's sources).

    Raises:
        UserError: a folder or file does not exist or has no text, or the hub does not have it or can't be reached.
    """
    if source is not None:
        known = {_plain(name): name for name in track.domains}
        return [
            DomainFile(file.path, file.name, file.kind, file.path.stat().st_size, _named_domain(file.name, known))
            for file in find_text_files(source, track)
            if file.split == "train"
        ]
    files: list[DomainFile] = []
    for key, place in track.sources.items():
        domains = [name for name, domain in track.domains.items() if (domain.source or name) == key]
        only = domains[0] if len(domains) == 1 else None
        found: list[tuple[Path | HubFile, str, int]]
        if place.hub is not None:
            found = [(path, path.name, path.size) for path in hub_files(place.hub, track.name)]
        elif Path(str(place.path)).is_file():
            path = Path(str(place.path))
            found = [(path, path.name, path.stat().st_size)]
        else:
            inner = [file for file in find_text_files(str(place.path), track) if file.split == "train"]
            found = [(file.path, file.name, file.path.stat().st_size) for file in inner]
        readable = [(path, name, kind, size) for path, name, size in found if (kind := _kind(name)) is not None]
        if not readable:
            raise UserError(f"sources.{key} of the track {track.name} has no text files: these are {READABLE}.")
        files += [DomainFile(path, f"{key}/{name}", kind, size, only) for path, name, kind, size in readable]
    return files


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _named_domain(name: str, known: dict[str, str]) -> str | None:
    first, last = name.split("/")[0], name.split("/")[-1]
    return known.get(_plain(first)) or known.get(_plain(last.split(".")[0]))


def read_documents(file: TextFile, block_lines: int, counts: LineCounts) -> Iterator[str]:
    """The documents of ``file`` as raw text, read as a stream; ``counts`` is filled in on the way.

    A document is ``block_lines`` consecutive non-blank lines of a line file (fewer at its end), or the
    ``text`` of one record of a JSON lines or parquet file. Of a tar, the files in it are read one after another.

    Raises:
        UserError: the file is unreadable, empty, damaged or not UTF-8; the message says where.
    """
    return (document for _, document in read_labelled(file, block_lines, counts))


def read_labelled(
    file: TextFile | DomainFile, block_lines: int, counts: LineCounts, tick: Callable[[int], None] = lambda read: None
) -> Iterator[tuple[str | None, str]]:
    """:func:`read_documents` with each document's ``meta.pile_set_name``, None where it has none.

    ``tick`` is told how many more bytes of the file have been read.
    """
    found, position = False, 0
    try:
        with file.path.open("rb") as stream:
            for label, document in _read(stream, str(file.path), file.kind, block_lines, counts):
                found = True
                counts.nul_characters += document.count("\0")
                yield label, document
                read = max(position, stream.tell())
                tick(read - position)
                position = read
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise UserError(f"{file.path} is damaged or cut short: {error}. Get the file again.") from None
    except OSError as error:
        if error.errno is None:  # pyarrow, about compressed bytes
            raise UserError(f"{file.path} is damaged or cut short: {error}. Get the file again.") from None
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


def _kind(name: str) -> str | None:
    plain = name.removesuffix(".gz").removesuffix(".zst")
    kind = _KINDS.get(Path(plain).suffix)
    return None if kind == "parquet" and plain != name else kind


def _split_of(relative: Path) -> Split | None:
    """``None`` for test text, which nothing here may touch."""
    words = {part.lower() for part in relative.parts[:-1]} | set(relative.name.lower().split("."))
    shard = _HUB_SHARD.match(relative.name.lower().split(".")[0])
    if shard:
        words.add(shard[1])
    if "test" in words:
        return None
    return "dev" if words & _DEV else "train"


def _read(
    stream: BinaryIO, where: str, kind: str, block_lines: int, counts: LineCounts
) -> Iterator[tuple[str | None, str]]:
    """Label and document; ``where`` names the file in messages and tells how it is compressed."""
    if kind == "parquet":
        yield from _read_parquet(stream, where, counts)
        return
    with _decompressed(stream, where) as plain:
        if kind == "tar":
            yield from _read_tar(plain, where, block_lines, counts)
        elif kind == "jsonl":
            yield from _read_jsonl(plain, where, counts)
        else:
            yield from ((None, document) for document in _read_lines(plain, where, block_lines, counts))


def _decompressed(stream: BinaryIO, name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if name.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(stream, "zstd"), 1 << 20)
    return stream


def _text_lines(stream: Iterable[bytes], where: str, counts: LineCounts) -> Iterator[tuple[int, str]]:
    """Numbered non-blank lines without their line end."""
    offset = 0
    for number, raw in enumerate(stream, start=1):
        if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
            counts.byte_order_mark += 1
            raw, offset = raw[3:], 3
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            hint = " It looks like UTF-16." if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
            raise UserError(
                f"{where}, line {number}, byte {offset + error.start} of the file: "
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


def _read_lines(stream: Iterable[bytes], where: str, block_lines: int, counts: LineCounts) -> Iterator[str]:
    block: list[str] = []
    for _, line in _text_lines(stream, where, counts):
        block.append(line + "\n")
        if len(block) == block_lines:
            yield "".join(block)
            block = []
    if block:
        yield "".join(block)


def _read_jsonl(stream: Iterable[bytes], where: str, counts: LineCounts) -> Iterator[tuple[str | None, str]]:
    for number, line in _text_lines(stream, where, counts):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}, line {number}: not valid JSON ({error.msg}, column {error.colno}).") from None
        text = record.get("text") if isinstance(record, dict) else None
        label = _label(record.get("meta")) if isinstance(record, dict) else None
        yield from ((label, document) for document in _record(text, f"{where}, line {number}", counts))


def _read_parquet(stream: BinaryIO, where: str, counts: LineCounts) -> Iterator[tuple[str | None, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(stream) as table:
            names = table.schema_arrow.names
            if "text" not in names:
                raise UserError(f"{where} has no column 'text'; its columns are {', '.join(names)}.")
            columns = ["text", "meta"] if "meta" in names else ["text"]
            for batch in table.iter_batches(batch_size=1_000, columns=columns):
                for row in batch.to_pylist():
                    counts.lines += 1
                    text, label = row["text"], _label(row.get("meta"))
                    documents = _record("" if text is None else text, f"{where}, row {counts.lines}", counts)
                    yield from ((label, document) for document in documents)
    except pyarrow.ArrowException as error:
        raise UserError(f"{where} is not a readable parquet file: {error}.") from None


def _read_tar(stream: IO[bytes], where: str, block_lines: int, counts: LineCounts) -> Iterator[tuple[str | None, str]]:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            kind, content = _kind(member.name), tar.extractfile(member) if member.isfile() else None
            if kind in (None, "tar") or content is None:
                continue
            inner = io.BytesIO(content.read()) if kind == "parquet" else content
            yield from _read(cast(BinaryIO, inner), f"{where}:{member.name}", str(kind), block_lines, counts)


def _label(meta: Any) -> str | None:
    label = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return label if isinstance(label, str) else None


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
