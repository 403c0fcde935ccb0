"""Searches on a real local Ray: early stops, failures, kills, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hgrnx.config import load_recipe
from hgrnx.config.spaces import SearchPlan, load_space, plan_search
from hgrnx.errors import Terminated, UserError
from hgrnx.launch.jobs import run_job
from hgrnx.launch.tune import SearchResult, run_search
from hgrnx.paths import Places, resolve_places
from hgrnx.search.trials import Trial, TrialRecord
from hgrnx.training.checkpoint import last_saved_step

pytestmark = [pytest.mark.ray, pytest.mark.slow]
METRIC = "dev/bits_per_byte"
RATE = "training.learning_rate"
SPACE = """
recipe: RECIPE
fixed: {twin: false, launch.engine: torch}
parameters:
  training.learning_rate: {kind: choice, options: RATES}
search: grid
grace_period: 0.25
reduction_factor: 2
budget: {trials: 4}
"""


def make_plan(folder: Path, recipe: Path, rates: str, *overrides: str) -> tuple[Path, SearchPlan]:
    path = folder / "space.yaml"
    path.write_text(SPACE.replace("RECIPE", str(recipe)).replace("RATES", rates), encoding="utf-8")
    return path, plan_search(load_space(str(path)), overrides=overrides)


def steps(run_dir: Path) -> list[int]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record["step"] for record in map(json.loads, lines) if "train/loss" in record]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return resolve_places(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def plan(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchPlan:
    # Good; hopeless, so that it is stopped; without bounds, so that it ends in NaN.
    return make_plan(tmp_path_factory.mktemp("space"), tiny_path, "[5e-3, 1e-7, 1e+39]")[1]


@pytest.fixture(scope="module")
def search(plan: SearchPlan, places: Places, local_ray: None) -> SearchResult:
    return run_search(plan, places)


def trials_of(search: SearchResult) -> list[Trial]:
    return TrialRecord(search.folder / "trials").trials


def test_trials_finish_are_stopped_and_fail(search: SearchResult, places: Places) -> None:
    good, hopeless, unbounded = trials_of(search)
    assert [good.status, hopeless.status, unbounded.status] == ["finished", "stopped", "failed"]
    assert "training loss is nan" in (unbounded.reason or "")
    assert steps(places.run_dir(good.run))[-1] == 24
    stopped_at = steps(places.run_dir(hopeless.run))[-1]
    assert 6 <= stopped_at <= 8 and not (places.run_dir(hopeless.run) / "result.json").exists()
    assert len(hopeless.points) == 1 and hopeless.points[0][METRIC] > good.points[0][METRIC]
    assert good.memory_mb is not None and good.memory_mb > 50
    assert good.seconds > good.values["seconds"]
    assert search.best == good


def test_the_workers_places_are_given_back(search: SearchResult) -> None:
    import ray

    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 2


def test_mlflow_has_one_tree(search: SearchResult, places: Places) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(places.mlflow_uri)
    parent = client.get_run(json.loads((search.folder / "mlflow.json").read_text())["run_id"])
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = {run.info.run_name: run for run in client.search_runs([parent.info.experiment_id], query)}
    trials = trials_of(search)
    assert {trial.run for trial in trials} < children.keys()
    assert [children[trial.run].info.status for trial in trials] == ["FINISHED", "KILLED", "FAILED"]
    assert children[trials[0].run].data.params[RATE] == "0.005"
    assert children[trials[0].run].data.metrics[METRIC] == trials[0].values[METRIC]
    assert METRIC in children[trials[1].run].data.metrics  # the curve until it was stopped
    assert parent.data.metrics["trials/stopped"] == 1 and parent.info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {"best.yaml", "trials.json", "figures"}


def test_the_same_command_runs_nothing_again(search: SearchResult, plan: SearchPlan, places: Places) -> None:
    before = {path: path.stat().st_mtime_ns for path in places.runs.glob("*/metrics.jsonl")}
    assert run_search(plan, places) == search
    assert before == {path: path.stat().st_mtime_ns for path in places.runs.glob("*/metrics.jsonl")}


def test_best_recipe_gives_the_trials_score_again(search: SearchResult, places: Places) -> None:
    recipe = load_recipe(str(search.folder / "best.yaml"))
    finished_before = run_job(recipe, places)
    assert finished_before.stages["student"].name == search.best.run
    run_job(recipe, places, fresh=True)
    final = json.loads((places.run_dir(search.best.run) / "eval" / "final.json").read_text())
    assert final["metrics"][METRIC] == search.best.values[METRIC]


def test_all_failing_ends_the_search(search: SearchResult, tiny_path: Path, tmp_path: Path, places: Places) -> None:
    path, _ = make_plan(tmp_path, tiny_path, "[4096, 8192, 16384]")
    path.write_text(path.read_text().replace(RATE, "training.seq_len"))
    with pytest.raises(UserError, match="no trial reached its end. 1 of 3: .*fewer than one batch"):
        run_search(plan_search(load_space(str(path))), places)


def test_sigterm_ends_the_search_after_a_checkpoint(
    search: SearchResult, tiny_path: Path, tmp_path: Path, places: Places
) -> None:
    teacher = next(places.runs.glob("tiny-teacher-*")).name
    overrides = ("training.duration=100000 steps", "training.checkpoint_every=90%", "launch.num_workers=1")
    plan = make_plan(
        tmp_path, tiny_path, "[4.5e-3, 4.6e-3]", "teacher=null", f"distill.teachers=[{teacher}]", *overrides
    )[1]
    before = set(places.runs.iterdir())

    def begun() -> list[Path]:
        return [run for run in set(places.runs.iterdir()) - before if (run / "metrics.jsonl").is_file()]

    def stop() -> None:
        deadline = time.monotonic() + 120
        while not any(len(steps(run)) > 2 for run in begun()) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Terminated, match=r"The search was stopped by SIGTERM\. The same command goes on"):
        run_search(plan, places)
    stopper.join()
    (run,) = begun()
    assert last_saved_step(run / "checkpoints") > 2
    folder = next(run for run in set(places.runs.iterdir()) - before if (run / "trials").is_dir())
    (trial,) = TrialRecord(folder / "trials")
    assert trial.run == run.name and trial.status == "running" and trial.seconds > 0
    assert not (folder / "ray").exists()


@pytest.mark.long
def test_the_teachers_signal_is_stored_once_for_all_trials(
    search: SearchResult, tiny_path: Path, tmp_path: Path, places: Places
) -> None:
    path, _ = make_plan(tmp_path, tiny_path, "[4e-3, 3e-3]")
    plan = plan_search(load_space(str(path), {"budget": {"trials": 1}}), overrides=["distill.top_k=16"])
    found = run_search(plan, places)
    facts = json.loads((found.folder / "search.json").read_text())
    assert found.best.status == "finished" and facts["live_ratio"] > 0 and facts["signal_seconds"] > 0
    assert len(list(places.signals.glob("tiny-teacher-*-top16-*/*.bin"))) == 1
    assert not list(places.runs.glob("*-live"))
    assert "times as long, as measured" in (found.folder / "summary.md").read_text()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `hgrnx tune`; what is left of it at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: str) -> subprocess.Popen[str]:
        started.append(start_tune(*arguments))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.wait()


def start_tune(*arguments: str) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HGRNX", "MLFLOW", "RAY_ADDRESS"))}
    command = [sys.executable, "-m", "hgrnx.cli", "tune", *arguments]
    # A cluster of its own, as a person's: the tests' is another process's.
    return subprocess.Popen(command, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 400) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, process.stdout and process.stdout.read()[-3000:]
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
    return found


@pytest.mark.long
def test_kill_of_the_driver_and_then_of_a_worker(
    start: Callable[..., subprocess.Popen[str]], tiny_path: Path, tmp_path: Path
) -> None:
    space, _ = make_plan(tmp_path, tiny_path, "[5e-3, 4.9e-3, 1e-7]")
    space.write_text(space.read_text().replace("{twin: false", "{launch.num_workers: 1, twin: false"))
    home = tmp_path / "home"
    runs = home / "runs"

    def record() -> list[Trial]:
        folders = list(runs.glob("*-search-*/trials"))
        return TrialRecord(folders[0]).trials if folders else []

    def second_has_a_checkpoint() -> bool:
        trials = record()
        return len(trials) > 1 and len(list((runs / trials[1].run / "checkpoints").glob("step-*[0-9]"))) > 0

    process = start("--space", str(space), "--home", str(home))
    wait_for(second_has_a_checkpoint, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    # Ray's own agents look now and then whether their node is still there.
    assert not [process for process in alive if not process.name().endswith("Agent")]
    first, second = record()[:2]  # one worker each: from the second on two run at once
    assert (first.status, second.status) == ("finished", "running")
    kept = (runs / first.run / "metrics.jsonl").stat().st_mtime_ns
    points = list(second.points)

    process = start("--resume", "--home", str(home))

    def worker() -> psutil.Process | None:
        children = psutil.Process(process.pid).children(recursive=True)
        return next((child for child in children if "RayTrainWorker" in _title(child)), None)

    wait_for(worker, process).kill()
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output[-3000:]
    assert "to be continued" in output
    trials = record()
    assert [trial.number for trial in trials] == [0, 1, 2] and len({trial.run for trial in trials}) == 3
    assert trials[0].status == "finished" and trials[1].status in ("finished", "stopped")
    assert trials[2].status == "stopped"  # judged against what was known before the kill
    assert (runs / first.run / "metrics.jsonl").stat().st_mtime_ns == kept
    assert trials[1].points[: len(points)] == points
    for trial in trials:
        seen = steps(runs / trial.run)
        assert seen == list(range(1, len(seen) + 1))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
