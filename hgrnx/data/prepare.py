"""Text to tokenizer, token shards and manifest, in one folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hgrnx
from hgrnx.config import DataConfig
from hgrnx.data import demo
from hgrnx.data.dataset import MANIFEST, PreparedDataset, file_sha256, open_dataset
from hgrnx.data.folders import building, exclusive
from hgrnx.data.shards import ShardWriter, token_dtype
from hgrnx.data.sources import LineCounts, Split, TextFile, find_text_files, read_documents
from hgrnx.data.tokenizer import save_tokenizer, train_tokenizer
from hgrnx.data.tracks import dataset_name, dataset_settings, find_track, prepare_command
from hgrnx.errors import UserError

HELD_OUT_EVERY = 100
"""Where a source has no development text, every 100th document of its training text, the first included."""

Progress = Callable[[str, int, int], None]
"""Called with a stage (``"count"``, ``"tokenizer"``, ``"tokens"``), what is done and what there is in all: bytes
of files for ``"count"``, words for the others."""

_SPLITS: tuple[Split, ...] = ("train", "dev")


@dataclass
class _Source:
    """A file, what is in it, and how much of it is taken."""

    file: TextFile
    size: int
    mtime_ns: int
    sha256: str
    lines: LineCounts = field(default_factory=LineCounts)
    words: dict[Split, int] = field(default_factory=lambda: {"train": 0, "dev": 0})
    limit: int = sys.maxsize
    """Training words to take at most."""


def prepare(
    config: DataConfig, data_root: Path, *, fresh: bool = False, on_progress: Progress | None = None
) -> PreparedDataset:
    """Make the dataset of ``config`` under ``data_root``, or open it if it is there and of the same text.

    ``fresh`` makes it again and replaces it. A second process waits for the first.

    Raises:
        UserError: anything about the text, the settings or the disk that the user can put right.
    """
    final = data_root / dataset_name(config)
    if final.is_dir() and not fresh:
        return _existing(config, data_root)
    if config.source is None and config.track != "demo":
        config = config.model_copy(update={"source": _known_source(config, data_root)})
    with exclusive(final):
        if final.is_dir() and not fresh:  # made by the process that had the lock before
            return _existing(config, data_root)
        with building(final) as folder:
            _build(config, folder, on_progress or (lambda stage, done, total: None))
    return open_dataset(config, data_root)


def _known_source(config: DataConfig, data_root: Path) -> str:
    """Where the text of this track was when it was prepared with other settings."""
    for manifest in sorted(data_root.glob(f"{config.track}-v*/manifest.json"), key=lambda path: path.stat().st_mtime):
        source = json.loads(manifest.read_text(encoding="utf-8")).get("source")
        if source is not None and Path(source).is_dir():
            return str(source)
    raise UserError(f"The track {config.track} needs its text: {prepare_command(config)}")


def _existing(config: DataConfig, data_root: Path) -> PreparedDataset:
    dataset = open_dataset(config, data_root)
    other = None
    if config.track == "demo":
        if demo.fingerprint(config) != dataset.manifest["fingerprint"]:
            other = "the demo grammar has changed since"
    elif config.source is not None:
        other = _difference(find_text_files(config.source, find_track(config)), dataset.manifest["sources"])
    if other:
        raise UserError(
            f"{dataset.dir} was prepared from other text: {other}. "
            f"To replace it, run: {prepare_command(config)} --fresh"
        )
    return dataset


def _difference(files: list[TextFile], recorded: list[dict[str, Any]]) -> str | None:
    """How the files differ from those of a manifest; hashes are computed only where the time of change differs."""
    known = {source["name"]: source for source in recorded}
    names = {file.name for file in files}
    for name in sorted(names ^ known.keys()):
        return f"{name} was {'added' if name in names else 'removed'}"
    for file in files:
        source, stat = known[file.name], file.path.stat()
        if stat.st_size == source["file_bytes"] and stat.st_mtime_ns == source["mtime_ns"]:
            continue
        if stat.st_size != source["file_bytes"] or file_sha256(file.path) != source["sha256"]:
            return f"{file.name} has changed"
    return None


def _build(config: DataConfig, folder: Path, progress: Progress) -> None:
    started = time.time()
    if config.track == "demo":
        files = demo.write_text(config, folder)
    else:
        files = find_text_files(str(config.source), find_track(config))
    hold_out = all(file.split == "train" for file in files)
    sources = _count(files, config.block_lines, hold_out, progress)
    _set_limits(config, sources)

    def train_documents() -> Iterator[str]:
        meter = _Meter(progress, "tokenizer", sum(source.limit for source in sources))
        for _, split, document in _documents(sources, config.block_lines, hold_out):
            if split == "train":
                yield document
                meter.advance(document)

    tokenizer = train_tokenizer(train_documents(), config.vocab_size)
    tokenizer_hash = save_tokenizer(tokenizer, folder / "tokenizer")
    meter = _Meter(progress, "tokens", sum(source.limit + source.words["dev"] for source in sources))
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ShardWriter(folder / split, tokenizer)) for split in _SPLITS}
        for index, split, document in _documents(sources, config.block_lines, hold_out):
            writers[split].add(index, document)
            meter.advance(document)
    if not writers["train"].counts:
        raise UserError(f"words={config.words} is too few: no file has a document that fits into its share.")
    for source in sources:
        if _size_and_time(source.file.path) != (source.size, source.mtime_ns):
            raise UserError(f"{source.file.path} was changed while it was read. Run the command again.")
    manifest = _manifest(config, folder, sources, writers)
    vocab_size = tokenizer.get_vocab_size()
    manifest["tokenizer"] = {
        "hash": tokenizer_hash,
        "vocab_size": vocab_size,
        "trained_on_words": manifest["splits"]["train"]["words"],
    }
    manifest["token_type"] = token_dtype(vocab_size).name
    manifest["hash"] = _content_hash(manifest)
    manifest["seconds"] = round(time.time() - started, 1)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _count(files: list[TextFile], block_lines: int, hold_out: bool, progress: Progress) -> list[_Source]:
    """Hash every file and count its lines, and its words by split as if all were taken."""
    sources = [_Source(file, *_size_and_time(file.path), file_sha256(file.path)) for file in files]
    everything, reached = sum(source.size for source in sources), 0
    for index, split, document in _documents(sources, block_lines, hold_out, counting=True):
        sources[index].words[split] += len(document.split())
        if index > reached:
            reached = index
            progress("count", sum(source.size for source in sources[:index]), everything)
    progress("count", everything, everything)
    return sources


def _set_limits(config: DataConfig, sources: list[_Source]) -> None:
    track, total = find_track(config), sum(source.words["train"] for source in sources)
    if total == 0:
        raise UserError(
            f"{config.source} has too little training text: its first {HELD_OUT_EVERY} documents hold out one for "
            "development, and that was all. Add text, or a dev/ folder."
        )
    if track.limited and config.words is None and total > track.words:
        raise UserError(
            f"The training text in {config.source} has {total:,} words, {total - track.words:,} more than the "
            f"{track.words:,} of the track {track.name}. Take a part of it with words={track.words} "
            "(each file's share in proportion), or remove some."
        )
    budget = config.words or track.words
    for source in sources:
        words = source.words["train"]
        source.limit = words if total <= budget else words * budget // total


def _documents(
    sources: list[_Source], block_lines: int, hold_out: bool, counting: bool = False
) -> Iterator[tuple[int, Split, str]]:
    """Source number, split and raw text of every document that is taken, in the order of the files."""
    position = 0
    for index, source in enumerate(sources):
        counts, taken, full = source.lines if counting else LineCounts(), 0, False
        for document in read_documents(source.file, block_lines, counts):
            if source.file.split == "dev":
                yield index, "dev", document
                continue
            position += 1
            if hold_out and position % HELD_OUT_EVERY == 1:
                yield index, "dev", document
                continue
            taken += len(document.split())
            full = full or taken > source.limit
            if not full:
                yield index, "train", document
            elif not hold_out:
                break


def _manifest(
    config: DataConfig, folder: Path, sources: list[_Source], writers: dict[Split, ShardWriter]
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for index, source in enumerate(sources):
        rows.append(
            {
                "name": source.file.name,
                "file_bytes": source.size,
                "mtime_ns": source.mtime_ns,
                "sha256": source.sha256,
                **source.lines.as_dict(),
                "available_words": source.words,
                "train": _counted(writers["train"].counts.get(index)),
                "dev": _counted(writers["dev"].counts.get(index)),
            }
        )
    return {
        "settings": dataset_settings(config),
        "made_by": f"hgrnx {hgrnx.__version__}",
        "source": config.source,
        "fingerprint": demo.fingerprint(config) if config.track == "demo" else None,
        "sources": rows,
        "splits": {split: _counted(sum(writers[split].counts.values(), Counter())) for split in _SPLITS},
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def _counted(counts: Counter[str] | None) -> dict[str, int]:
    return {key: counts[key] if counts else 0 for key in ("documents", "words", "bytes", "tokens")}


def _content_hash(manifest: dict[str, Any]) -> str:
    content = {
        "settings": manifest["settings"],
        "text": [(source["name"], source["sha256"]) for source in manifest["sources"]],
        "files": {name: facts["sha256"] for name, facts in manifest["files"].items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    return stat.st_size, stat.st_mtime_ns


class _Meter:
    """Adds up words and reports about every percent, so that a slow listener does not slow the work."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done, self._next = 0, 0

    def advance(self, document: str) -> None:
        self._done += len(document.split())
        if self._done >= min(self._next, self._total):
            self._progress(self._stage, self._done, self._total)
            self._next = self._done + self._total // 100
