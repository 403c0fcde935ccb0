"""The whole job on a real local Ray with DeepSpeed: stages, resumption, a killed worker, MLflow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hgrnx.config import AnyRecipe, DistillRecipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.launch.jobs import JobResult, job_stages, run_job
from hgrnx.paths import Places, resolve_places
from hgrnx.training.checkpoint import latest_checkpoint, load_weights

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return resolve_places(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def job(tiny: AnyRecipe, places: Places) -> JobResult:
    return run_job(tiny, places)


def records(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[tuple[float, float]]:
    return [(record["step"], record["train/loss"]) for record in records(run_dir) if "train/loss" in record]


def weights(run_dir: Path) -> dict[str, object]:
    folder = latest_checkpoint(run_dir / "checkpoints")
    assert folder is not None
    return load_weights(folder)


def train_workers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::") and "RayTrainWorker" in " ".join(process.cmdline())
    ]


def test_stages_leave_complete_run_folders(job: JobResult) -> None:
    assert list(job.stages) == ["teacher", "student", "twin"]
    for run_dir in job.stages.values():
        for name in (
            "recipe.yaml",
            "environment.json",
            "ledger.json",
            "metrics.jsonl",
            "eval/final.json",
            "result.json",
        ):
            assert (run_dir / name).is_file(), name
        assert [step for step, _ in losses(run_dir)] == list(range(1, 25))
        assert not (run_dir / "ray").exists()
    assert "kl" in " ".join(records(job.stages["student"])[0])
    for name in ("summary.md", "curves.png", "phenomena.png"):
        assert (job.folder / name).stat().st_size > 100
    first = {label: losses(run_dir)[0][1] for label, run_dir in job.stages.items()}
    assert first["student"] != first["twin"]  # the same weights, another objective


def test_mlflow_has_nested_runs_with_curves_and_tables(job: JobResult, places: Places) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(places.mlflow_uri)
    parent_id = json.loads((job.folder / "mlflow.json").read_text())["run_id"]
    experiment = client.get_run(parent_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    names = {child.info.run_name for child in children}
    assert names == {*(folder.name for folder in job.stages.values()), f"{job.folder.name}-evaluation"}
    student = next(child for child in children if child.info.run_name == job.stages["student"].name)
    history = client.get_metric_history(student.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in sorted(history, key=lambda p: p.step)] == losses(
        job.stages["student"]
    )
    assert student.data.params["distill.temperature"] == "2.0" and student.info.status == "FINISHED"
    assert student.inputs.dataset_inputs[0].dataset.digest
    assert {item.path for item in client.list_artifacts(student.info.run_id)} >= {
        "recipe.yaml",
        "environment.json",
        "eval",
    }
    assert {item.path for item in client.list_artifacts(parent_id)} >= {"summary.md", "summary.json", "figures"}


def test_finished_stages_are_not_run_again(job: JobResult, tiny: AnyRecipe, places: Places) -> None:
    before = {label: (run_dir / "metrics.jsonl").stat().st_mtime_ns for label, run_dir in job.stages.items()}
    again = run_job(tiny, places)
    assert again == job
    assert before == {label: (d / "metrics.jsonl").stat().st_mtime_ns for label, d in again.stages.items()}


def test_a_stored_teacher_gives_the_same_student(job: JobResult, tiny: AnyRecipe, places: Places) -> None:
    """With every entry of the vocabulary stored; the teacher is not trained again."""
    assert isinstance(tiny, DistillRecipe)
    distill = tiny.distill.model_copy(update={"top_k": 400})
    stored = run_job(tiny.model_copy(update={"distill": distill, "twin": False}), places)
    assert stored.stages["teacher"] == job.stages["teacher"] and stored.stages["student"] != job.stages["student"]
    (folder,) = (path for path in places.signals.iterdir() if path.is_dir())
    assert folder.name.startswith(job.stages["teacher"].name)
    ours, live = (dict(losses(result.stages["student"])) for result in (stored, job))
    assert ours == pytest.approx(live, rel=1e-3)


def test_a_finished_run_is_scored_on_other_pairs_when_asked(
    job: JobResult, tiny: AnyRecipe, places: Places, tmp_path: Path
) -> None:
    pair = {"sentence_good": "The boy sees the dog.", "sentence_bad": "The boy see the dog.", "linguistics_term": "x"}
    (tmp_path / "only.jsonl").write_text(json.dumps(pair) + "\n")
    evaluation = tiny.evaluation.model_copy(update={"minimal_pairs": str(tmp_path)})
    run_job(tiny.model_copy(update={"evaluation": evaluation}), places)
    for run_dir in job.stages.values():
        final = json.loads((run_dir / "eval" / "final.json").read_text())
        assert [row["name"] for row in final["tables"]["files"]] == ["only"]


def test_killed_worker_is_replaced_and_changes_nothing(
    job: JobResult, tiny: AnyRecipe, places: Places, tmp_path: Path
) -> None:
    assert isinstance(tiny, DistillRecipe)
    recipe = tiny.teacher_recipe()
    assert recipe is not None
    # Slow enough to be hit in the middle: evaluation after every step.
    evaluation = recipe.evaluation.model_copy(update={"every": "1 steps"})
    recipe = recipe.model_copy(update={"evaluation": evaluation})
    disturbed = resolve_places(tmp_path / "home")
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            files = list((disturbed.runs).glob("tiny-teacher-*/metrics.jsonl"))
            if files and len(losses(files[0].parent)) >= 10:
                victim = train_workers()[-1]
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.pid)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    result = run_job(recipe, disturbed)
    thread.join()
    assert killed, "no worker was killed"
    run_dir = next(iter(result.stages.values()))
    assert losses(run_dir) == losses(job.stages["teacher"])
    mine, undisturbed = weights(run_dir), weights(job.stages["teacher"])
    assert all((mine[name] == undisturbed[name]).all() for name in undisturbed)


def test_error_in_a_worker_reaches_the_user_as_a_message(job: JobResult, tiny: AnyRecipe, places: Places) -> None:
    training = tiny.training.model_copy(update={"seq_len": 4096})
    with pytest.raises(UserError, match="one batch"):
        run_job(tiny.model_copy(update={"training": training}), places)


def test_missing_teacher_is_refused_before_training(job: JobResult, tiny: AnyRecipe, places: Places) -> None:
    assert isinstance(tiny, DistillRecipe)
    before = set(places.runs.iterdir())
    with pytest.raises(UserError, match="no teacher 'no-such-teacher'"):
        run_job(tiny.student_recipe(["no-such-teacher"]), places)
    assert set(places.runs.iterdir()) == before


def test_teachers_are_named_so_that_workers_find_them(
    job: JobResult, tiny: AnyRecipe, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(tiny, DistillRecipe)
    teacher = job.stages["teacher"]
    elsewhere = tmp_path / "copy"
    shutil.copytree(teacher, elsewhere)
    monkeypatch.chdir(tmp_path)
    dataset = PreparedDataset.open(Path(json.loads((teacher / "environment.json").read_text())["data"]))
    for given, wanted in ((teacher.name, teacher.name), (str(teacher), teacher.name), ("./copy", str(elsewhere))):
        (stage,) = job_stages(tiny.student_recipe([given]), dataset, places.runs).values()
        assert stage.distill is not None and stage.distill.teachers == (wanted,)


def test_too_large_for_the_cluster_is_refused_at_once(job: JobResult, tiny: AnyRecipe, places: Places) -> None:
    launch = tiny.launch.model_copy(update={"num_workers": 8})
    with pytest.raises(UserError, match="needs 8 CPUs .* the Ray cluster has 2"):
        run_job(tiny.model_copy(update={"launch": launch, "seed": 5}), places)


def test_broken_pairs_are_refused_before_training(tiny: AnyRecipe, places: Places, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"sentence_good": "a"}\n')
    evaluation = tiny.evaluation.model_copy(update={"minimal_pairs": str(tmp_path)})
    with pytest.raises(UserError, match="x.jsonl"):
        run_job(tiny.model_copy(update={"evaluation": evaluation}), places)


def test_mlflow_that_does_not_answer_is_refused_before_training(tiny: AnyRecipe, places: Places) -> None:
    away = replace(places, mlflow_uri="http://127.0.0.1:1")
    with pytest.raises(UserError, match="127.0.0.1:1"):
        run_job(tiny, away)
