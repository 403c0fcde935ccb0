"""Lengths and periods, in steps, epochs, words or percent of the run."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

_UNITS = {
    "step": "steps",
    "steps": "steps",
    "epoch": "epochs",
    "epochs": "epochs",
    "word": "words",
    "words": "words",
}
_SUFFIXES = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}
_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([kmb]?)\s*(steps?|epochs?|words?|%)\s*$", re.IGNORECASE)


def parse_duration(text: str) -> tuple[float, Literal["steps", "epochs", "words", "percent"]]:
    """``"3 epochs"``, ``"500 steps"``, ``"1M words"`` or ``"5%"`` as amount and unit.

    Raises:
        ValueError: anything else, or an amount that is not positive.
    """
    match = _DURATION.match(text)
    if not match:
        raise ValueError(f"'{text}' is not a duration; write for example '3 epochs', '500 steps', '1M words' or '5%'")
    amount = float(match[1]) * _SUFFIXES[match[2].lower()]
    if amount <= 0:
        raise ValueError(f"'{text}' must be more than zero")
    unit = "percent" if match[3] == "%" else _UNITS[match[3].lower()]
    return amount, unit  # type: ignore[return-value]


WORD_MILESTONES = tuple(
    sorted({count * unit for unit in (1_000_000, 10_000_000, 100_000_000) for count in range(1, 11)})
)
"""Words seen at which BabyLM 2025 asks for a checkpoint: each million to 10M, each ten to 100M, each hundred to 1B."""


def milestone_name(words: int) -> str:
    """The revision's name in BabyLM's evaluation pipeline: ``chck_1M`` ... ``chck_1000M``."""
    return f"chck_{words // 1_000_000}M"


def milestones_between(before: int, now: int) -> list[int]:
    """The word milestones after ``before`` words and up to ``now``."""
    return [words for words in WORD_MILESTONES if before < words <= now]


MILESTONES = "milestones"
"""Instead of a period: at the word milestones."""


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


Duration = Annotated[str, AfterValidator(_check_duration)]
"""A length or a period, such as ``"3 epochs"``, ``"500 steps"``, ``"1M words"`` or ``"5%"`` (of the run)."""


def _check_points(text: str) -> str:
    return text if text == MILESTONES else _check_duration(text)


Points = Annotated[str, AfterValidator(_check_points)]
"""A period, or ``"milestones"``: at 1M, 2M ... 10M, 20M ... 100M, 200M ... 1B words seen."""
