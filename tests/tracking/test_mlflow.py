"""Runs, metrics and artifacts in a real MLflow on SQLite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from hgrnx.errors import UserError
from hgrnx.tracking import CompositeTracker, JsonlTracker
from hgrnx.tracking import mlflow as tracking
from hgrnx.tracking.publisher import STATE_FILE
from hgrnx.tracking.store_check import sqlite_path


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(item.step, item.value) for item in tracking.connect(uri).get_metric_history(run_id, key)]


def get(uri: str, run_id: str) -> Any:
    return tracking.connect(uri).get_run(run_id)


def test_a_run_has_its_parent_parameters_tags_and_dataset(
    uri: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # MLflow's own start_run would take this one
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    job = tracking.start_run(uri, "exp", "job", params={})
    run_id = tracking.start_run(
        uri,
        "exp",
        "student",
        params={f"section.key{index}": index for index in range(230)} | {"long": "x" * 9_000},
        tags={"folder": run_dir},
        parent_id=job,
        dataset={"name": "demo", "hash": "ab" * 32, "source": "/data/demo", "profile": {"words": 7}},
        run_dir=run_dir,
    )
    run = get(uri, run_id)
    assert run_id not in {job, "0" * 32}
    assert (run.info.run_name, run.info.status) == ("student", "RUNNING")
    assert run.data.tags["mlflow.parentRunId"] == job
    assert run.data.tags["folder"] == str(run_dir)
    assert len(run.data.params) == 231
    assert run.data.params["section.key229"] == "229"
    assert len(run.data.params["long"]) == 6_000
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("demo", ("ab" * 32)[:36])
    assert json.loads(used.dataset.source) == {"uri": "/data/demo"}
    assert tracking.stored_run_id(run_dir) == run_id


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(uri: str, run_dir: Path) -> None:
    dataset = {"name": "demo", "hash": "ab"}
    first = tracking.start_run(uri, "exp", "x", params={"a": 1, "b": 2}, dataset=dataset, run_dir=run_dir)
    tracking.finish_run(uri, first, "FAILED")
    params = {"a": 1, "b": 3, "c": 4}
    assert tracking.start_run(uri, "exp", "x", params=params, dataset=dataset, run_dir=run_dir) == first
    run = get(uri, first)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"a": "1", "b": "2", "c": "4"}
    assert run.data.tags["resumed.b"] == "3"
    assert len(run.inputs.dataset_inputs) == 1
    tracking.finish_run(uri, first)
    assert get(uri, first).info.status == "FINISHED"


def test_a_run_that_is_gone_from_the_store_is_begun_anew(uri: str, run_dir: Path) -> None:
    JsonlTracker(run_dir / "metrics.jsonl").log(1, {"loss": 1.0})
    first = tracking.start_run(uri, "exp", "x", params={}, run_dir=run_dir)
    assert tracking.replay(uri, first, run_dir) == 0
    tracking.connect(uri).delete_run(first)
    second = tracking.start_run(uri, "exp", "x", params={}, run_dir=run_dir)
    assert second != first
    assert tracking.replay(uri, second, run_dir) == 0
    assert history(uri, second, "loss") == [(1, 1.0)]


def test_artifacts_lie_beside_the_database_and_nothing_in_the_working_directory(uri: str, run_dir: Path) -> None:
    run_id = tracking.start_run(uri, "exp", "x", params={})
    (run_dir / "plot.png").write_bytes(b"png")
    (run_dir / "note.txt").write_text("hello")
    tracking.log_figure(uri, run_id, run_dir / "plot.png")
    tracking.log_artifacts(uri, run_id, [run_dir / "note.txt"])
    tracking.log_artifact(uri, run_id, run_dir, "all")
    database = sqlite_path(uri)
    assert database is not None
    place = database.parent / "mlflow-artifacts" / run_id / "artifacts"
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert files == {"figures/plot.png", "note.txt", "all/plot.png", "all/note.txt"}
    assert os.listdir() == []


def test_a_table_logged_again_replaces_the_old_one(uri: str, tmp_path: Path) -> None:
    run_id = tracking.start_run(uri, "exp", "x", params={})
    tracking.log_table(uri, run_id, [{"group": "a", "score": 0.5}], "eval/groups.json")
    rows = [{"group": "a", "score": 0.6}, {"group": "b", "score": None, "pairs": 3}]
    tracking.log_table(uri, run_id, rows, "eval/groups.json")
    path = tracking.connect(uri).download_artifacts(run_id, "eval/groups.json", str(tmp_path))
    table = json.loads(Path(path).read_text())
    assert table == {"columns": ["group", "score", "pairs"], "data": [["a", 0.6, None], ["b", None, 3]]}
    tags = get(uri, run_id).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "eval/groups.json", "type": "table"}]


def test_single_metrics_and_tags(uri: str) -> None:
    run_id = tracking.start_run(uri, "exp", "x", params={})
    tracking.log_metrics(uri, run_id, {"student/pairs/what? (odd) name//x/accuracy": 0.5, "b": float("nan")})
    tracking.set_tags(uri, run_id, {"teacher.run": 3, "long": "y" * 9_000})
    data = get(uri, run_id).data
    assert data.metrics["student/pairs/what_ _odd_ name/x/accuracy"] == 0.5
    assert data.metrics["b"] != data.metrics["b"]
    assert data.tags["teacher.run"] == "3"


def test_metrics_follow_the_file(uri: str, run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    run_id = tracking.start_run(uri, "exp", "x", params={}, run_dir=run_dir)
    tracker = CompositeTracker([JsonlTracker(path), tracking.MlflowPublisher(uri, run_id, path)])
    for step in range(1, 601):
        tracker.log(step, {"train/loss": 1 / step, "train/learning_rate": 0.1, "words": 10 * step})
    tracker.durable(500)
    tracker.log(600, {"pairs/accuracy": 0.7, "words": 6_000})
    assert tracker.close(final=True, timeout=60) == 0
    assert history(uri, run_id, "train/loss") == [(step, 1 / step) for step in range(1, 601)]
    assert history(uri, run_id, "words_seen") == [(step, 10.0 * step) for step in range(1, 601)]
    assert history(uri, run_id, "pairs/accuracy") == [(600, 0.7)]


def test_a_crash_and_its_replay_record_each_step_once(uri: str, run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    run_id = tracking.start_run(uri, "exp", "x", params={}, run_dir=run_dir)
    tracker = CompositeTracker([JsonlTracker(path), tracking.MlflowPublisher(uri, run_id, path)])
    for step in range(1, 8):
        tracker.log(step, {"loss": float(step)})
    tracker.durable(4)
    assert tracker.close(final=False, timeout=60) == 0  # died at step 7
    tracker = CompositeTracker([JsonlTracker(path, 4), tracking.MlflowPublisher(uri, run_id, path, 4)])
    for step in range(5, 11):
        tracker.log(step, {"loss": float(step)})
    assert tracker.close(final=True, timeout=60) == 0
    expected = [(step, float(step)) for step in range(1, 11)]
    assert history(uri, run_id, "loss") == expected
    (run_dir / STATE_FILE).unlink()  # even without knowing how far it got
    assert tracking.replay(uri, run_id, run_dir) == 0
    assert history(uri, run_id, "loss") == expected


def test_a_server_that_is_away_stops_nothing_and_is_caught_up_later(uri: str, run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    run_id = tracking.start_run(uri, "exp", "x", params={}, run_dir=run_dir)
    away = "http://127.0.0.1:1"  # nothing listens there
    tracker = CompositeTracker([JsonlTracker(path), tracking.MlflowPublisher(away, run_id, path)])
    took = []
    for step in range(1, 201):
        started = time.perf_counter()
        tracker.log(step, {"loss": 1.0})
        took.append(time.perf_counter() - started)
    tracker.durable(200)
    started = time.perf_counter()
    assert tracker.close(final=True, timeout=0.2) == 200
    assert time.perf_counter() - started < 5
    assert median(took) < 0.05  # waiting for the store would take seconds
    assert tracking.replay(away, run_id, run_dir) == 200
    assert tracking.replay(uri, run_id, run_dir) == 0
    assert len(history(uri, run_id, "loss")) == 200


def test_a_deleted_experiment_is_named(uri: str) -> None:
    run_id = tracking.start_run(uri, "exp", "x", params={})
    tracking.connect(uri).delete_experiment(get(uri, run_id).info.experiment_id)
    with pytest.raises(UserError, match=r"'exp' was deleted.*mlflow experiments restore"):
        tracking.start_run(uri, "exp", "x", params={})


def test_what_the_store_refuses_is_one_line(uri: str) -> None:
    with pytest.raises(UserError, match=r"^The MLflow store .* can't be used: [^\n]*\.$"):
        tracking.finish_run(uri, "f" * 32)
    with pytest.raises(UserError, match=r"http://127.0.0.1:1 can't be reached: .*Connection refused"):
        tracking.finish_run("http://127.0.0.1:1", "f" * 32)


FOUR_AT_ONCE = """
import os, sys
from hgrnx.tracking.mlflow import init_store, load, log_metrics, start_run
load()  # once: importing it takes longer than all the rest
start, release = os.pipe()
children = []
for _ in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        os.close(release)
        os.read(start, 1)  # until all are there
        init_store(sys.argv[1])
        run = start_run(sys.argv[1], "exp", "x", params={"a": 1})
        for step in range(5):
            log_metrics(sys.argv[1], run, {"loss": 1.0}, step)
        os._exit(0)
os.close(release)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_four_processes_at_once_set_up_a_fresh_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'deep' / 'mlflow.db'}"
    done = subprocess.run([sys.executable, "-c", FOUR_AT_ONCE, uri], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (experiment,) = [item for item in tracking.connect(uri).search_experiments() if item.name == "exp"]
    assert len(tracking.connect(uri).search_runs([experiment.experiment_id])) == 4
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"mlflow.db", "mlflow.db.lock"}
