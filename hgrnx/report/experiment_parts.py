"""What a report is made of, and the names in it: for the page and for Markdown alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hgrnx.report.experiment_files import BITS, PAIRS, RunRecord
from hgrnx.report.task_scores import TITLES

_NAMES = {**TITLES, PAIRS: "minimal pairs", BITS: "bits per byte"}


class ArmDifference(NamedTuple):
    """One arm's mean score on a measure minus another's: percentage points, or bits per byte."""

    first: str
    second: str
    measure: str
    difference: float
    interval: tuple[float, float]
    p: float
    seeds: tuple[int, int]
    paradigms: int


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is a name, the others are numbers."""

    header: list[str]
    rows: list[list[str]]
    note: str = ""
    names: int = 1
    """Columns on the left that are names."""


@dataclass(frozen=True)
class Figure:
    """A chart with the names of its colours."""

    title: str
    svg: str
    legend: list[tuple[int, str]]
    note: str = ""


@dataclass(frozen=True)
class Part:
    """A section of the report."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    code: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """All of it."""

    name: str
    title: str
    question: str
    status: str
    missing: list[str]
    """Runs that are not finished, each with how far it is."""
    parts: list[Part]


class Arm(NamedTuple):
    """An arm with its finished runs and its place among the arms, which is its colour."""

    name: str
    facts: dict[str, Any]
    runs: list[RunRecord]
    colour: int

    @property
    def title(self) -> str:
        return str(self.facts["title"])


def measure_name(measure: str) -> str:
    """What a measure is called in a report."""
    return _NAMES.get(measure, measure)
