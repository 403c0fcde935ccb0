"""The BabyLM challenge's file of predictions, and its score.

The file is JSON, gzipped or not: ``{"glue"|"blimp"|"blimp_supplement"|"ewok": {subtask: {"predictions": [{"id":
"<subtask>_<row>", "pred": label of GLUE, or the preferred text}]}}}``. Rows count from 0 in the order of the data.
Texts are compared after strip and lower-case. A task's score is the unweighted mean of its subtasks' scores, the
macro average the mean of the tasks.
"""

from __future__ import annotations

import difflib
import gzip
import json
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrnx.data.benchmark_names import SUBTASKS
from hgrnx.data.benchmarks import EWOK_PASSWORD, find_benchmarks, read_ewok, read_glue, read_minimal_pairs
from hgrnx.errors import UserError, joined
from hgrnx.evaluation.metrics import GLUE_METRICS, MetricName, count_table, score_table

if TYPE_CHECKING:
    from rich.console import Console

CHALLENGE_TASKS = {"blimp": "blimp", "blimp_supplement": "supplement", "ewok": "ewok", "glue": "glue"}
"""The challenge's name of each of its tasks, and ours."""

Predictions = dict[str, dict[str, list[dict[str, Any]]]]
"""By the challenge's task and subtask: objects with ``id`` and ``pred``."""

Row = tuple[str, str] | int
"""What a prediction is compared with: the right and the wrong text, or the right label."""


@dataclass(frozen=True)
class SubtaskScore:
    """One subtask's score: between 0 and 1 (``mcc``: -1 and 1)."""

    name: str
    metric: MetricName
    score: float
    stderr: float
    items: int
    neither: int
    """Predicted texts that are none of the two: counted as wrong."""


@dataclass(frozen=True)
class TaskScore:
    """A task's subtasks and their unweighted mean, which is None while subtasks are missing."""

    name: str
    score: float | None
    stderr: float | None
    subtasks: list[SubtaskScore]
    missing: list[str]


@dataclass(frozen=True)
class ChallengeScore:
    """The tasks of a file; ``macro`` is None unless all the challenge's tasks are whole."""

    macro: float | None
    tasks: list[TaskScore]
    missing: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def read_predictions(paths: Sequence[Path]) -> Predictions:
    """The predictions of one file, or of several with different tasks; zips are opened with EWoK's password.

    Raises:
        UserError: a file is missing, cut short or not of this form; a task is in two files.
    """
    found: Predictions = {}
    for path in paths:
        for task, subtasks in _tasks_in(path).items():
            if task in found:
                raise UserError(f"{path} has predictions of {task}, and so has a file before it.")
            found[task] = {name: _prediction_list(content, f"{path}, {task}/{name}") for name, content in subtasks}
    return found


def score_predictions(predictions: Predictions, folder: Path) -> ChallengeScore:
    """Score predictions by the challenge's rules against the data in ``folder`` (the pipeline's layout).

    Subtasks that are absent are reported as missing. All else that does not fit the data is refused.

    Raises:
        UserError: with all problems at once: unknown tasks and subtasks, ids that are missing, double or too many,
            predictions of a wrong kind, data that is not there.
    """
    places = find_benchmarks(folder)
    problems: list[str] = []
    tasks: list[TaskScore] = []
    for task in predictions.keys() - CHALLENGE_TASKS.keys():
        problems.append(f"There is no task '{task}'; the challenge has {', '.join(CHALLENGE_TASKS)}.")
    for task, ours in CHALLENGE_TASKS.items():
        if task not in predictions:
            continue
        if ours not in places:
            problems.append(f"The data of {task} is not in {folder}.")
            continue
        rows = task_rows(ours, places[ours])
        scored = []
        for name, given in predictions[task].items():
            if name not in rows:
                near = difflib.get_close_matches(name, rows, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                problems.append(f"{task} has no subtask '{name}' in {places[ours]}{hint}")
                continue
            try:
                ordered = _in_order(given, name, rows[name])
                scored.append(_score_subtask(task, name, ordered, rows[name]))
            except _Misfit as misfit:
                problems.append(f"{task}/{name}: {misfit}")
        missing = [name for name in SUBTASKS[ours] if name not in predictions[task]]
        scored.sort(key=lambda row: row.name)
        tasks.append(_task_score(task, scored, missing))
    if problems:
        raise UserError(joined(problems))
    absent = [task for task in CHALLENGE_TASKS if task not in predictions]
    scores = [task.score for task in tasks]
    whole = [score for score in scores if score is not None]
    macro = math.fsum(whole) / len(whole) if not absent and len(whole) == len(scores) else None
    return ChallengeScore(macro, tasks, absent)


def task_rows(task: str, place: Path) -> dict[str, list[Row]]:
    """What predictions of a task are compared with, by subtask: texts (right, wrong), or labels.

    Args:
        task: ``blimp``, ``supplement``, ``ewok`` or ``glue``.
        place: the task's folder, as :func:`~hgrnx.data.benchmarks.find_benchmarks` says it.
    """
    if task == "ewok":
        return {name: [item.targets for item in items] for name, items in read_ewok(place).items()}
    if task == "glue":
        labels: dict[str, list[Row]] = {}
        for name, rows in read_glue(place, "valid").items():
            known = [row.label for row in rows if row.label is not None]
            if len(known) < len(rows):
                raise UserError(f"{place}: {name}.valid has rows without a label, so nothing can be scored on it.")
            labels[name] = list(known)
        return labels
    return {name: [(pair.good, pair.bad) for pair in pairs] for name, pairs in read_minimal_pairs(place).items()}


def print_scores(score: ChallengeScore, console: Console) -> None:
    """Print every subtask's score, each task's mean and the macro average, in percent."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for column in ("metric", "items", "score, %", "±"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for task in score.tasks:
        for row in task.subtasks:
            table.add_row(f"  {row.name}", row.metric, str(row.items), _percent(row.score), _percent(row.stderr))
        count = f"{len(task.subtasks)} subtasks" if not task.missing else "incomplete"
        items = str(sum(row.items for row in task.subtasks))
        table.add_row(task.name, count, items, _percent(task.score), _percent(task.stderr), style="bold")
    table.add_row("macro average", f"{len(score.tasks)} tasks", "", _percent(score.macro), "", style="bold")
    console.print(table)
    for task in score.tasks:
        if task.missing:
            console.print(f"{task.name} lacks {', '.join(task.missing)}: no mean is given.", highlight=False)
        for row in task.subtasks:
            if row.neither:
                console.print(
                    f"{task.name}/{row.name}: {row.neither} predictions are none of the two texts; counted as wrong.",
                    highlight=False,
                )
    if score.missing:
        console.print(f"There are no predictions of {', '.join(score.missing)}.", highlight=False)


class _Misfit(Exception):
    """Why the predictions of a subtask do not fit its data."""


def _tasks_in(path: Path) -> dict[str, Iterable[tuple[str, Any]]]:
    try:
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                texts = [archive.read(name, pwd=EWOK_PASSWORD.encode()) for name in archive.namelist()]
        else:
            texts = [gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content]
        parts = [json.loads(text) for text in texts]
    except OSError as error:
        # gzip.BadGzipFile is an OSError without a strerror.
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from None
    except (EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is cut short or damaged ({error}). Get the file again.") from None
    except RuntimeError:  # zipfile's word for a wrong password
        raise UserError(f"The password '{EWOK_PASSWORD}' does not open {path}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    tasks: dict[str, Iterable[tuple[str, Any]]] = {}
    for part in parts:
        if not isinstance(part, dict) or not all(isinstance(subtasks, dict) for subtasks in part.values()):
            raise UserError(f"{path} is not a file of predictions: it should be an object of tasks with subtasks.")
        tasks |= {task: subtasks.items() for task, subtasks in part.items()}
    return tasks


def _prediction_list(content: Any, where: str) -> list[dict[str, Any]]:
    items = content.get("predictions") if isinstance(content, dict) else None
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and {"id", "pred"} <= item.keys() for item in items
    ):
        raise UserError(f"{where}: needs the key 'predictions' with a list of objects with 'id' and 'pred'.")
    return items


def _in_order(given: Sequence[Mapping[str, Any]], name: str, rows: Sequence[Row]) -> list[Any]:
    """The predictions in the order of the rows; each row must have one."""
    wanted = {f"{name}_{row}": row for row in range(len(rows))}
    counts = Counter(str(item["id"]) for item in given)
    double = [key for key, count in counts.items() if count > 1]
    extra = [key for key in counts if key not in wanted]
    missing = [key for key in wanted if key not in counts]
    faults = [
        f"{len(keys)} ids are {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("given twice", double), ("not in the data", extra), ("missing", missing))
        if keys
    ]
    if faults:
        raise _Misfit(f"{len(given)} predictions for {len(rows)} rows: {'; '.join(faults)}")
    by_id = {item["id"]: item["pred"] for item in given}
    return [by_id[key] for key in wanted]


def _score_subtask(task: str, name: str, predicted: Sequence[Any], rows: Sequence[Row]) -> SubtaskScore:
    metric: MetricName = "accuracy"
    neither = 0
    if task == "glue":
        labels = sorted({row for row in rows if isinstance(row, int)})
        _check_all(predicted, lambda value: type(value) is int and value in labels, f"one of the labels {labels}")
        metric = GLUE_METRICS.get(name, "accuracy")
        table = count_table([row for row in rows if isinstance(row, int)], predicted)
    else:
        _check_all(predicted, lambda value: isinstance(value, str), "a text")
        pairs = [tuple(map(_plain, row)) for row in rows if not isinstance(row, int)]
        texts = [_plain(value) for value in predicted]
        right = [text == pair[0] for text, pair in zip(texts, pairs, strict=True)]
        neither = sum(text not in pair for text, pair in zip(texts, pairs, strict=True))
        table = count_table([1] * len(right), [int(value) for value in right])
    score, stderr = score_table(metric, table)
    return SubtaskScore(name, metric, score, stderr, len(rows), neither)


def _check_all(predicted: Sequence[Any], fits: Callable[[Any], bool], what: str) -> None:
    bad = [row for row, value in enumerate(predicted) if not fits(value)]
    if bad:
        raise _Misfit(f"{len(bad)} predictions are not {what}; the first is {predicted[bad[0]]!r} of row {bad[0]}")


def _plain(text: str) -> str:
    return text.strip().lower()


def _task_score(name: str, scored: list[SubtaskScore], missing: list[str]) -> TaskScore:
    if missing or not scored:
        return TaskScore(name, None, None, scored, missing)
    mean = math.fsum(row.score for row in scored) / len(scored)
    stderr = math.sqrt(math.fsum(row.stderr**2 for row in scored)) / len(scored)
    return TaskScore(name, mean, stderr, scored, missing)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"
