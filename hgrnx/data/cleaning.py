"""Cleaning of documents as ``data.cleaning`` asks for it, with counts of what it changed.

In two parts, so that several processes may do the first: :class:`Cleaner` looks at one document at a time,
:class:`~hgrnx.data.duplicates.Copies` at all that came before.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hgrnx.config.sections import CleaningConfig
from hgrnx.data.benchmarks import benchmark_texts
from hgrnx.data.decontamination import Decontaminator, NgramIndex
from hgrnx.data.duplicates import Copies


class Cleaner:
    """Unicode normalisation and the search for benchmark text. Made once, then copied to the processes that clean."""

    def __init__(self, config: CleaningConfig) -> None:
        """Reads the benchmarks, if they are asked for. Raises UserError where they can't be read."""
        self._form = config.unicode
        self._normalised = 0
        self._decontaminator: Decontaminator | None = None
        if config.decontaminate is not None:
            wanted = config.decontaminate
            index = NgramIndex.build(benchmark_texts(Path(wanted.benchmarks).expanduser()), wanted.ngram)
            self._decontaminator = Decontaminator(index, wanted.remove, wanted.threshold)

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

    def merge(self, other: Cleaner) -> None:
        """Add the counts of a copy that cleaned other documents."""
        self._normalised += other._normalised
        if self._decontaminator is not None and other._decontaminator is not None:
            self._decontaminator.merge(other._decontaminator)

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


def clean_documents(documents: Iterable[str], cleaner: Cleaner, copies: Copies) -> Iterator[str]:
    """The documents that remain, changed as asked for, in order."""
    for document in documents:
        cleaned = cleaner.clean(document)
        if cleaned and not copies.is_copy(cleaned):
            yield cleaned


def _lines_with_text(text: str) -> str:
    """Normalisation may turn a line into white space alone; a raw document has no such line."""
    return "".join(line + "\n" for line in text.split("\n") if line and not line.isspace())
