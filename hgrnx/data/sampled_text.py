"""The text of a track of domains: a sample of every domain, written as one file a domain and split."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgrnx.config import DataConfig
from hgrnx.data.cleaning import Cleaner
from hgrnx.data.duplicates import Copies
from hgrnx.data.folders import WORK, size_and_time, write_json
from hgrnx.data.sampling import DomainSample, document_hash, first_words
from hgrnx.data.sources import DomainFile, LineCounts, Split, TextFile, read_labelled
from hgrnx.data.tracks import domain_words, find_track
from hgrnx.data.workers import Tick, Workers
from hgrnx.errors import UserError

DEV_SHARE = 0.01
"""Development words of a domain, as a share of its training words: the next documents in the order of the sample."""

_SPARE = 1.5
"""How much more is kept than needed where near duplicates are taken out of it afterwards."""


@dataclass(frozen=True)
class SampledText:
    """A finished sample, and what is noted of it in the manifest."""

    written: list[tuple[str, Split]]
    """File name and split."""
    facts: dict[str, Any]
    """``domains``: words in the source, budget and what was taken; ``inputs``: the files that were read;
    ``other_domains``: documents of domains that the track does not have; ``cleaning``."""

    def files(self, folder: Path) -> list[TextFile]:
        """The text in ``folder``."""
        return [TextFile(folder / "text" / name, name, split, "jsonl") for name, split in self.written]


@dataclass(frozen=True)
class _PartTask:
    """Some of the files, for one process to read."""

    config: DataConfig
    benchmarks: Path | None
    words: Mapping[str, int]
    """To keep of each domain."""
    files: Sequence[DomainFile]
    folder: Path


@dataclass
class _Part:
    """What one process has met."""

    samples: dict[str, DomainSample]
    inputs: list[dict[str, Any]]
    cleaned: dict[str, Any]
    others: Counter[str]


def sampled_text(
    config: DataConfig,
    inputs: Sequence[DomainFile],
    folder: Path,
    benchmarks: Path | None,
    pool: Workers,
    readers: int,
    on_progress: Callable[[int], None],
) -> SampledText:
    """Sample the domains of ``config``'s track and write ``text/DOMAIN.{train,dev}.jsonl``, unless that was finished.

    Every domain's training words are its budget exactly: its last document is cut where the budget ends. Cleaning is
    done before anything is counted.

    Args:
        benchmarks: their index, where ``config.cleaning`` needs it.
        readers: into how many parts the files are divided, for ``pool``; the result does not depend on it.

    Raises:
        UserError: the source can't be read, a document does not say its domain, or a domain has too little text.
    """
    done = folder / WORK / "sample.json"
    if not done.exists():
        waiting = folder / WORK / "waiting"
        for left in (waiting, folder / "text"):
            shutil.rmtree(left, ignore_errors=True)
        waiting.mkdir()
        words = _most_words(config)
        count = max(1, min(readers, len(inputs)))
        tasks = [
            _PartTask(config, benchmarks, words, inputs[number::count], waiting / str(number))
            for number in range(count)
        ]
        parts = [part for _, part in pool.run(_read_part, tasks, on_progress)]
        facts, written = _write(config, parts, Cleaner(config.cleaning, benchmarks), folder / "text")
        shutil.rmtree(waiting)
        write_json(done, {"written": written, "facts": facts})
    content = json.loads(done.read_text(encoding="utf-8"))
    return SampledText([tuple(row) for row in content["written"]], content["facts"])


def _most_words(config: DataConfig) -> dict[str, int]:
    """Words to keep of each domain while reading, when nobody knows yet which domains have no text."""
    track = find_track(config)
    spare = (1 + DEV_SHARE) * (_SPARE if config.cleaning.near_duplicates else 1.0)
    budgets = domain_words(track, config.words)
    shared = sum(words for name, words in budgets.items() if track.domains[name].size is not None)
    return {
        name: math.ceil((words if track.domains[name].size is None else shared) * spare) + 1
        for name, words in budgets.items()
    }


def _read_part(task: _PartTask, tick: Tick) -> _Part:
    task.folder.mkdir()
    samples = {
        name: DomainSample(words, task.folder / str(number)) for number, (name, words) in enumerate(task.words.items())
    }
    cleaner, others, inputs = Cleaner(task.config.cleaning, task.benchmarks), Counter[str](), []
    for file in task.files:
        before = size_and_time(file.path) if isinstance(file.path, Path) else None
        counts = LineCounts()
        for label, document in read_labelled(file, task.config.block_lines, counts, tick):
            name = file.domain if label is None else label
            if name is None:
                raise UserError(
                    f"{file.path} has documents without meta.pile_set_name, so nobody can tell their domain. "
                    "Put the file into a folder that has the domain's name."
                )
            if name not in samples:
                others[name] += 1
                continue
            cleaned = cleaner.clean(document)
            if cleaned:
                samples[name].add(cleaned, len(cleaned.split()), document_hash(cleaned, task.config.seed))
        if isinstance(file.path, Path) and size_and_time(file.path) != before:
            raise UserError(f"{file.path} was changed while it was read. Run the command again.")
        inputs.append({"name": file.name, "from": str(file.path), "bytes": file.size, **counts.as_dict()})
    for sample in samples.values():
        sample.close()
    return _Part(samples, inputs, cleaner.state(), others)


def _write(
    config: DataConfig, parts: Sequence[_Part], cleaner: Cleaner, folder: Path
) -> tuple[dict[str, Any], list[tuple[str, Split]]]:
    """Merge the parts and write their text; what is noted of it, and the files."""
    track = find_track(config)
    samples, others = parts[0].samples, Counter[str]()
    for number, part in enumerate(parts):
        cleaner.add_state(part.cleaned)
        others.update(part.others)
        for name, sample in part.samples.items():
            if number > 0:
                samples[name].merge(sample)
                sample.close()
    budgets = domain_words(track, config.words, [name for name, sample in samples.items() if not sample.documents])
    near = Copies(exact=False, near=config.cleaning.near_duplicates)
    domains: dict[str, dict[str, int]] = {}
    files: list[tuple[str, Split]] = []
    short: list[str] = []
    folder.mkdir()
    for name, sample in samples.items():
        budget = budgets.get(name, 0)
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
        names: dict[Split, str] = {"train": f"{stem}.train.jsonl", "dev": f"{stem}.dev.jsonl"}
        taken = _write_domain(sample, budget, near, {split: folder / names[split] for split in names})
        files += [(names[split], split) for split in names if taken[split]]
        if taken["train"] < budget:
            short.append(f"{name} has {taken['train']:,} words, {budget - taken['train']:,} too few")
        domains[name] = {
            "available_documents": sample.documents,
            "available_words": sample.available_words,
            "budget": budget,
            "equal_documents": sample.duplicates,
            "train": taken["train"],
            "dev": taken["dev"],
        }
        sample.close()
    if short:
        raise UserError(
            f"The source has too little text for the track {track.name}:\n  - " + "\n  - ".join(short) + "\n"
            "Add text, ask for fewer words, or make a track of your own with other shares."
        )
    if not any(split == "dev" for _, split in files):
        raise UserError(
            f"The source has no text left for development after the {sum(budgets.values()):,} training words of the "
            f"track {track.name}. Add text, or ask for fewer words."
        )
    facts = {
        "domains": domains,
        "inputs": sorted((row for part in parts for row in part.inputs), key=lambda row: str(row["name"])),
        "other_domains": dict(sorted(others.items())),
        "cleaning": {**cleaner.summary(), **near.summary()},
    }
    return facts, sorted(files)


def _write_domain(sample: DomainSample, budget: int, near: Copies, paths: dict[Split, Path]) -> dict[Split, int]:
    """Write training text until the budget is met, then development text; the words of both."""
    taken: dict[Split, int] = {"train": 0, "dev": 0}
    most: dict[Split, int] = {"train": budget, "dev": math.ceil(budget * DEV_SHARE)}
    with ExitStack() as stack:
        streams = {split: stack.enter_context(path.open("w", encoding="utf-8")) for split, path in paths.items()}
        for document, words in _different(sample, near):
            split: Split = "train" if taken["train"] < budget else "dev"
            left = most[split] - taken[split]
            if left <= 0:
                break
            if words > left:
                document, words = first_words(document, left), left
            streams[split].write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
            taken[split] += words
    for split, path in paths.items():
        if not taken[split]:
            path.unlink()
    return taken


def _different(sample: DomainSample, near: Copies) -> Iterator[tuple[str, int]]:
    """The documents of a sample in its order, without those that resemble one before, and their words."""
    for document, words in sample.in_order():
        if not near.is_copy(document):
            yield document, words
