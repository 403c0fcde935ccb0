"""Text to tokenizer, token shards and manifest, in one folder that appears whole or not at all.

Three stages: the text of every source is read once, cleaned, counted and stored; the tokenizer is trained on the
training text; the stored text becomes token shards. Sources and shards are worked on side by side in several
processes. Whatever a killed call had finished (a source, the tokenizer, a shard) the next call takes over, and the
result is the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import hgrnx
from hgrnx.config import CleaningConfig, DataConfig
from hgrnx.data import demo
from hgrnx.data.choose import (
    HELD_OUT_EVERY,
    SPLITS,
    Chosen,
    Segment,
    leave_out_the_rest,
    shard_segments,
    split_documents,
)
from hgrnx.data.cleaning import Cleaner, benchmark_stamps, index_benchmarks
from hgrnx.data.dataset import MANIFEST, PreparedDataset, open_dataset
from hgrnx.data.duplicates import Copies
from hgrnx.data.encoder import DocumentEncoder
from hgrnx.data.folders import WORK, building, discard, exclusive, file_sha256, size_and_time, write_json
from hgrnx.data.origin import Origin, difference, find_origin
from hgrnx.data.run_ledger import tokenizer_texts
from hgrnx.data.sampled_text import sampled_text
from hgrnx.data.shards import write_shard
from hgrnx.data.sources import Split, TextFile
from hgrnx.data.text_store import StoredText, TextTask, store_text
from hgrnx.data.tokenizer import (
    BOS,
    EOS,
    load_tokenizer,
    read_given_tokenizer,
    save_tokenizer,
    token_dtype,
    tokenizer_hash,
    train_tokenizer,
)
from hgrnx.data.tracks import dataset_name, dataset_settings, find_track, prepare_command
from hgrnx.data.workers import Tick, Workers, default_workers
from hgrnx.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with a stage (``"text"``, ``"tokenizer"``, ``"tokens"``), what is done and what there is in all, in bytes."""

_WORTH_A_PROCESS = 1 << 22  # bytes of text; less is done before a process has started
_BATCH_BYTES = 1 << 20


def prepare(
    config: DataConfig,
    data_root: Path,
    *,
    fresh: bool = False,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> PreparedDataset:
    """Make the dataset of ``config`` under ``data_root``, or open it if it is there and of the same text.

    ``fresh`` makes it again and replaces it. ``workers`` is the number of processes (about one a core when None);
    the result does not depend on it. A second call waits for the first, and goes on where a killed one stopped.

    Raises:
        UserError: anything about the text, the settings or the disk that the user can put right.
    """
    final = data_root / dataset_name(config)
    if final.is_dir() and not fresh:
        return _existing(config, data_root)
    with exclusive(final):
        if final.is_dir() and not fresh:  # made by the process that had the lock before
            return _existing(config, data_root)
        if fresh:
            discard(final)
        origin = find_origin(config, data_root)
        with building(final, _key(config, origin)) as folder:
            _build(config, origin, folder, workers or default_workers(), on_progress or (lambda *_: None))
    return open_dataset(config, data_root)


def _key(config: DataConfig, origin: Origin) -> str:
    """What must not have changed for a killed call to be continued."""
    text = demo.fingerprint(config) if config.track == "demo" else origin.stamps()
    return json.dumps([hgrnx.__version__, dataset_settings(config), text, benchmark_stamps(config.cleaning)])


def _existing(config: DataConfig, data_root: Path) -> PreparedDataset:
    dataset = open_dataset(config, data_root)
    other = None
    if config.track == "demo":
        if demo.fingerprint(config) != dataset.manifest["fingerprint"]:
            other = "the demo grammar has changed since"
    else:
        other = difference(config, dataset.manifest)
    if other:
        raise UserError(
            f"{dataset.dir} was prepared from other text: {other}. "
            f"To replace it, run: {prepare_command(config)} --fresh"
        )
    return dataset


def _build(config: DataConfig, origin: Origin, folder: Path, workers: int, progress: Progress) -> None:
    started = time.time()
    work = folder / WORK
    benchmarks = index_benchmarks(config.cleaning, work)
    files, sample = list(origin.files), None
    if config.track == "demo":
        files = _demo_text(config, folder)
    size = sum(size_and_time(file.path)[0] for file in files) + sum(file.size for file in origin.inputs)
    with Workers(1 if size < _WORTH_A_PROCESS else workers) as pool:
        if origin.inputs:
            meter = _Meter(progress, "sample", sum(file.size for file in origin.inputs))
            sample = sampled_text(config, origin.inputs, folder, benchmarks, pool, workers, meter.now_at)
            files = sample.files(folder)
            meter.finish()
        stored = _store(config, files, work / "text", benchmarks, pool, progress)
        copies = None if sample else Copies.wanted(config.cleaning)
        sources = split_documents(stored, work / "text", copies)
        _set_limits(config, origin.place or "the source", sources)
        _make_tokenizer(config, sources, folder, progress)
        shards = _write_shards(sources, folder, pool, progress)
    manifest = _manifest(config, folder, sources, shards, started)
    manifest["source"] = origin.place
    if sample is not None:
        manifest |= sample.facts
    else:
        manifest["cleaning"] = {**_cleaned(config, stored, benchmarks), **(copies.summary() if copies else {})}
    write_json(folder / MANIFEST, manifest)


def _cleaned(config: DataConfig, stored: list[StoredText], benchmarks: Path | None) -> dict[str, Any]:
    cleaner = Cleaner(config.cleaning, benchmarks)
    for text in stored:
        cleaner.add_state(text.facts["cleaned"])
    return cleaner.summary()


def _demo_text(config: DataConfig, folder: Path) -> list[TextFile]:
    """The demo's own text, written anew unless that was finished."""
    done = folder / WORK / "demo.json"
    if not done.exists():
        for name in ("text", "pairs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        demo.write_text(config, folder)
        write_json(done, {})
    return demo.text_files(folder)


def _store(
    config: DataConfig, files: list[TextFile], folder: Path, benchmarks: Path | None, pool: Workers, progress: Progress
) -> list[StoredText]:
    """Bring every file into the text store, the largest first. A sample is clean already."""
    cleaning = CleaningConfig() if find_track(config).sampled else config.cleaning
    folder.mkdir(exist_ok=True)
    stored = [StoredText(folder, number) for number in range(len(files))]
    sizes = [size_and_time(file.path)[0] for file in files]
    missing = [number for number in range(len(files)) if not stored[number].is_whole()]
    tasks = [
        TextTask(folder, number, files[number], config.block_lines, cleaning, benchmarks)
        for number in sorted(missing, key=lambda number: -sizes[number])
    ]
    meter = _Meter(progress, "text", sum(sizes), sum(sizes) - sum(sizes[number] for number in missing))
    for _ in pool.run(store_text, tasks, meter.now_at):
        pass
    meter.finish()
    return stored


def _set_limits(config: DataConfig, place: str, sources: list[Chosen]) -> None:
    track, total = find_track(config), sum(source.words["train"] for source in sources)
    if total == 0:
        raise UserError(
            f"{place} has too little training text: its first {HELD_OUT_EVERY} documents hold out one for "
            "development, and that was all. Add text, or a dev/ folder."
        )
    if track.limited and config.words is None and total > track.words:
        raise UserError(
            f"The training text in {place} has {total:,} words, {total - track.words:,} more than the "
            f"{track.words:,} of the track {track.name}. Take a part of it with words={track.words} "
            "(each file's share in proportion), or remove some."
        )
    budget = config.words or track.words
    for source in sources:
        words = source.words["train"]
        source.limit = words if total <= budget else words * budget // total
        leave_out_the_rest(source)
    if not any(len(source.documents("train")) for source in sources):
        raise UserError(f"words={config.words} is too few: no file has a document that fits into its share.")


def _make_tokenizer(config: DataConfig, sources: list[Chosen], folder: Path, progress: Progress) -> None:
    final, aside, facts = folder / "tokenizer", folder / WORK / "tokenizer", folder / WORK / "tokenizer.json"
    finished = final.is_dir() and facts.is_file()
    if finished and json.loads(facts.read_text(encoding="utf-8"))["hash"] == tokenizer_hash(final):
        return
    for left in (final, aside):
        shutil.rmtree(left, ignore_errors=True)
    if config.tokenizer is not None:
        digest = save_tokenizer(read_given_tokenizer(config.tokenizer), aside)
    else:
        meter = _Meter(progress, "tokenizer", sum(source.stored.facts["bytes"] for source in sources))

        def train_documents() -> Iterator[str]:
            read = 0
            for source in sources:
                for batch in source.stored.documents(source.documents("train"), _BATCH_BYTES):
                    for document in batch:
                        yield document.decode()
                    read += sum(map(len, batch))
                    meter.now_at(read)

        digest = save_tokenizer(train_tokenizer(train_documents(), config.vocab_size), aside)
        meter.finish()
    write_json(facts, {"hash": digest})
    aside.rename(final)


@dataclass(frozen=True)
class _ShardTask:
    """One shard; a worker needs nothing else to write it."""

    folder: Path
    split: Split
    number: int
    segments: list[Segment]
    sources: list[Chosen]
    tokenizer: tuple[Path, str]
    """Folder and hash."""

    @property
    def facts_path(self) -> Path:
        return self.folder / WORK / "shards" / f"{self.split}-{self.number:05d}.json"

    def finished(self) -> dict[str, Any] | None:
        """What an earlier call noted about it, if its files are still what they were."""
        try:
            facts: dict[str, Any] = json.loads(self.facts_path.read_text(encoding="utf-8"))
            whole = all(
                file_sha256(self.folder / self.split / name) == file["sha256"] for name, file in facts["files"].items()
            )
        except (OSError, ValueError, KeyError):
            return None
        return facts if whole else None


def _write_shards(
    sources: list[Chosen], folder: Path, pool: Workers, progress: Progress
) -> dict[Split, list[dict[str, Any]]]:
    """All shards of all splits: what was noted of each."""
    (folder / WORK / "shards").mkdir(exist_ok=True)
    tokenizer = folder / "tokenizer", tokenizer_hash(folder / "tokenizer")
    shards: dict[Split, list[dict[str, Any]]] = {}
    tasks = []
    for split in SPLITS:
        (folder / split).mkdir(exist_ok=True)
        for left in (folder / split).glob("*.tmp"):  # half written when a call was killed
            left.unlink()
        for number, segments in enumerate(shard_segments(sources, split)):
            tasks.append(_ShardTask(folder, split, number, segments, sources, tokenizer))
        shards[split] = [{}] * sum(task.split == split for task in tasks)
    missing = []
    for task in tasks:
        facts = task.finished()
        if facts is None:
            missing.append(task)
        else:
            shards[task.split][task.number] = facts
    done = sum(facts["totals"]["bytes"] for split in SPLITS for facts in shards[split] if facts)
    meter = _Meter(progress, "tokens", sum(source.stored.facts["bytes"] for source in sources), done)
    for task, facts in pool.run(_write_shard, missing, meter.now_at):
        shards[task.split][task.number] = facts
    meter.finish()
    return shards


def _write_shard(task: _ShardTask, tick: Tick) -> dict[str, Any]:
    encoder = _encoder(*task.tokenizer)

    def documents() -> Iterator[tuple[int, list[bytes]]]:
        for number, first, last in task.segments:
            source = task.sources[number]
            for batch in source.stored.documents(source.documents(task.split, first, last), _BATCH_BYTES):
                yield number, batch
                tick(sum(map(len, batch)))

    facts = write_shard(task.folder / task.split, task.number, encoder, documents())
    write_json(task.facts_path, facts)
    return facts


@lru_cache(maxsize=1)
def _encoder(folder: Path, digest: str) -> DocumentEncoder:
    """Kept from shard to shard: what it has learned makes it fast."""
    return DocumentEncoder(load_tokenizer(folder))


def _manifest(
    config: DataConfig, folder: Path, sources: list[Chosen], shards: dict[Split, list[dict[str, Any]]], started: float
) -> dict[str, Any]:
    tokenizer, digest = load_tokenizer(folder / "tokenizer"), tokenizer_hash(folder / "tokenizer")
    counts: dict[Split, list[Counter[str]]] = {split: [Counter() for _ in sources] for split in SPLITS}
    files: dict[str, Any] = {}
    for split in SPLITS:
        for shard in shards[split]:
            files |= {f"{split}/{name}": facts for name, facts in shard["files"].items()}
            for number, amounts in shard["sources"].items():
                counts[split][int(number)].update(amounts)
    for path in (path for name in ("tokenizer", "text", "pairs") for path in (folder / name).rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    rows = []
    for number, source in enumerate(sources):
        facts = source.stored.facts
        rows.append(
            {
                **{key: facts[key] for key in ("name", "file_bytes", "mtime_ns", "sha256")},
                **facts["counts"],
                "available_words": source.words,
                **{split: _counted(counts[split][number]) for split in SPLITS},
            }
        )
    splits = {split: _counted(sum(counts[split], Counter())) for split in SPLITS}
    manifest: dict[str, Any] = {
        "settings": dataset_settings(config),
        "made_by": f"hgrnx {hgrnx.__version__}",
        "fingerprint": demo.fingerprint(config) if config.track == "demo" else None,
        "sources": rows,
        "splits": splits,
        "shards": {split: [_counted(Counter(shard["totals"])) for shard in shards[split]] for split in SPLITS},
        "files": dict(sorted(files.items())),
        "tokenizer": {
            "hash": digest,
            "vocab_size": tokenizer.get_vocab_size(),
            "bos_id": tokenizer.token_to_id(BOS),
            "eos_id": tokenizer.token_to_id(EOS),
            "given": config.tokenizer,
            "texts": tokenizer_texts(config.tokenizer, digest) if config.tokenizer else None,
            "trained_on_words": splits["train"]["words"] if config.tokenizer is None else None,
        },
        "token_type": token_dtype(tokenizer.get_vocab_size()).name,
    }
    manifest["hash"] = _content_hash(manifest)
    manifest["seconds"] = round(time.time() - started, 1)
    return manifest


def _counted(counts: Counter[str]) -> dict[str, int]:
    return {key: counts[key] for key in ("documents", "words", "bytes", "tokens")}


def _content_hash(manifest: dict[str, Any]) -> str:
    content = {
        "settings": manifest["settings"],
        "text": [(source["name"], source["sha256"]) for source in manifest["sources"]],
        "files": {name: facts["sha256"] for name, facts in manifest["files"].items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Meter:
    """Reports about every percent, so that a slow listener does not slow the work."""

    def __init__(self, progress: Progress, stage: str, total: int, before: int = 0) -> None:
        self._progress, self._stage, self._total, self._before = progress, stage, total, before
        self._next = self._last = 0
        self.now_at(0)

    def now_at(self, done: int) -> None:
        done = min(done + self._before, self._total)
        if done >= self._next:
            self._progress(self._stage, done, self._total)
            self._last, self._next = done, done + self._total // 100 + 1

    def finish(self) -> None:
        if self._last < self._total:
            self._progress(self._stage, self._total, self._total)
