"""The text of a track of domains: a sample of every domain, written as one file a domain and split."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hgrnx.config import DataConfig
from hgrnx.data.cleaning import Cleaner
from hgrnx.data.duplicates import Copies
from hgrnx.data.sampling import DomainSample, document_hash, first_words
from hgrnx.data.sources import LineCounts, Split, TextFile, find_domain_files, read_labelled
from hgrnx.data.tracks import Track, domain_words, find_track
from hgrnx.errors import UserError

DEV_SHARE = 0.01
"""Development words of a domain, as a share of its training words: the next documents in the order of the sample."""

_SPARE = 1.5
"""How much more is kept than needed where near duplicates are taken out of it afterwards."""


@dataclass
class SampledText:
    """What :func:`write_sample` wrote, and what it was taken from."""

    files: list[TextFile]
    inputs: list[dict[str, Any]]
    """Each input file: name, domain's words read from it are in ``domains``; lines left out by kind."""
    domains: dict[str, dict[str, int]]
    """Per domain: ``documents`` and ``words`` in the source, ``budget`` and ``train`` words, copies left out."""
    cleaning: dict[str, Any] = field(default_factory=dict)
    other_domains: dict[str, int] = field(default_factory=dict)
    """Documents of domains that the track does not have, by name."""


@dataclass
class _Part:
    """What one reader has met."""

    samples: dict[str, DomainSample]
    lines: list[LineCounts]
    cleaner: Cleaner
    others: Counter[str] = field(default_factory=Counter)


def write_sample(
    config: DataConfig, folder: Path, *, readers: int = 1, on_file: Callable[[int, int], None] = lambda done, of: None
) -> SampledText:
    """Sample the domains of ``config``'s track and write ``text/DOMAIN.{train,dev}.jsonl`` into ``folder``.

    Every domain's training words are its budget exactly: the last document is cut where the budget ends.

    Args:
        readers: processes that read the source's files at the same time.
        on_file: called with the number of files read, and of all.

    Raises:
        UserError: the source can't be read, a document does not say its domain, or a domain has too little text.
    """
    track = find_track(config)
    files = find_domain_files(track, None if config.source == "hub" else config.source)
    if not files:
        raise UserError(f"There are no files to sample the track {track.name} from.")
    waiting = folder / "waiting"
    waiting.mkdir()
    budgets = _most_words(config, track)
    work = partial(_read_part, config, Cleaner(config.cleaning), budgets)
    parts: list[_Part | None] = [None] * min(readers, len(files))
    shares = [files[index :: len(parts)] for index in range(len(parts))]
    try:
        if len(parts) == 1:
            parts[0] = work(shares[0], waiting / "0")
            on_file(len(files), len(files))
        else:
            done = 0
            with ProcessPoolExecutor(len(parts), mp_context=get_context("spawn")) as pool:
                futures = {pool.submit(work, share, waiting / str(index)): index for index, share in enumerate(shares)}
                for future in as_completed(futures):
                    parts[futures[future]] = future.result()
                    done += len(shares[futures[future]])
                    on_file(done, len(files))
        whole = _merged([part for part in parts if part is not None])
        text = _write(config, track, whole, folder / "text")
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
    lines = {file.name: counts for share, part in zip(shares, parts) if part for file, counts in zip(share, part.lines)}
    text.inputs = [{"name": file.name, "from": str(file.path), **lines[file.name].as_dict()} for file in files]
    text.other_domains = dict(sorted(whole.others.items()))
    return text


def _most_words(config: DataConfig, track: Track) -> dict[str, int]:
    """Words to keep of each domain while reading, when nobody knows yet which domains have no text."""
    spare = _SPARE if config.cleaning.near_duplicates else 1.0
    together = sum(
        words for name, words in domain_words(track, config.words).items() if track.domains[name].size is not None
    )
    return {
        name: int((together if track.domains[name].size is not None else words) * (1 + DEV_SHARE) * spare) + 1
        for name, words in domain_words(track, config.words).items()
    }


def _read_part(
    config: DataConfig, cleaner: Cleaner, budgets: Mapping[str, int], files: list[TextFile], folder: Path
) -> _Part:
    folder.mkdir()
    part = _Part(
        samples={name: DomainSample(words, folder / f"{index}") for index, (name, words) in enumerate(budgets.items())},
        lines=[],
        cleaner=cleaner,
    )
    for file in files:
        counts = LineCounts()
        part.lines.append(counts)
        for label, document in read_labelled(file, config.block_lines, counts):
            name = label if label in budgets else file.domain if label is None else None
            if name is None:
                if label is None:
                    raise UserError(
                        f"{file.path} has documents without meta.pile_set_name, so nobody can tell their domain. "
                        "Put the file into a folder that has the domain's name."
                    )
                part.others[label] += 1
                continue
            cleaned = part.cleaner.clean(document)
            if cleaned:
                part.samples[name].add(cleaned, len(cleaned.split()), document_hash(cleaned, config.seed))
    for sample in part.samples.values():
        sample.close()
    return part


def _merged(parts: Iterable[_Part]) -> _Part:
    whole, *rest = parts
    for part in rest:
        for name, sample in part.samples.items():
            whole.samples[name].merge(sample)
            sample.close()
        whole.cleaner.merge(part.cleaner)
        whole.others.update(part.others)
    return whole


def _write(config: DataConfig, track: Track, whole: _Part, folder: Path) -> SampledText:
    absent = {name for name, sample in whole.samples.items() if sample.documents == 0}
    budgets = domain_words(track, config.words, absent)
    text = SampledText(files=[], inputs=[], domains={})
    short, near = [], Copies(exact=False, near=config.cleaning.near_duplicates)
    folder.mkdir()
    for name, sample in whole.samples.items():
        facts = {"documents": sample.documents, "words": sample.available_words, "budget": budgets.get(name, 0)}
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
        paths: dict[Split, Path] = {"train": folder / f"{stem}.train.jsonl", "dev": folder / f"{stem}.dev.jsonl"}
        if name in budgets:
            written = _write_domain(sample, budgets[name], near, paths)
            if written["train"] < budgets[name]:
                short.append(f"{name} has {written['train']:,} words, {budgets[name] - written['train']:,} too few")
            for split, path in paths.items():
                if written[split]:
                    text.files.append(TextFile(path, path.name, split, "jsonl"))
            facts.update(train=written["train"], dev=written["dev"], equal_documents=sample.duplicates)
        text.domains[name] = facts
        sample.close()
    if short:
        raise UserError(
            f"The source has too little text for the track {track.name}:\n  - " + "\n  - ".join(short) + "\n"
            "Add text, ask for fewer words, or make a track of your own with other shares."
        )
    text.cleaning = {**whole.cleaner.summary(), **near.summary()}
    return text


def _write_domain(sample: DomainSample, budget: int, near: Copies, paths: dict[Split, Path]) -> dict[Split, int]:
    """Writes training text until the budget is met, then development text; returns the words of both."""
    written: dict[Split, int] = {"train": 0, "dev": 0}
    most: dict[Split, int] = {"train": budget, "dev": int(budget * DEV_SHARE)}
    with ExitStack() as stack:
        streams = {split: stack.enter_context(path.open("w", encoding="utf-8")) for split, path in paths.items()}
        split: Split = "train"
        for document, words in _without_copies(sample, near):
            if written["train"] >= budget:
                split = "dev"
            left = most[split] - written[split]
            if left <= 0:
                break
            if words > left:
                document, words = first_words(document, left), left
            streams[split].write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
            written[split] += words
    for split, path in paths.items():
        if not written[split]:
            path.unlink()
    return written


def _without_copies(sample: DomainSample, near: Copies) -> Iterator[tuple[str, int]]:
    for document, words in sample.in_order():
        if not near.is_copy(document):
            yield document, words
