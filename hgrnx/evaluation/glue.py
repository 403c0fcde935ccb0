"""Fine-tuning on (Super)GLUE as the BabyLM challenge of 2024 has it.

Texts, templates, classification head, hyperparameters and the choice of the best epoch are those of
``finetune_classification.py`` and ``finetune_model.sh`` in github.com/babylm/evaluation-pipeline-2024. What is
different: BOS before every row and a line break between two texts, which our models know from their training. The
pipeline leaves both to the tokenizer.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrnx.config import FinetuneConfig, GlueConfig
from hgrnx.data.benchmarks import GLUE_FIELDS, glue_files, read_glue_file
from hgrnx.data.folders import file_sha256, write_json
from hgrnx.errors import UserError
from hgrnx.evaluation.classifier import Classifier, encode_texts
from hgrnx.evaluation.finetune import Epoch, Labelled, finetune, predict
from hgrnx.evaluation.metrics import GLUE_METRICS, MetricName, count_table, score_table
from hgrnx.models import LanguageModel

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

SEED = 12
"""The pipeline's."""

_CLASSES = {"mnli": 3}  # elsewhere 2


def glue_metric(task: str) -> MetricName:
    """What the challenge scores ``task`` by."""
    return GLUE_METRICS.get(task, "accuracy")


@dataclass(frozen=True)
class GlueProgress:
    """How far a fine-tuning is."""

    task: str
    seed: int
    done: int
    total: int
    """Training rows seen, and to see unless it stops early; a row counts once an epoch."""
    epochs: int
    """Epochs done."""
    score: float | None
    """What the best epoch is chosen by, after the last epoch done, between 0 and 1 (``mcc``: -1 and 1)."""


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


def run_glue(
    model_factory: Callable[[], LanguageModel],
    tokenizer: Any,
    bos_id: int,
    folder: Path,
    tasks: Sequence[str],
    config: GlueConfig,
    *,
    out_dir: Path,
    identity: str,
    seeds: Sequence[int] = (SEED,),
    device: torch.device | str = "cpu",
    on_progress: Callable[[GlueProgress], None] | None = None,
) -> Iterator[GlueResult]:
    """Fine-tune a fresh copy of a model for every task and seed; yields each task as it is finished.

    A task is fine-tuned on ``TASK.train[.NOTE].jsonl`` and scored on ``TASK.valid.jsonl``, which also chooses the best
    epoch (the challenge's rule); ``mnli-mm`` is scored with the model of ``mnli``. What is finished is kept in
    ``out_dir`` as ``TASK-seedN.json`` and not run again while files, settings, tokenizer and ``identity`` are the same.

    Args:
        model_factory: gives the pretrained model anew, on any device; called once a fine-tuning.
        tokenizer, bos_id: a ``tokenizers.Tokenizer``, and the id of the token before every row.
        folder: holds the files.
        tasks: names among ``GLUE_FIELDS``.
        identity: says which weights ``model_factory`` gives, such as a checkpoint's digest.
        seeds: of the head's weights, the order of the rows, and dropout.

    Raises:
        UserError: before anything is run: an unknown task, a file that is missing, cut or not of its task, or a row
            without a label; later: a fine-tuning whose losses are no numbers.
    """
    tuner = _Tuner(model_factory, tokenizer, bos_id, torch.device(device), on_progress)
    return _run(_plan(folder, tasks, config), tuner, identity, out_dir, seeds)


@dataclass(frozen=True)
class _Job:
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
        values = [task, seed, self.config.model_dump(mode="json"), [file_sha256(file) for file in files], *facts]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _plan(folder: Path, tasks: Sequence[str], config: GlueConfig) -> list[_Job]:
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
        train_rows = len(_read(trains[task], task, classes)[: settings.max_train_rows])
        gold = {name: [label for _, label in _read(valids[name], name, classes)] for name in scored[task]}
        jobs.append(
            _Job(
                task,
                settings,
                classes,
                trains[task],
                train_rows,
                {name: valids[name] for name in scored[task]},
                {name: gold[name] for name in names},
            )
        )
    return jobs


def _read(path: Path, task: str, classes: int) -> list[tuple[tuple[str, str | None], int]]:
    """The texts and the class of each row."""
    first, second = TEMPLATES[FINETUNED_ON.get(task, task)]
    rows = []
    for number, row in enumerate(read_glue_file(path, task)):
        if row.label is None or not 0 <= row.label < classes:
            raise UserError(f"{path}: row {number} (from 0) has the label {row.label}, not one of 0 to {classes - 1}.")
        texts = first.format(**row.fields), second.format(**row.fields) if second is not None else None
        rows.append((texts, row.label))
    return rows


@dataclass(frozen=True)
class _Tuner:
    """Fine-tunes, without a memory of what was done before."""

    model_factory: Callable[[], LanguageModel]
    tokenizer: Any
    bos_id: int
    device: torch.device
    on_progress: Callable[[GlueProgress], None] | None

    def run(self, job: _Job, seed: int) -> dict[str, SeedResult]:
        """The tasks of a job with one seed."""
        config = job.config
        train = self._encoded(job, job.train_file, job.task, config.max_train_rows)
        valid = {name: self._encoded(job, path, name) for name, path in job.valid_files.items()}
        total = config.epochs * len(train.rows)

        def on_rows(done: int, epochs: list[Epoch]) -> None:
            if self.on_progress is not None:
                score = epochs[-1].score if epochs else None
                self.on_progress(GlueProgress(job.task, seed, done, total, len(epochs), score))

        classifier = Classifier(self.model_factory(), job.classes, torch.Generator().manual_seed(seed)).to(self.device)
        try:
            fit = finetune(
                classifier, train, valid[job.task], config, select_by=job.select_by, seed=seed, on_rows=on_rows
            )
            predictions = {
                name: (fit.predictions if name == job.task else predict(classifier, valid[name].rows, config)).tolist()
                for name in job.gold
            }
        except UserError as error:
            raise UserError(f"Fine-tuning on {job.task} with seed {seed}: {error}") from None
        return {
            name: _seed_result(name, seed, job.gold[name], classes, fit.best_epoch, fit.epochs)
            for name, classes in predictions.items()
        }

    def _encoded(self, job: _Job, path: Path, task: str, count: int | None = None) -> Labelled:
        rows = _read(path, task, job.classes)[:count]
        tokens = encode_texts(
            self.tokenizer,
            self.bos_id,
            [texts for texts, _ in rows],
            max_length=job.config.max_length,
            separator=job.config.separator,
        )
        return Labelled(tokens, np.array([label for _, label in rows], dtype=np.int64))


def _seed_result(
    task: str, seed: int, gold: list[int], predicted: list[int], best_epoch: int, epochs: list[Epoch]
) -> SeedResult:
    table = count_table(gold, predicted)
    score, stderr = score_table(glue_metric(task), table)
    return SeedResult(seed, score, stderr, score_table("accuracy", table)[0], best_epoch, epochs, predicted)


def _run(
    jobs: Sequence[_Job], tuner: _Tuner, identity: str, out_dir: Path, seeds: Sequence[int]
) -> Iterator[GlueResult]:
    facts = [identity, tuner.bos_id, hashlib.sha256(tuner.tokenizer.to_str().encode()).hexdigest()]
    out_dir.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        results: dict[str, list[SeedResult]] = {name: [] for name in job.gold}
        for seed in seeds:
            keys = {name: job.key(name, seed, facts) for name in job.gold}
            paths = {name: out_dir / f"{name}-seed{seed}.json" for name in job.gold}
            kept = {name: _kept(paths[name], keys[name]) for name in job.gold}
            done = {name: result for name, result in kept.items() if result is not None}
            if len(done) < len(job.gold):
                done = tuner.run(job, seed)
                for name, result in done.items():
                    write_json(paths[name], {"key": keys[name], **_as_json(job.result(name, [result]))})
            for name, result in done.items():
                results[name].append(result)
        for name in job.gold:
            yield job.result(name, results[name])


def _as_json(result: GlueResult) -> dict[str, Any]:
    return {**vars(result), "settings": result.settings.model_dump(), "seeds": [asdict(seed) for seed in result.seeds]}


def _kept(path: Path, key: str) -> SeedResult | None:
    """What an earlier call left in ``path``, if it is of the same ``key``."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.get("key") != key:
        return None
    seed = values["seeds"][0]
    return SeedResult(**{**seed, "epochs": [Epoch(**epoch) for epoch in seed["epochs"]]})
