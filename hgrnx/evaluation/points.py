"""Points of a learning curve: the benchmark scores of a run's weights at one step.

``eval/points/step-00000120/`` of a run has the files that ``hgrnx eval`` writes, of the weights after 120 steps.
``task-scores.jsonl`` has their metrics, a line a point in the order of steps; it is made from them anew whenever one
is added, so that no point is ever in it twice.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hgrnx.config import EvaluationConfig
from hgrnx.config.best import averaged, metric_names, unknown
from hgrnx.data.benchmarks import read_minimal_pairs
from hgrnx.errors import UserError
from hgrnx.evaluation.catalogue import plan_tasks
from hgrnx.evaluation.files import write_whole
from hgrnx.evaluation.results import read_scores, run_task, save_results, task_metrics, weights_hash
from hgrnx.evaluation.scorer import Scorer
from hgrnx.evaluation.shares import finish_subtask
from hgrnx.evaluation.task import Task
from hgrnx.models import LanguageModel

CURVE = "task-scores.jsonl"
"""In a run folder: one JSON object a line, with ``step``, ``time``, ``words`` and ``tasks/...`` metrics."""

_POINTS = Path("eval") / "points"
_STEP = re.compile(r"step-(\d{8,})")


def zero_shot_tasks(config: EvaluationConfig) -> list[Task]:
    """The tasks that are to be scored while the model learns, with their items.

    Raises:
        UserError: with all problems at once: unknown tasks, tasks to fine-tune on, files missing or damaged.
    """
    if not config.tasks:
        return []
    plan = plan_tasks(config.tasks, Path(config.data).expanduser() if config.data else None)
    if plan.glue:
        raise UserError(
            f"evaluation.tasks: {', '.join(plan.glue)} must be fine-tuned on, which is not done while the model "
            "learns. Leave them out, and ask for them afterwards: hgrnx eval RUN --tasks glue"
        )
    return plan.tasks


def check_best(config: EvaluationConfig, pairs_dir: Path | None, tasks: Sequence[Task]) -> None:
    """Refuse ``evaluation.best`` where the metric will not be there, now that the data are known.

    Args:
        pairs_dir: the dataset's own minimal pairs, used where ``config`` names none.
        tasks: of :func:`zero_shot_tasks`.

    Raises:
        UserError: names the nearest metrics.
    """
    if config.best is None:
        return
    section, _, rest = config.best.partition("/")
    known = metric_names(config.tasks)
    if section == "pairs":
        folder = Path(config.minimal_pairs) if config.minimal_pairs else pairs_dir
        if folder is None:
            raise UserError(
                f"evaluation.best={config.best}: there are no minimal pairs. Name evaluation.minimal_pairs."
            )
        groups = {pair.phenomenon for pairs in read_minimal_pairs(folder).values() for pair in pairs[:1]}
        known += [f"pairs/{group}/accuracy" for group in sorted(groups)]
    elif section == "tasks":
        for task in tasks:
            if task.name == rest.partition("/")[0]:
                known += _names_of(task)
    if config.best not in known:
        raise UserError(f"evaluation.best: {unknown(config.best, known)}")


def point_folder(run_dir: Path, step: int) -> Path:
    """Where the scores of the weights after ``step`` steps are kept."""
    return run_dir / _POINTS / f"step-{step:08d}"


def score_point(
    model: LanguageModel,
    tokenizer: Any,
    bos_id: int,
    tasks: Sequence[Task],
    run_dir: Path,
    step: int,
    words: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> None:
    """Score a model on ``tasks`` and keep the scores as the point of ``step``; every rank calls it.

    What was asked of the same weights before is not asked again, whole tasks or single subtasks.

    Args:
        model: in evaluation mode.
        words: words seen.
        rank, world_size: this process asks every ``world_size``-th subtask.
        gather: called on every rank with an object; returns the objects of all ranks. It is called after every
            subtask, so that no rank waits longer than for one.

    Raises:
        UserError: on every rank: a score is no number, or the results cannot be written.
    """
    folder = point_folder(run_dir, step)
    weights = weights_hash(model)
    facts = {"model": run_dir.name, "step": step, "words": words, "weights": weights, "precision": "fp32"}
    missing = gather(_missing(folder, facts, tasks))[0]  # as rank 0 sees it
    kept = folder / "finished" / weights[:16]
    scorer = Scorer(model, tokenizer, bos_id)
    wanted = [task for task in tasks if task.name in missing]
    asked = [(task, subtask) for task in wanted for subtask in task.subtasks]
    for start in range(0, len(asked), world_size):
        problem = None
        try:
            for task, subtask in asked[start : start + world_size][rank : rank + 1]:
                finish_subtask(task, subtask, scorer, kept)
        except UserError as error:
            problem = str(error)
        for found in gather(problem):
            if found is not None:
                raise UserError(f"The weights of step {step}: {found}")
    if rank == 0 and wanted:
        save_results(folder, {task.name: run_task(task, scorer, kept) for task in wanted}, facts)
        shutil.rmtree(folder / "finished", ignore_errors=True)


def point_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a point's ``tasks.json``: ``tasks/blimp/accuracy``, ``tasks/mean/accuracy``, ..."""
    scored = {task: tables["overall"] for task, tables in content["tasks"].items()}
    metrics = {f"tasks/{name}": value for name, value in task_metrics({**content, "macro": None}).items()}
    rows = [scored[task] for task in averaged(list(scored))]
    if len(rows) > 1:
        for key in ("accuracy", "accuracy_ties_half"):
            metrics[f"tasks/mean/{key}"] = math.fsum(row[key] for row in rows) / len(rows)
        metrics["tasks/mean/stderr"] = math.sqrt(math.fsum(row["stderr"] ** 2 for row in rows)) / len(rows)
    return metrics


def read_point(run_dir: Path, step: int) -> dict[str, float]:
    """The metrics of the point of ``step``, as :func:`score_point` left them; none where it is not there."""
    content = read_scores(point_folder(run_dir, step))
    return point_metrics(content) if content is not None else {}


def write_curve(run_dir: Path) -> None:
    """Make ``task-scores.jsonl`` of all points that there are."""
    folder = run_dir / _POINTS
    lines = []
    for name in sorted(path.name for path in folder.iterdir() if _STEP.fullmatch(path.name)) if folder.is_dir() else []:
        content = read_scores(folder / name)
        if content is not None:
            # The file's time, and not now: a point that is sent to MLflow twice must be the same point.
            time = round((folder / name / "tasks.json").stat().st_mtime, 3)
            record = {"step": content["step"], "time": time, "words": content["words"], **point_metrics(content)}
            lines.append(json.dumps(record) + "\n")
    if lines or (run_dir / CURVE).exists():
        write_whole(run_dir / CURVE, "".join(lines).encode())


def drop_points(run_dir: Path, after: int) -> None:
    """Forget the points of the steps after ``after``: the run goes on without the weights they were scored of."""
    folder = run_dir / _POINTS
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        match = _STEP.fullmatch(path.name)
        if match and int(match[1]) > after:
            shutil.rmtree(path, ignore_errors=True)
    write_curve(run_dir)


def _missing(folder: Path, facts: Mapping[str, Any], tasks: Sequence[Task]) -> list[str]:
    before = read_scores(folder)
    if before is None or any(before.get(key) != value for key, value in facts.items()):
        return [task.name for task in tasks]
    return [task.name for task in tasks if task.name not in before["tasks"]]


class _Mute:
    """Scores everything alike: for the names of a task's metrics."""

    def strings(self, texts: Sequence[str], *, prefix: str = " ") -> np.ndarray:
        return np.zeros(len(texts))

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return np.zeros(len(pairs))

    def token_counts(self, texts: Sequence[str], *, prefix: str = " ") -> np.ndarray:
        return np.ones(len(texts), dtype=np.int64)


def _names_of(task: Task) -> list[str]:
    score = task.summarise({subtask: task.score(subtask, _Mute()) for subtask in task.subtasks})
    names = task_metrics({"tasks": {task.name: score.as_dict()}, "macro": None})
    return [f"tasks/{name}" for name in names if name.endswith(("/accuracy", "/accuracy_ties_half"))]
