"""The stages of a job, planned without running any."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hgrnx.config import DistillRecipe, load_recipe, run_name
from hgrnx.launch.jobs import job_stages


def test_each_generation_of_students_learns_from_the_one_before(tmp_path: Path) -> None:
    dataset: Any = SimpleNamespace(hash="0", tokenizer_hash="1")
    recipe = load_recipe("demo", ["distill.generations=3"])
    assert isinstance(recipe, DistillRecipe)
    stages = job_stages(recipe, dataset, tmp_path)
    assert list(stages) == ["teacher", "student", "student-2", "student-3", "twin"]
    for label, before in (("student", "teacher"), ("student-2", "student"), ("student-3", "student-2")):
        distill = stages[label].distill
        assert distill is not None and distill.teachers == (run_name(stages[before], "0"),)
    # The first of them is the student of the job without generations: a finished one is not run again.
    alone = job_stages(load_recipe("demo"), dataset, tmp_path)
    assert [run_name(alone[label], "0") for label in alone] == [run_name(stages[label], "0") for label in alone]
