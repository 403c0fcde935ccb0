"""What there is to fine-tune on for (Super)GLUE: tasks, their texts and files, and what comes out.

Texts, templates and metrics are those of ``finetune_classification.py`` in github.com/babylm/evaluation-pipeline-2024.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hgrnx.config import FinetuneConfig, GlueConfig
from hgrnx.data.benchmark_items import GLUE_FIELDS
from hgrnx.data.benchmarks import glue_files, read_glue_file
from hgrnx.data.folders import file_sha256
from hgrnx.errors import UserError
from hgrnx.evaluation.finetune import Epoch
from hgrnx.evaluation.metrics import GLUE_METRICS, MetricName, count_table, score_table

TEMPLATES: dict[str, tuple[str, str | None]] = {
    "boolq": ("{question}", "{passage}"),
    "cola": ("{sentence}", None),
    "mnli": ("{premise}", "{hypothesis}"),
    "mrpc": ("{sentence1}", "{sentence2}"),
    "multirc": ("Question: {question} Answer: {answer}", "{paragraph}"),
    "qnli": ("{question}", "{sentence}"),
    "qqp": ("{question1}", "{question2}"),
    "rte": ("{sentence1}", "{sentence2}"),
    "sst2": ("{sentence}", None),
    "wsc": ('Does "{span2_text}" refer to "{span1_text}" in this passage?', "{text}"),
}
"""First and second text of a row, by the task that is fine-tuned on."""

FINETUNED_ON = {"mnli-mm": "mnli"}
"""Tasks that are scored with the model fine-tuned on another one."""

_CLASSES = {"mnli": 3}  # elsewhere 2


def glue_metric(task: str) -> MetricName:
    """What the challenge scores ``task`` by."""
    return GLUE_METRICS.get(task, "accuracy")


@dataclass(frozen=True)
class SeedResult:
    """One fine-tuning, scored on every row of ``TASK.valid``."""

    seed: int
    score: float
    """By the task's metric, between 0 and 1 (``mcc``: -1 and 1)."""
    stderr: float
    """Of the score, over the rows."""
    accuracy: float
    best_epoch: int
    """Counted from 1."""
    epochs: list[Epoch]
    predictions: list[int]
    """Class of each row, in the order of the file."""


@dataclass(frozen=True)
class GlueResult:
    """A task's fine-tunings, one a seed."""

    task: str
    metric: MetricName
    rows: int
    baseline: float
    """The score of the best constant answer: the majority class, by the task's metric."""
    train_file: str
    """Name of the file trained on; a note in it (``.SUBSET``) says that it is not the whole set."""
    train_rows: int
    settings: FinetuneConfig
    """Every hyperparameter, as the task used it."""
    seeds: list[SeedResult]

    @property
    def score(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(result.score for result in self.seeds)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return statistics.stdev(result.score for result in self.seeds) if len(self.seeds) > 1 else None

    @property
    def predictions(self) -> dict[int, int]:
        """Class by row of the first seed's fine-tuning, for a file of predictions."""
        return dict(enumerate(self.seeds[0].predictions))


@dataclass(frozen=True)
class Job:
    """What is fine-tuned together: the task trained on, and the tasks that are scored with its model."""

    task: str
    config: FinetuneConfig
    classes: int
    train_file: Path
    train_rows: int
    valid_files: dict[str, Path]
    """Of ``task`` always, and of the other tasks asked for."""
    gold: dict[str, list[int]]
    """Labels of the tasks that were asked for."""
    hashes: dict[Path, str]
    """SHA-256 of every file."""

    @property
    def select_by(self) -> MetricName:
        return self.config.select_by or ("f1" if self.classes == 2 else "accuracy")

    def result(self, task: str, seeds: list[SeedResult]) -> GlueResult:
        metric, gold = glue_metric(task), self.gold[task]
        constants = [score_table(metric, count_table(gold, [answer] * len(gold)))[0] for answer in range(self.classes)]
        return GlueResult(
            task, metric, len(gold), max(constants), self.train_file.name, self.train_rows, self.config, seeds
        )

    def key(self, task: str, seed: int, facts: Sequence[Any]) -> str:
        """Equal for two fine-tunings exactly when they give the same result."""
        files = [self.train_file, self.valid_files[self.task], self.valid_files[task]]
        values = [task, seed, self.config.model_dump(mode="json"), [self.hashes[file] for file in files], *facts]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


class Tuning(NamedTuple):
    """One fine-tuning. It is independent of all others."""

    job: Job
    seed: int


def plan_jobs(folder: Path, tasks: Sequence[str], config: GlueConfig) -> list[Job]:
    """Find the files of ``tasks`` and read them once, to be sure of them.

    A task is fine-tuned on ``TASK.train[.NOTE].jsonl`` and scored on ``TASK.valid.jsonl``; ``mnli-mm`` belongs to the
    job of ``mnli``.

    Args:
        tasks: names among ``GLUE_FIELDS``.

    Raises:
        UserError: an unknown task, a file that is missing, cut or not of its task, or a row without a label.
    """
    for name in [*tasks, *config.tasks]:
        if name not in GLUE_FIELDS:
            near = difflib.get_close_matches(name, GLUE_FIELDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(f"There is no GLUE task '{name}'.{hint} The tasks are {', '.join(GLUE_FIELDS)}.")
    for name in config.tasks.keys() & FINETUNED_ON.keys():
        raise UserError(f"{name} is scored with the model fine-tuned on {FINETUNED_ON[name]}: give the settings there.")
    wanted: dict[str, list[str]] = {}
    for name in dict.fromkeys(tasks):
        wanted.setdefault(FINETUNED_ON.get(name, name), []).append(name)
    trains, valids = glue_files(folder, "train"), glue_files(folder, "valid")
    scored = {task: list(dict.fromkeys([task, *names])) for task, names in wanted.items()}
    missing = [f"{task}.train.jsonl" for task in wanted if task not in trains]
    missing += [f"{name}.valid.jsonl" for names in scored.values() for name in names if name not in valids]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}.")
    jobs = []
    for task, names in wanted.items():
        settings, classes = config.of(task), _CLASSES.get(task, 2)
        # Read here to be sure of them, and again when it is their turn: together they may be large.
        train_rows = len(read_rows(trains[task], task, classes)[: settings.max_train_rows])
        gold = {name: [label for _, label in read_rows(valids[name], name, classes)] for name in scored[task]}
        files = {trains[task], *(valids[name] for name in scored[task])}
        jobs.append(
            Job(
                task,
                settings,
                classes,
                trains[task],
                train_rows,
                {name: valids[name] for name in scored[task]},
                {name: gold[name] for name in names},
                {path: file_sha256(path) for path in sorted(files)},
            )
        )
    return jobs


def read_rows(path: Path, task: str, classes: int) -> list[tuple[tuple[str, str | None], int]]:
    """The texts and the class of each row."""
    first, second = TEMPLATES[FINETUNED_ON.get(task, task)]
    rows = []
    for number, row in enumerate(read_glue_file(path, task)):
        if row.label is None or not 0 <= row.label < classes:
            raise UserError(f"{path}: row {number} (from 0) has the label {row.label}, not one of 0 to {classes - 1}.")
        texts = first.format(**row.fields), second.format(**row.fields) if second is not None else None
        rows.append((texts, row.label))
    return rows
