"""The benchmarks by name: found, read and checked before anything is run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hgrnx.data.benchmark_hub import fetch_benchmark
from hgrnx.data.benchmark_items import GLUE_FIELDS
from hgrnx.data.benchmark_names import SUBTASKS
from hgrnx.data.benchmarks import EWOK_PASSWORD, FOLDERS, find_benchmarks, read_bear, read_ewok, read_minimal_pairs
from hgrnx.errors import UserError, joined
from hgrnx.evaluation.bear import Bear, Reduction
from hgrnx.evaluation.ewok import Ewok
from hgrnx.evaluation.minimal_pairs import MinimalPairs
from hgrnx.evaluation.task import Task

_DEFAULT = ("blimp", "supplement", "ewok", "bear")


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    tasks: list[Task]
    glue: list[str]
    """Tasks to fine-tune on; empty for none."""
    glue_folder: Path | None


def plan_tasks(
    names: Sequence[str] | None,
    folder: Path | None,
    *,
    bear_templates: Sequence[int] | None = None,
    bear_reduction: Reduction = "sum",
    ewok_password: str = EWOK_PASSWORD,
) -> Plan:
    """Find and read the data of the tasks ``names``.

    Args:
        names: ``blimp``, ``supplement``, ``ewok`` (each also with ``_fast``), ``bear``, ``glue``, or single tasks of
            GLUE; those of the first four that ``folder`` has when None.
        folder: in the pipeline's layout; the Hugging Face hub when None.
        bear_templates, bear_reduction: see :class:`~hgrnx.evaluation.bear.Bear`.

    Raises:
        UserError: with all problems at once: unknown names, folders and files that are missing or damaged.
    """
    places = find_benchmarks(folder) if folder is not None else {}
    problems = [_unknown(name) for name in names or [] if name not in {*FOLDERS, *GLUE_FIELDS}]
    wanted = list(dict.fromkeys(names)) if names is not None else [name for name in _DEFAULT if name in places]
    if not wanted:
        problems.append(f"{folder} has none of the benchmarks {', '.join(_DEFAULT)}: name others with --tasks.")
    glue = list(GLUE_FIELDS) if "glue" in wanted else [name for name in wanted if name in GLUE_FIELDS]
    readers: dict[str, Callable[[str, Path], Task]] = {
        "blimp": _pairs,
        "supplement": _pairs,
        "ewok": lambda name, place: _ewok(name, place, ewok_password),
        "bear": lambda _, place: _bear(place, bear_templates, bear_reduction),
    }
    tasks = []
    for name in dict.fromkeys("glue" if name in GLUE_FIELDS else name for name in wanted):
        if name not in FOLDERS:
            continue
        if folder is not None and name not in places:
            problems.append(f"{name}: there is no folder {FOLDERS[name]} in {folder}.")
            continue
        try:
            place = places[name] if folder is not None else fetch_benchmark(name)
            if name != "glue":
                tasks.append(readers[name.removesuffix("_fast")](name, place))
        except UserError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError(joined(problems))
    return Plan(tasks, glue, places.get("glue"))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, [*FOLDERS, *GLUE_FIELDS], n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There is no task '{name}'.{hint} The tasks are {', '.join(FOLDERS)}, and the single tasks of GLUE."


def _pairs(name: str, place: Path) -> Task:
    files = read_minimal_pairs(place)
    _require_all(name, files, place)
    return MinimalPairs(name, files)


def _ewok(name: str, place: Path, password: str) -> Task:
    files = read_ewok(place, password)
    _require_all(name, files, place)
    return Ewok(name, files)


def _bear(place: Path, templates: Sequence[int] | None, reduction: Reduction) -> Task:
    relations = read_bear(place)
    counts = [len(relation.templates) for relation in relations]
    for index in templates or ():
        if index >= max(counts):
            raise UserError(f"no relation has a template {index} (from 0); the most are {max(counts)}.")
    if templates and min(templates) >= min(counts):
        raise UserError(f"some relations have {min(counts)} templates only, so none of those asked for.")
    return Bear(relations, templates, reduction)


def _require_all(name: str, found: Collection[str], place: Path) -> None:
    wanted = SUBTASKS[name.removesuffix("_fast")]
    missing = [f"{subtask}.jsonl" for subtask in wanted if subtask not in found]
    if missing:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(f"{place} lacks {some} of {len(wanted)} files; the mean would be of other things.")
    extra = [f"{subtask}.jsonl" for subtask in found if subtask not in wanted]
    if extra:
        raise UserError(f"{place} has files that do not belong to {name}: {', '.join(extra[:5])}.")
