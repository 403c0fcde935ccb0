"""Benchmark tasks on the weights that a run kept at its word milestones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from hgrnx.data.tokenizer import BOS
from hgrnx.evaluation.results import read_scores, run_task, save_results, weights_hash
from hgrnx.evaluation.scorer import Scorer
from hgrnx.evaluation.task import Task
from hgrnx.runs import open_folder
from hgrnx.training.checkpoint import read_meta
from hgrnx.training.session import MILESTONES


def score_milestones(
    run_dir: Path,
    tasks: Sequence[Task],
    say: Callable[[str], None],
    on_share: Callable[[], None] | None = None,
) -> None:
    """Score every milestone's weights; each leaves what ``hgrnx eval`` writes in ``eval/points/step-NNNNNNNN``.

    What was scored before is not asked again. ``on_share`` is called whenever some items are finished; an exception of
    it ends the call, and they are kept.
    """
    for folder in sorted((run_dir / MILESTONES).glob("chck_*"), key=lambda path: int(path.name[5:-1])):
        facts = read_meta(folder)
        out = run_dir / "eval" / "points" / f"step-{facts['step']:08d}"
        before = read_scores(out)
        if before is not None and {task.name for task in tasks} <= before["tasks"].keys():
            continue
        opened = open_folder(run_dir, folder)
        model = opened.model.to("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = opened.tokenizer()
        scorer = Scorer(model, tokenizer, tokenizer.token_to_id(BOS))
        results = {task.name: run_task(task, scorer, out / "finished", on_share) for task in tasks}
        weights = {"weights": weights_hash(opened.model), "precision": "fp32"}
        save_results(out, results, {"model": run_dir.name, "step": facts["step"], "words": facts["words"], **weights})
        shutil.rmtree(out / "finished", ignore_errors=True)
        say(folder.name)
