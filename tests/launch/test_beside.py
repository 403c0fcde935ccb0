"""Benchmark scores beside a training on a real local Ray: a killed evaluator, weights without scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from eval_data import write_eval_data

from hgrnx.config import AnyRecipe, DistillRecipe, Recipe
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError
from hgrnx.evaluation.points import CURVE
from hgrnx.launch import beside
from hgrnx.launch.beside import BesideScorer, has_room_beside
from hgrnx.launch.jobs import run_job
from hgrnx.paths import Places, resolve_places
from hgrnx.training.checkpoint import load_weights
from hgrnx.training.run import run_training
from hgrnx.training.snapshots import Snapshots

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
TASKS = ("blimp", "supplement", "ewok")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_data(tmp_path_factory.mktemp("eval"), items=12)


def recipe(tiny: AnyRecipe, data: Path, **launch: Any) -> Recipe:
    assert isinstance(tiny, DistillRecipe)
    teacher = tiny.teacher_recipe()
    assert teacher is not None
    changes = {"tasks": TASKS, "data": str(data), "tasks_every": "8 steps", "best": "tasks/mean/accuracy_ties_half"}
    return teacher.model_copy(
        update={
            "evaluation": teacher.evaluation.model_copy(update=changes),
            "launch": teacher.launch.model_copy(update={"engine": "torch", "num_workers": 1, **launch}),
        }
    )


def points(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / CURVE).read_text().splitlines()]


def evaluators() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::score")]


@pytest.mark.long
def test_a_killed_evaluator_loses_nothing(tiny: AnyRecipe, data: Path, tmp_path: Path) -> None:
    chosen, places = recipe(tiny, data), resolve_places(tmp_path / "home")
    assert has_room_beside(chosen.launch)
    killed: list[str] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            found = sorted(places.runs.glob("*/eval/points/*/finished/*/blimp/*.gz"))
            for process in evaluators() if len(found) > 3 else []:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(found[0].parts[-5])
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    result = run_job(chosen, places)
    thread.join()
    assert killed == ["step-00000008"]
    (run_dir,) = result.stages.values()
    assert [point["step"] for point in points(run_dir)] == [8, 16, 24]
    assert not Snapshots(run_dir).waiting() and not Snapshots(run_dir).left_out()
    values = {point["step"]: point["tasks/mean/accuracy_ties_half"] for point in points(run_dir)}
    facts = json.loads((run_dir / "best" / "best.json").read_text())
    assert facts["value"] == max(values.values()) == values[facts["step"]]
    assert load_weights(run_dir / "best" / facts["weights"])
    for folder in (run_dir, result.folder):
        assert (folder / "dynamics.png").read_bytes()[:4] == b"\x89PNG"

    from mlflow.tracking import MlflowClient

    client = MlflowClient(places.mlflow_uri)
    run = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    history = client.get_metric_history(run, "tasks/blimp/accuracy")
    assert sorted((p.step, p.value) for p in history) == [
        (point["step"], point["tasks/blimp/accuracy"]) for point in points(run_dir)
    ]
    words = [point.step for point in client.get_metric_history(run, "words_seen")]
    assert len(words) == len(set(words))
    assert "figures/dynamics.png" in {item.path for item in client.list_artifacts(run, "figures")}


def test_without_room_the_workers_score_in_turn(tiny: AnyRecipe, data: Path, tmp_path: Path) -> None:
    chosen = recipe(tiny, data, num_workers=2)
    assert not has_room_beside(chosen.launch)
    result = run_job(chosen, resolve_places(tmp_path / "home"))
    (run_dir,) = result.stages.values()
    assert [point["step"] for point in points(run_dir)] == [8, 16, 24]
    assert not (run_dir / "snapshots").exists()


@pytest.fixture
def trained(tiny: AnyRecipe, data: Path, tmp_path: Path) -> tuple[Recipe, Path, Places]:
    """A run whose weights after 8, 16 and 24 steps wait for their scores."""
    places = resolve_places(tmp_path / "home")
    chosen = recipe(tiny, tmp_path / "benchmarks")
    shutil.copytree(data, tmp_path / "benchmarks")
    run_training(chosen, prepare(chosen.data, places.data), places.runs / "x", scored_beside=True)
    return chosen, places.runs / "x", places


def test_weights_that_cannot_be_scored_stay_until_they_can(
    trained: tuple[Recipe, Path, Places], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, run_dir, places = trained
    gone = tmp_path / "benchmarks" / "supplement_filtered" / "hypernym.jsonl"
    gone.unlink()
    scorer = BesideScorer(chosen, run_dir, places, None)
    scorer.finish()
    assert list(scorer.problems) == Snapshots(run_dir).waiting() == [8, 16, 24]
    said = capsys.readouterr().err
    assert "step 16 have no scores" in said and "lacks hypernym.jsonl" in said
    shutil.copy(data / "supplement_filtered" / "hypernym.jsonl", gone)
    again = BesideScorer(chosen, run_dir, places, None)
    again.finish()
    assert not again.problems and not Snapshots(run_dir).waiting()
    assert [point["step"] for point in points(run_dir)] == [8, 16, 24]


def test_processes_that_always_die_are_given_up(
    trained: tuple[Recipe, Path, Places],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen, run_dir, places = trained
    for step in (16, 24):
        Snapshots(run_dir).remove(step)
    (run_dir / "snapshots" / "left-out.jsonl").write_text('{"step": 12, "words": 1}\n')

    @ray.remote(max_retries=0)
    def die(recipe: Any, folder: str, step: int, environment: Any) -> None:
        with open(tmp_path / "deaths", "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(beside, "_score_snapshot", die)
    scorer = BesideScorer(chosen, run_dir, places, None)
    scorer.finish()
    said = capsys.readouterr().err
    assert "no scores for 1 of its points (steps 12)" in said
    assert (tmp_path / "deaths").read_text() == "xxx"
    assert "3 processes died" in scorer.problems[8] and Snapshots(run_dir).waiting() == [8]


def test_wrong_requests_are_refused_before_training(tiny: AnyRecipe, data: Path, tmp_path: Path) -> None:
    places = resolve_places(tmp_path / "home")
    chosen = recipe(tiny, data)
    for changes, message in (
        ({"tasks": ("blmp",), "best": None}, "Did you mean 'blimp'"),
        ({"data": str(tmp_path / "nowhere")}, "does not exist"),
        ({"best": "tasks/blimp/islands/accuracy"}, "did you mean .*tasks/blimp/island_effects/accuracy"),
    ):
        evaluation = chosen.evaluation.model_copy(update=changes)
        with pytest.raises(UserError, match=message):
            run_job(chosen.model_copy(update={"evaluation": evaluation}), places)
        assert not list(places.runs.glob("*"))
