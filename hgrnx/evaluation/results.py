"""Scores of finished tasks, and the files that have them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hgrnx.data.benchmark_names import SUBTASKS
from hgrnx.data.benchmarks import FOLDERS, glue_files, read_glue_file
from hgrnx.data.folders import file_sha256
from hgrnx.errors import UserError
from hgrnx.evaluation.choices import Accuracy, TextScorer, mean_accuracy
from hgrnx.evaluation.files import read_gzip, write_gzip, write_whole
from hgrnx.evaluation.glue_jobs import GlueResult
from hgrnx.evaluation.shares import Predictions, ask_here, choices_of, run_shares
from hgrnx.evaluation.task import Task, TaskScore
from hgrnx.models import LanguageModel

SCORES = "tasks.json"
TABLE = "tasks.csv"
PREDICTIONS = "tasks-predictions.json.gz"
CHALLENGE_MEAN = ("blimp", "supplement", "ewok", "glue")
"""The tasks whose mean is the BabyLM challenge's macro average."""
_SEED_FACTS = ("seed", "score", "stderr", "accuracy", "best_epoch")


@dataclass(frozen=True)
class TaskResult:
    """A task's scores and predictions."""

    score: TaskScore
    predictions: dict[str, Predictions]
    """By subtask."""
    details: list[dict[str, Any]] = field(default_factory=list)
    """What else is to be known of each subtask, as of a fine-tuning."""


def run_task(task: Task, scorer: TextScorer, kept: Path, on_share: Callable[[], None] | None = None) -> TaskResult:
    """Ask all of a task, in this process, that is not in ``kept`` already.

    Args:
        kept: folder for what is finished of one model with one set of settings.
        on_share: called whenever some items are finished; an exception of it ends the call, and they are kept.

    Raises:
        UserError: a score is no number, or ``kept`` cannot be written.
    """
    shares = run_shares([task], ask_here([task], scorer), kept, lambda *_: on_share() if on_share else None)
    ((_, predictions),) = shares
    return task_result(task, predictions)


def task_result(task: Task, predictions: Mapping[str, Predictions]) -> TaskResult:
    """The scores of all subtasks' predictions."""
    return TaskResult(
        task.summarise({subtask: choices_of(predictions[subtask]) for subtask in task.subtasks}), dict(predictions)
    )


def glue_result(results: Sequence[GlueResult], folder: Path) -> TaskResult:
    """Fine-tunings as a task: a score is the mean over seeds, its standard error over rows and, if several, seeds.

    The overall score needs all of GLUE's tasks. Predictions are those of the first seed.
    """
    rows, predictions, details = [], {}, []
    for result in sorted(results, key=lambda result: result.task):
        over_rows = math.fsum(seed.stderr for seed in result.seeds) / len(result.seeds)
        over_seeds = (result.spread or 0.0) / math.sqrt(len(result.seeds))
        stderr = math.hypot(over_rows, over_seeds)
        rows.append(Accuracy(result.task, result.task, result.rows, result.score, stderr, 0, result.score))
        path = glue_files(folder, "valid")[result.task]
        predictions[result.task] = {
            "data": file_sha256(path),
            "right": [row.label for row in read_glue_file(path, result.task)],
            "chosen": result.seeds[0].predictions,
        }
        details.append(
            {
                "name": result.task,
                "metric": result.metric,
                "baseline": result.baseline,
                "train_file": result.train_file,
                "train_rows": result.train_rows,
                "seeds": [{key: vars(seed)[key] for key in _SEED_FACTS} for seed in result.seeds],
                "settings": result.settings.model_dump(mode="json"),
            }
        )
    whole = {row.name for row in rows} == set(SUBTASKS["glue"])
    overall = mean_accuracy("glue", "glue", rows) if whole else None
    return TaskResult(TaskScore(overall, rows, rows), predictions, details)


def weights_hash(model: LanguageModel) -> str:
    """SHA-256 of a model's parameters and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def save_results(folder: Path, results: Mapping[str, TaskResult], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``tasks.json`` (all scores), ``tasks.csv`` (a row a score) and ``tasks-predictions.json.gz``.

    Tasks that an earlier call scored under the same ``facts`` stay.

    Args:
        folder: an evaluation folder.
        results: by task.
        facts: says of which weights and settings the scores are.

    Returns:
        The content of ``tasks.json``: the facts, ``tasks`` by name, and ``macro`` (None until the challenge's tasks
        are all there).
    """
    try:
        before = read_scores(folder)
    except UserError:  # it is made again
        before = None
    tasks: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    if before is not None and all(before.get(key) == value for key, value in facts.items()):
        tasks = before["tasks"]
        predictions = read_gzip(folder / PREDICTIONS) or {}
    for name, result in results.items():
        tasks[name] = {**result.score.as_dict(), **({"details": result.details} if result.details else {})}
        predictions[name] = result.predictions
    tasks = {name: tasks[name] for name in sorted(tasks, key=[*FOLDERS, *tasks].index)}
    content = {**facts, "macro": _macro(tasks), "tasks": tasks}
    folder.mkdir(parents=True, exist_ok=True)
    write_gzip(folder / PREDICTIONS, predictions)
    write_whole(folder / TABLE, _csv(tasks).encode())
    write_whole(folder / SCORES, (json.dumps(content, indent=1) + "\n").encode())
    return content


def read_scores(folder: Path) -> dict[str, Any] | None:
    """``tasks.json`` of an evaluation folder; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / SCORES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}). Score the model again: hgrnx eval ... --fresh") from None
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict):
        raise UserError(f"{path} is damaged. Score the model again: hgrnx eval ... --fresh")
    return content


def task_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The scores of ``tasks.json`` as flat metrics: ``blimp/accuracy``, ``blimp/island_effects/accuracy``, ..."""
    metrics: dict[str, float] = {}
    for task, tables in content["tasks"].items():
        overall = tables["overall"]
        if overall is not None:
            metrics |= {f"{task}/{key}": overall[key] for key in ("accuracy", "stderr", "accuracy_ties_half", "ties")}
        metrics |= {f"{task}/{row['name']}/accuracy": row["accuracy"] for row in tables["groups"]}
    if content["macro"] is not None:
        metrics |= {f"macro/{key}": value for key, value in content["macro"].items()}
    return metrics


def _macro(tasks: Mapping[str, Any]) -> dict[str, float] | None:
    means = [tasks[name]["overall"] for name in CHALLENGE_MEAN if name in tasks]
    if len(means) < len(CHALLENGE_MEAN) or None in means:
        return None
    return {key: math.fsum(mean[key] for mean in means) / len(means) for key in ("accuracy", "accuracy_ties_half")}


def _csv(tasks: Mapping[str, Any]) -> str:
    text = io.StringIO()
    columns = ["task", "table", "name", "group", "items", "accuracy", "stderr", "ties", "accuracy_ties_half"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for task, tables in tasks.items():
        if tables["overall"] is not None:
            writer.writerow({"task": task, "table": "overall", **tables["overall"]})
        for table in ("groups", "templates", "subtasks"):
            writer.writerows({"task": task, "table": table, **row} for row in tables[table])
    return text.getvalue()
