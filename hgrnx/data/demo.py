"""The demo track's text and minimal pairs, written out by the grammar so that anyone can read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hgrnx.config import DataConfig
from hgrnx.data.sources import Split, TextFile
from hgrnx.data.tracks import find_track

DEV_WORDS = 20_000
PAIRS_PER_PHENOMENON = 200
_DEV_SEED = 1_000_000_007
_PAIRS_SEED = 2_000_000_011
"""Added to the seed: development text and pairs are drawn apart from the training text."""


def text_files(folder: Path) -> list[TextFile]:
    """The text in ``folder``."""
    splits: tuple[Split, ...] = ("dev", "train")
    return [
        TextFile(folder / "text" / f"demo.{split}.jsonl", f"demo.{split}.jsonl", split, "jsonl") for split in splits
    ]


def write_text(config: DataConfig, folder: Path) -> None:
    """Write ``text/demo.{train,dev}.jsonl`` and ``pairs/*.jsonl`` (BLiMP's format) into ``folder``."""
    from hgrnx.data.grammar import generate_documents, minimal_pairs

    (folder / "text").mkdir()
    (folder / "pairs").mkdir()
    words = config.words or find_track(config).words
    amounts = {"dev": (DEV_WORDS, config.seed + _DEV_SEED), "train": (words, config.seed)}
    for file in text_files(folder):
        _write_jsonl(file.path, ({"text": text} for text in generate_documents(*amounts[file.split])))
    for name, pairs in minimal_pairs(config.seed + _PAIRS_SEED, PAIRS_PER_PHENOMENON).items():
        _write_jsonl(folder / "pairs" / f"{name}.jsonl", pairs)


def fingerprint(config: DataConfig) -> str:
    """Hash of a sample of text and pairs: tells a dataset that another version of the grammar made."""
    from hgrnx.data.grammar import generate_documents, minimal_pairs

    sample = [list(generate_documents(2_000, config.seed)), minimal_pairs(config.seed, 5)]
    return hashlib.sha256(json.dumps(sample, sort_keys=True).encode()).hexdigest()


def _write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
