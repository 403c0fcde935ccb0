"""`hgrnx compare` of models that were scored on tasks."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hgrnx.cli import app
from hgrnx.errors import UserError
from hgrnx.evaluation.choices import Choices
from hgrnx.evaluation.results import run_task, save_results
from hgrnx.evaluation.task import ALL_ITEMS, TaskScore, unweighted
from hgrnx.launch.compare import compare_tasks
from hgrnx.paths import resolve_places
from hgrnx.report.paper import FINAL
from hgrnx.runs import evaluation_folder


class Made:
    """A task whose items are right with a chance."""

    def __init__(self, name: str, chance: float, seed: int, data: str = "d") -> None:
        self.name, self.chance, self.seed, self.data = name, chance, seed, data
        self.subtasks = ["one_thing", "other_thing"]

    def data_hash(self, subtask: str) -> str:
        return self.data

    def size(self, subtask: str) -> tuple[int, int]:
        return 400, 2

    def score(self, subtask: str, scorer: Any, items: slice = ALL_ITEMS) -> Choices:
        assert items == slice(0, 400)
        generator = np.random.default_rng([self.seed, self.subtasks.index(subtask)])
        right = generator.random(400) < self.chance
        return Choices(np.zeros(400, int), np.stack([right, ~right], -1)[None].astype(float))

    def summarise(self, results: Any) -> TaskScore:
        return unweighted(self.name, results, {name: name for name in self.subtasks})

    def texts(self, subtask: str) -> list[tuple[str, ...]]:
        return []


@pytest.fixture
def home(tmp_path: Path) -> Path:
    places = resolve_places(tmp_path / "home")
    for seed, (label, chance) in enumerate({"strong_one": 0.7, "weak_one": 0.6}.items()):
        folder = tmp_path / label
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        tasks = [Made("blimp", chance, seed), Made("ewok", 0.5, seed, data=label)]
        made = {task.name: run_task(task, None, tmp_path / "kept" / label) for task in tasks}  # type: ignore[arg-type]
        save_results(evaluation_folder(folder, places), made, {"model": label, "weights": label, "precision": "fp32"})
    return tmp_path


def compare(home: Path, *arguments: str) -> str:
    names = [str(home / "strong_one"), str(home / "weak_one")]
    done = CliRunner().invoke(app, ["compare", *names, "--home", str(home / "home"), *arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def test_table_has_the_papers_rows_ours_and_their_difference(home: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(compare(home, "--format", "csv"))))
    paper = [row for row in rows if row["source"].startswith("paper")]
    assert len(paper) == 2 * len(FINAL), "of the tasks that ours were scored on, and no others"
    assert ("BabyHGRN, distilled", "paper, 10M", "blimp", "72.1") in {
        (row["model"], row["source"], row["task"], row["value"]) for row in paper
    }
    kept = json.loads(
        (evaluation_folder(home / "strong_one", resolve_places(home / "home")) / "tasks.json").read_text()
    )
    assert float(scores_of(rows, "weak_one")["value"]) == pytest.approx(60, abs=5)
    wanted = 100 * kept["tasks"]["blimp"]["overall"]["accuracy"]
    first = scores_of(rows, "strong_one")
    assert float(first["value"]) == pytest.approx(wanted)
    (gap,) = [row for row in rows if row["kind"] == "difference"]
    assert (gap["model"], gap["other"], gap["task"]) == ("strong_one", "weak_one", "blimp")
    assert float(gap["value"]) == pytest.approx(float(first["value"]) - float(scores_of(rows, "weak_one")["value"]))
    assert float(gap["low"]) < float(gap["value"]) < float(gap["high"]) and float(gap["p"]) < 0.05
    assert int(gap["better"]) > int(gap["worse"])


def scores_of(rows: list[dict[str, str]], model: str) -> dict[str, str]:
    return next(row for row in rows if row["model"] == model and row["kind"] == "score" and row["task"] == "blimp")


def test_formats_hold_the_same(home: Path) -> None:
    text, markdown, latex = (compare(home, "--format", form) for form in ("text", "markdown", "latex"))
    for part in ("BabyLlama", "72.1", "McNemar"):
        assert all(part in shown for shown in (text, markdown, latex)), part
    for shown in (text, markdown):
        assert "strong_one − weak_one" in " ".join(shown.split()) and "not asked the same items of EWoK" in shown
        assert "mean of 4" not in shown, "nothing has all four"
    assert r"strong\_one" in latex and latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    for line in latex.splitlines():
        if line.endswith(r"\\"):
            assert line.count(" & ") in (3, 6)
        assert "_" not in line.replace(r"\_", "") or line.startswith("%")
    for line in markdown.splitlines():
        assert not line.startswith("|") or line.count("|") in (5, 8)


def test_the_mean_is_of_the_rows_own_cells(home: Path) -> None:
    folder = evaluation_folder(home / "strong_one", resolve_places(home / "home"))
    facts = {"model": "strong_one", "weights": "strong_one", "precision": "fp32"}
    more = {name: run_task(Made(name, 0.9, 5), None, home / "kept") for name in ("supplement", "glue")}  # type: ignore[arg-type]
    content = save_results(folder, more, facts)
    comparison = compare_tasks({"strong_one": folder})
    assert comparison is not None and comparison.tasks == ["blimp", "supplement", "ewok", "glue"]
    shown = compare(home, "--format", "markdown")
    line = next(line for line in shown.splitlines() if line.startswith("| strong_one | hgrnx"))
    assert line.split("|")[-2].strip().startswith(f"{100 * content['macro']['accuracy']:.1f} ±")
    distilled = next(line for line in shown.splitlines() if line.startswith("| BabyHGRN, distilled | paper, 10M"))
    assert distilled.split("|")[-2].strip() in {"61.9", "62.0"}, "61.95; the paper prints 63.3"


def test_without_tasks_there_is_no_latex(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    arguments = ["compare", str(tmp_path / "model"), "--home", str(tmp_path / "home")]
    done = CliRunner().invoke(app, [*arguments, "--format", "latex"])
    assert isinstance(done.exception, UserError) and "hgrnx eval RUN --tasks" in str(done.exception)
    done = CliRunner().invoke(app, [*arguments, "--format", "tex"])
    assert isinstance(done.exception, UserError) and "text, markdown, csv, latex" in str(done.exception)
    (evaluation := evaluation_folder(tmp_path / "model", resolve_places(tmp_path / "home"))).mkdir(parents=True)
    (evaluation / "tasks.json").write_text("{")
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UserError) and "can't be read" in str(done.exception)
