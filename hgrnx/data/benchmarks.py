"""Readers of benchmark files: BLiMP and its Supplement, EWoK, BEAR and (Super)GLUE, as BabyLM's pipeline keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hgrnx.data.benchmark_items import GLUE_FIELDS, BearInstance, BearRelation, EwokItem, GlueRow, MinimalPair
from hgrnx.data.benchmark_rows import json_object, json_rows, jsonl_files, read_text, text_field, zipped_jsonl
from hgrnx.errors import UserError

EWOK_PASSWORD = "ewok"
"""Of the zip that EWoK is passed around in, so that crawlers do not find its text."""

_FOLDERS = {
    "blimp": ("blimp_filtered", "blimp"),
    "supplement": ("supplement_filtered", "supplement"),
    "ewok": ("ewok", "ewok_filtered"),
    "bear": ("bear", "BEAR"),
    "glue": ("glue_filtered", "glue"),
    "blimp_fast": ("blimp_fast", "fast_eval/blimp_fast"),
    "supplement_fast": ("supplement_fast", "fast_eval/supplement_fast"),
    "ewok_fast": ("ewok_fast", "fast_eval/ewok_fast"),
}
"""Of the 2024 and 2025 pipelines; the fast ones are the subsets that 2025's rules ask for along the training."""

FOLDERS = {name: names[0] for name, names in _FOLDERS.items()}
"""The folder that each benchmark has in the pipeline's layout, by short name."""


def read_minimal_pairs(folder: Path) -> dict[str, list[MinimalPair]]:
    """The pairs of every ``*.jsonl`` file of ``folder``, by file name without suffix, in order.

    Raises:
        UserError: no such folder, no files in it, or a line that is not a pair; the message names the line.
    """
    if not folder.is_dir():
        raise UserError(f"The folder of minimal pairs {folder} does not exist.")
    paths = jsonl_files(folder, "minimal pairs")
    return {
        path.stem: [
            _minimal_pair(item, where, path.stem) for where, item in json_rows(read_text(path), str(path), "pairs")
        ]
        for path in paths
    }


def read_ewok(place: Path, password: str = EWOK_PASSWORD) -> dict[str, list[EwokItem]]:
    """EWoK's items by file name without suffix: of its zip, or of a folder with the zip or with ``*.jsonl`` files.

    The zip is read in memory. EWoK must never lie anywhere as plain text. A folder of ``*.parquet`` files is the
    hub's form, by domain: each item stands there once and is given as the pipeline has it, as it is and turned round.

    Raises:
        UserError: there is no EWoK, the password is wrong, or a line is not an item; the message names the line.
    """
    tables = sorted(place.rglob("*.parquet")) if place.is_dir() else []
    if tables:
        return _ewok_parquet(tables)
    if place.is_dir() and not list(place.glob("*.jsonl")):
        zips = sorted(place.glob("*.zip"))
        if not zips:
            raise UserError(f"There is neither EWoK's .zip nor a .jsonl file in {place}.")
        place = zips[0]
    if place.is_dir():
        contents: Iterable[tuple[str, str, str]] = (
            (path.stem, str(path), read_text(path)) for path in jsonl_files(place, "EWoK")
        )
    elif place.is_file():
        contents = zipped_jsonl(place, password)
    else:
        raise UserError(f"EWoK's {place} does not exist.")
    files = {
        name: [_ewok_item(item, at) for at, item in json_rows(text, where, "items")] for name, where, text in contents
    }
    if not files:
        raise UserError(f"{place} has no .jsonl files in it.")
    return files


def read_bear(folder: Path) -> list[BearRelation]:
    """BEAR's relations, in the order of ``metadata_relations.json``; their domains where ``relation_info.json`` is.

    Raises:
        UserError: a file is missing, or a line or relation is not as it should be; the message names it.
    """
    folder = folder if (folder / "metadata_relations.json").is_file() else folder / "BEAR"
    path = folder / "metadata_relations.json"
    relations = json_object(path)
    info = next((place for place in (folder, folder.parent) if (place / "relation_info.json").is_file()), None)
    domains = json_object(info / "relation_info.json") if info else {}
    return [_bear_relation(name, facts, path, domains.get(name)) for name, facts in relations.items()]


def read_glue(folder: Path, split: str) -> dict[str, list[GlueRow]]:
    """The rows of a split (``train`` or ``valid``) by task, of all :func:`glue_files`.

    Raises:
        UserError: see there and :func:`read_glue_file`.
    """
    return {task: read_glue_file(path, task) for task, path in glue_files(folder, split).items()}


def read_glue_file(path: Path, task: str) -> list[GlueRow]:
    """The rows of one file of a task.

    Raises:
        UserError: it cannot be read, or a line is not a row of the task; the message names the line.
    """
    return [_glue_row(item, at, task) for at, item in json_rows(read_text(path), str(path), "rows")]


def glue_files(folder: Path, split: str) -> dict[str, Path]:
    """The files ``TASK.SPLIT[.NOTE].jsonl`` of a split by task.

    Raises:
        UserError: there are none, a task is not known, or it has two files.
    """
    files: dict[str, Path] = {}
    for path in jsonl_files(folder, "GLUE"):
        task, _, rest = path.name.partition(".")
        if rest.split(".")[0] != split:
            continue
        if task not in GLUE_FIELDS:
            raise UserError(f"{path}: there is no task '{task}'; the tasks are {', '.join(GLUE_FIELDS)}.")
        if task in files:
            raise UserError(f"{folder} has two files of {task}.{split}: remove one.")
        files[task] = path
    if not files:
        raise UserError(f"There are no files TASK.{split}.jsonl in {folder}.")
    return files


def find_benchmarks(folder: Path) -> dict[str, Path]:
    """Where each benchmark lies in ``folder``, by short name.

    Raises:
        UserError: none is there.
    """
    if not folder.is_dir():
        raise UserError(f"The folder of benchmarks {folder} does not exist.")
    found = {
        name: folder / choice
        for name, names in _FOLDERS.items()
        for choice in names[::-1]
        if (folder / choice).is_dir()
    }
    if not found:
        raise UserError(
            f"There are no benchmarks in {folder}: it should have some of the folders {', '.join(FOLDERS.values())}."
        )
    return found


def benchmark_texts(folder: Path) -> dict[str, Iterator[list[str]]]:
    """The strings that each item of each benchmark in ``folder`` is made of, for the search for overlaps.

    BLiMP and Supplement: both sentences. EWoK: each context with each target. BEAR: each template of a true fact.
    GLUE: the fields of the ``valid`` rows, which the scores are computed on.
    """
    readers: dict[str, Callable[[Path], Iterator[list[str]]]] = {
        "blimp": _pair_texts,
        "supplement": _pair_texts,
        "ewok": _ewok_texts,
        "bear": _bear_texts,
        "glue": _glue_texts,
    }
    return {name: readers[name.removesuffix("_fast")](path) for name, path in find_benchmarks(folder).items()}


def _pair_texts(folder: Path) -> Iterator[list[str]]:
    for pairs in read_minimal_pairs(folder).values():
        yield from ([pair.good, pair.bad] for pair in pairs)


def _ewok_texts(folder: Path) -> Iterator[list[str]]:
    for items in read_ewok(folder).values():
        for item in items:
            yield [f"{context} {target}" for context in item.contexts for target in item.targets]


def _bear_texts(folder: Path) -> Iterator[list[str]]:
    for relation in read_bear(folder):
        for fact in relation.instances:
            answer = relation.answers[fact.answer]
            yield [relation.statement(index, fact.subject, answer) for index in range(len(relation.templates))]


def _glue_texts(folder: Path) -> Iterator[list[str]]:
    for rows in read_glue(folder, "valid").values():
        yield from ([value for value in row.fields.values() if isinstance(value, str)] for row in rows)


def _minimal_pair(item: dict[str, Any], where: str, stem: str) -> MinimalPair:
    return MinimalPair(
        good=text_field(item, "sentence_good", where, "a minimal pair"),
        bad=text_field(item, "sentence_bad", where, "a minimal pair"),
        phenomenon=str(item.get("linguistics_term") or stem),
        field=str(item.get("field") or ""),
    )


def _ewok_item(item: dict[str, Any], where: str) -> EwokItem:
    text = {
        key: text_field(item, key, where, "an EWoK item")
        for key in ("Domain", "ConceptA", "ConceptB", "Context1", "Context2", "Target1", "Target2")
    }
    return EwokItem(
        domain=text["Domain"],
        concepts=(text["ConceptA"], text["ConceptB"]),
        context_type=str(item.get("ContextType") or ""),
        context_difference=str(item.get("ContextDiff") or ""),
        target_difference=str(item.get("TargetDiff") or ""),
        contexts=(text["Context1"], text["Context2"]),
        targets=(text["Target1"], text["Target2"]),
    )


def _ewok_parquet(paths: Iterable[Path]) -> dict[str, list[EwokItem]]:
    import pyarrow
    import pyarrow.parquet

    files: dict[str, list[EwokItem]] = {}
    for path in paths:
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} is not a readable parquet file ({error}). Get the file again.") from None
        for number, row in enumerate(rows, start=1):
            item = _ewok_item(row, f"{path}:{number}")
            turned = replace(item, contexts=item.contexts[::-1], targets=item.targets[::-1])
            files.setdefault(item.domain, []).extend((item, turned))
    return dict(sorted(files.items()))


def _bear_relation(name: str, facts: Any, path: Path, info: Any) -> BearRelation:
    where = f"{path}, {name}"
    lists: dict[str, tuple[str, ...]] = {}
    for key in ("templates", "answer_space_labels"):
        values = facts.get(key) if isinstance(facts, dict) else None
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise UserError(f"{where}: a relation needs the key '{key}' with a list of texts.")
        lists[key] = tuple(values)
    for template in lists["templates"]:
        if "[X]" not in template or "[Y]" not in template:
            raise UserError(f"{where}: the template '{template}' lacks [X] or [Y].")
    file = path.parent / f"{name}.jsonl"
    instances = []
    for at, item in json_rows(read_text(file), str(file), "facts"):
        answer, aliases = item.get("answer_idx"), item.get("sub_aliases", [])
        if type(answer) is not int or not 0 <= answer < len(lists["answer_space_labels"]):
            raise UserError(f"{at}: 'answer_idx' must be one of the {len(lists['answer_space_labels'])} answers.")
        if not isinstance(aliases, list):
            raise UserError(f"{at}: 'sub_aliases' must be a list.")
        instances.append(BearInstance(text_field(item, "sub_label", at, "a fact"), tuple(map(str, aliases)), answer))
    domains = tuple(map(str, info.get("domains", []))) if isinstance(info, dict) else ()
    return BearRelation(name, lists["templates"], lists["answer_space_labels"], tuple(instances), domains)


def _glue_row(item: dict[str, Any], where: str, task: str) -> GlueRow:
    fields: dict[str, str | int] = {}
    for key, kind in GLUE_FIELDS[task].items():
        value = item.get(key)
        if type(value) is not kind:
            raise UserError(f"{where}: a row of {task} needs the key '{key}' with a {kind.__name__}.")
        assert isinstance(value, str | int)
        fields[key] = value
    label = item.get("label")
    if label is not None and type(label) is not int:
        raise UserError(f"{where}: 'label' must be a whole number, not {label!r}.")
    return GlueRow(fields, label)
