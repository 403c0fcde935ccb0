"""Cleaning of documents as ``data.cleaning`` asks for it, with counts of what it changed.

In two parts, so that several processes may do the first: :class:`Cleaner` looks at one document at a time,
:class:`~hgrnx.data.duplicates.Copies` at all that came before.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgrnx.config import CleaningConfig
from hgrnx.data.benchmarks import benchmark_texts, find_benchmarks
from hgrnx.data.decontamination import Decontaminator, NgramIndex


def index_benchmarks(config: CleaningConfig, folder: Path) -> Path | None:
    """The file in ``folder`` with the :class:`NgramIndex` of the benchmarks, made if need be; None if not asked for.

    Raises:
        UserError: they can't be read.
    """
    wanted, path = config.decontaminate, folder / "benchmarks.npz"
    if wanted is None:
        return None
    if not path.exists():
        NgramIndex.build(benchmark_texts(Path(wanted.benchmarks).expanduser()), wanted.ngram).save(path)
    return path


def benchmark_stamps(config: CleaningConfig) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the benchmarks' files, if they are asked for."""
    if config.decontaminate is None:
        return []
    files = [
        path
        for folder in find_benchmarks(Path(config.decontaminate.benchmarks).expanduser()).values()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


class Cleaner:
    """Unicode normalisation and the search for benchmark text, one document at a time."""

    def __init__(self, config: CleaningConfig, index: Path | None) -> None:
        """``index``: what :func:`index_benchmarks` wrote, where ``config.decontaminate`` asks for it."""
        self._form = config.unicode
        self._normalised = 0
        self._decontaminator: Decontaminator | None = None
        if config.decontaminate is not None:
            assert index is not None
            wanted = config.decontaminate
            self._decontaminator = Decontaminator(NgramIndex.load(index), wanted.remove, wanted.threshold)

    def clean(self, document: str) -> str:
        """What is left of a raw document; empty where nothing is."""
        if self._form is not None:
            normal = unicodedata.normalize(self._form, document)
            if normal != document:
                self._normalised += 1
                document = _lines_with_text(normal)
        if document and self._decontaminator is not None:
            document = self._decontaminator.clean(document)
        return document

    def state(self) -> dict[str, Any]:
        """All counts, for JSON."""
        found = self._decontaminator
        return {"normalised": self._normalised, "decontaminator": None if found is None else found.state()}

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Add the counts of another one, made alike, that cleaned other documents."""
        self._normalised += state["normalised"]
        if self._decontaminator is not None:
            self._decontaminator.add_state(state["decontaminator"])

    def summary(self) -> dict[str, Any]:
        """What was changed, by option; only of the options asked for."""
        counts: dict[str, Any] = {}
        if self._form is not None:
            counts["unicode"] = {"form": self._form, "documents": self._normalised}
        if self._decontaminator is not None:
            counts["decontaminate"] = {
                "ngram": self._decontaminator.index.ngram,
                "benchmarks": self._decontaminator.report(),
                "removed": self._decontaminator.removed,
            }
        return counts


def _lines_with_text(text: str) -> str:
    """Normalisation may turn a line into white space alone; a raw document has no such line."""
    return "".join(line + "\n" for line in text.split("\n") if line and not line.isspace())
