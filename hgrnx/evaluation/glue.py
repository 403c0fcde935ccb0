"""Fine-tuning on (Super)GLUE as the BabyLM challenge of 2024 has it.

Texts, templates, classification head, hyperparameters and the choice of the best epoch are those of
``finetune_classification.py`` and ``finetune_model.sh`` in github.com/babylm/evaluation-pipeline-2024. What is
different: BOS before every row and a line break between two texts, which our models know from their training. The
pipeline leaves both to the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrnx.config import GlueConfig
from hgrnx.data.benchmark_items import GLUE_FIELDS
from hgrnx.data.folders import file_sha256, write_json
from hgrnx.errors import UserError
from hgrnx.evaluation.classifier import Classifier, encode_texts
from hgrnx.evaluation.finetune import Epoch, Labelled, finetune, predict
from hgrnx.evaluation.glue_jobs import GlueResult, Job, SeedResult, Tuning, glue_metric, plan_jobs, read_rows
from hgrnx.evaluation.metrics import count_table, score_table
from hgrnx.models import LanguageModel

SEED = 12
"""The pipeline's."""


@dataclass(frozen=True)
class GlueProgress:
    """How far a fine-tuning is."""

    task: str
    seed: int
    done: int
    total: int
    """Training rows seen, and to see unless it stops early; a row counts once an epoch. Equal when it is finished."""
    epochs: int
    """Epochs done."""
    score: float | None
    """What the best epoch is chosen by, after the last epoch done, between 0 and 1 (``mcc``: -1 and 1)."""


Tune = Callable[[Sequence[Tuning]], Iterable[tuple[Tuning, dict[str, SeedResult]]]]
"""Fine-tunes; gives each fine-tuning's results by task once, when it is finished, in any order."""


class Tuner:
    """Fine-tunes a model, without a memory of what was done before.

    Args:
        model_factory: gives the pretrained model anew, on any device; called once a fine-tuning.
        tokenizer, bos_id: a ``tokenizers.Tokenizer``, and the id of the token before every row.
    """

    def __init__(
        self,
        model_factory: Callable[[], LanguageModel],
        tokenizer: Any,
        bos_id: int,
        device: torch.device | str = "cpu",
        on_progress: Callable[[GlueProgress], None] | None = None,
    ) -> None:
        self.model_factory = model_factory
        self.tokenizer, self.bos_id = tokenizer, bos_id
        self.device = torch.device(device)
        self.on_progress = on_progress

    def tune(self, tunings: Sequence[Tuning]) -> Iterator[tuple[Tuning, dict[str, SeedResult]]]:
        """Fine-tune in this process, one after the other."""
        return ((tuning, self.run(tuning)) for tuning in tunings)

    def run(self, tuning: Tuning) -> dict[str, SeedResult]:
        """The results of the tasks of a job with one seed.

        Raises:
            UserError: a file is not what it was when the job was planned, or losses are no numbers.
        """
        job, seed = tuning
        config = job.config
        for path, digest in job.hashes.items():
            if not path.is_file() or file_sha256(path) != digest:
                raise UserError(
                    f"{path} is not the same on all machines, or changed meanwhile. Name with --data a folder that all "
                    "machines of the cluster have in common."
                )
        train = self._encoded(job, job.train_file, job.task, config.max_train_rows)
        valid = {name: self._encoded(job, path, name) for name, path in job.valid_files.items()}
        total = config.epochs * len(train.rows)

        def tell(done: int, total: int, epochs: list[Epoch]) -> None:
            if self.on_progress is not None:
                score = epochs[-1].score if epochs else None
                self.on_progress(GlueProgress(job.task, seed, done, total, len(epochs), score))

        classifier = Classifier(self.model_factory(), job.classes, torch.Generator().manual_seed(seed)).to(self.device)
        try:
            fit = finetune(
                classifier,
                train,
                valid[job.task],
                config,
                select_by=job.select_by,
                seed=seed,
                on_rows=lambda done, epochs: tell(done, total, epochs),
            )
            predictions = {
                name: (fit.predictions if name == job.task else predict(classifier, valid[name].rows, config)).tolist()
                for name in job.gold
            }
        except UserError as error:
            raise UserError(f"Fine-tuning on {job.task} with seed {seed}: {error}") from None
        seen = len(fit.epochs) * len(train.rows)
        tell(seen, seen, fit.epochs)
        return {
            name: _seed_result(name, seed, job.gold[name], classes, fit.best_epoch, fit.epochs)
            for name, classes in predictions.items()
        }

    def _encoded(self, job: Job, path: Path, task: str, count: int | None = None) -> Labelled:
        rows = read_rows(path, task, job.classes)[:count]
        tokens = encode_texts(
            self.tokenizer,
            self.bos_id,
            [texts for texts, _ in rows],
            max_length=job.config.max_length,
            separator=job.config.separator,
        )
        return Labelled(tokens, np.array([label for _, label in rows], dtype=np.int64))


class KeptTunings:
    """The folder of finished fine-tunings, ``TASK-seedN.json``.

    Args:
        identity: says which weights are fine-tuned, such as a checkpoint's digest.
        tokenizer, bos_id: see :class:`Tuner`.
    """

    def __init__(self, folder: Path, identity: str, tokenizer: Any, bos_id: int) -> None:
        self.folder = folder
        self._facts = [identity, bos_id, hashlib.sha256(tokenizer.to_str().encode()).hexdigest()]

    def read(self, tuning: Tuning) -> dict[str, SeedResult] | None:
        """What an earlier call kept, if files, settings, tokenizer and weights are the same."""
        found = {name: self._read(name, tuning) for name in tuning.job.gold}
        whole = {name: result for name, result in found.items() if result is not None}
        return whole if len(whole) == len(found) else None

    def write(self, tuning: Tuning, results: dict[str, SeedResult]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, result in results.items():
            content = {"key": self._key(name, tuning), **_as_json(tuning.job.result(name, [result]))}
            write_json(self.path(name, tuning.seed), content)

    def forget(self, tasks: Sequence[str]) -> None:
        """Remove what is kept of ``tasks``, of all seeds."""
        for task in tasks:
            for path in self.folder.glob(f"{task}-seed*.json"):
                path.unlink()

    def path(self, task: str, seed: int) -> Path:
        return self.folder / f"{task}-seed{seed}.json"

    def _key(self, task: str, tuning: Tuning) -> str:
        return tuning.job.key(task, tuning.seed, self._facts)

    def _read(self, task: str, tuning: Tuning) -> SeedResult | None:
        try:
            values = json.loads(self.path(task, tuning.seed).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(values, dict) or values.get("key") != self._key(task, tuning):
            return None
        seed = values["seeds"][0]
        return SeedResult(**{**seed, "epochs": [Epoch(**epoch) for epoch in seed["epochs"]]})


def run_glue(
    jobs: Sequence[Job], tune: Tune, kept: KeptTunings, seeds: Sequence[int] = (SEED,)
) -> Iterator[GlueResult]:
    """Fine-tune a fresh copy of a model for every job and seed; yields each task when it is finished.

    The valid rows also choose the best epoch (the challenge's rule); ``mnli-mm`` is scored with the model of ``mnli``.
    What is ``kept`` is not run again.

    Args:
        jobs: of :func:`~hgrnx.evaluation.glue_jobs.plan_jobs`.
        tune: :meth:`Tuner.tune`, or what does the same elsewhere.
        seeds: of the head's weights, the order of the rows, and dropout.

    Raises:
        UserError: files that have changed since, or losses that are no numbers.
    """
    tunings = [Tuning(job, seed) for job in jobs for seed in seeds]
    done = {(job.task, seed): kept.read(Tuning(job, seed)) for job, seed in tunings}
    given: set[str] = set()

    def finished() -> Iterator[GlueResult]:
        for job in jobs:
            results = [done[job.task, seed] for seed in seeds]
            if job.task not in given and None not in results:
                given.add(job.task)
                for name in job.gold:
                    yield job.result(name, [result[name] for result in results if result is not None])

    yield from finished()
    for tuning, results in tune([tuning for tuning in tunings if done[tuning.job.task, tuning.seed] is None]):
        kept.write(tuning, results)
        done[tuning.job.task, tuning.seed] = results
        yield from finished()


def kept_glue(
    folder: Path, without: Sequence[str], config: GlueConfig, kept: KeptTunings, seeds: Sequence[int]
) -> list[GlueResult]:
    """The tasks but those in ``without`` that earlier calls finished with all ``seeds`` and settings of ``config``."""
    found = []
    for name in GLUE_FIELDS:
        if name in without or not all(kept.path(name, seed).is_file() for seed in seeds):
            continue
        try:
            (job,) = plan_jobs(folder, [name], config)
        except UserError:  # its files are not there any more; the tasks that are asked for do not need them
            continue
        results = [kept.read(Tuning(job, seed)) for seed in seeds]
        if None not in results:
            found.append(job.result(name, [result[name] for result in results if result is not None]))
    return found


def _seed_result(
    task: str, seed: int, gold: list[int], predicted: list[int], best_epoch: int, epochs: list[Epoch]
) -> SeedResult:
    table = count_table(gold, predicted)
    score, stderr = score_table(glue_metric(task), table)
    return SeedResult(seed, score, stderr, score_table("accuracy", table)[0], best_epoch, epochs, predicted)


def _as_json(result: GlueResult) -> dict[str, Any]:
    return {**vars(result), "settings": result.settings.model_dump(), "seeds": [asdict(seed) for seed in result.seeds]}
