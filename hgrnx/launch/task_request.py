"""What a model is to be scored on, read from what the command line was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from hgrnx.config import GlueConfig, section_from
from hgrnx.errors import UserError, joined
from hgrnx.evaluation.bear import Reduction
from hgrnx.evaluation.glue import SEED
from hgrnx.evaluation.scoring import Precision


@dataclass(frozen=True)
class TaskRequest:
    """Benchmark tasks and how to ask them."""

    data: Path | None
    """Folder in the pipeline's layout; the Hugging Face hub when None."""
    tasks: tuple[str, ...] | None = None
    """Names, see :func:`~hgrnx.evaluation.catalogue.plan_tasks`; the zero-shot tasks that ``data`` has when None."""
    precision: Precision = "fp32"
    """Of the hidden states of zero-shot tasks."""
    bear_templates: tuple[int, ...] | None = None
    """All when None."""
    bear_reduction: Reduction = "sum"
    glue: GlueConfig = field(default_factory=GlueConfig)
    """How to fine-tune."""
    seeds: tuple[int, ...] = (SEED,)
    """Of fine-tunings."""
    submission: Path | None = None
    """Where to write predictions in the challenge's JSON."""


def read_numbers(option: str, value: str) -> tuple[int, ...]:
    """``"12,13"`` as numbers, each once. Raises :class:`UserError` naming the option."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--{option} {value}: give numbers separated by commas.")
    return tuple(dict.fromkeys(map(int, parts)))


def read_request(
    tasks: str | None,
    data: Path | None,
    precision: str,
    bear_templates: str,
    bear_reduction: str,
    glue: Sequence[str],
    seeds: str,
    submission: Path | None,
) -> TaskRequest:
    """The request that the options of ``hgrnx eval`` make.

    Raises:
        UserError: with all that is wrong with them.
    """
    problems: list[str] = []

    def chosen(option: str, value: str, choices: Any) -> str:
        if value not in get_args(choices):
            problems.append(f"--{option} {value}: give one of {', '.join(get_args(choices))}.")
        return value

    def numbers(option: str, value: str) -> tuple[int, ...]:
        try:
            return read_numbers(option, value)
        except UserError as error:
            problems.append(str(error))
            return ()

    try:
        config = section_from(GlueConfig, glue, "fine-tuning (--glue)", "epochs=3")
    except UserError as error:
        problems.append(str(error))
        config = GlueConfig()
    request = TaskRequest(
        data=data.expanduser().resolve() if data is not None else None,
        tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks is not None else None,
        precision=cast(Precision, chosen("precision", precision, Precision)),
        bear_templates=None if bear_templates == "all" else numbers("bear-templates", bear_templates),
        bear_reduction=cast(Reduction, chosen("bear-reduction", bear_reduction, Reduction)),
        glue=config,
        seeds=numbers("seeds", seeds),
        submission=submission,
    )
    if problems:
        raise UserError(joined(problems))
    return request
