"""The ledger of real runs, trained in this process instead of on Ray, against the budget of a track."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hgrnx.config import AnyRecipe, load_recipe
from hgrnx.console import make_console
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.export import export_run
from hgrnx.launch import jobs
from hgrnx.launch.jobs import JobResult, run_job
from hgrnx.paths import Places, resolve_places
from hgrnx.runs import print_run
from hgrnx.training.run import run_training

RECIPE = """
name: {name}
data: {{track: {track}, source: {source}, vocab_size: 300, block_lines: 1}}
training: {{duration: 1 epoch, batch_size: 2, seq_len: 16, precision: fp32, log_every: 1, checkpoint_every: 100%}}
evaluation: {{every: 1 epoch, dev_documents: 2}}
launch: {{engine: torch}}
"""
MODEL = "{hidden_size: 32, num_hidden_layers: 1, expand_ratio: 16}"


@contextmanager
def _not_connected(places: Places) -> Iterator[None]:
    yield


def _train(recipe: Any, dataset: PreparedDataset, run_dir: Path, places: Places, **_: Any) -> None:
    assert (run_dir / "ledger.json").is_file()  # before training starts
    run_training(recipe, dataset, run_dir)


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "train_on_ray", _train)
        patch.setattr(jobs, "connected", _not_connected)
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return resolve_places(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts of 200 words, and a track that allows 300 words and three passes."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "track.yaml").write_text("name: small\nwords: 300\nmax_passes: 3\n")
    for name, word in (("one", "sun"), ("two", "moon")):
        (folder / name).mkdir()
        (folder / name / "a.train").write_text("".join(f"{word} {n} shines here\n" for n in range(50)))
        (folder / name / "a.dev").write_text(f"{word} 77 shines\n" * 9)
    return folder


def recipe(folder: Path, name: str, source: str, *overrides: str, rest: str = f"model: {MODEL}") -> AnyRecipe:
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, track=folder / "track.yaml", source=folder / source) + rest)
    return load_recipe(str(path), overrides)


@pytest.fixture(scope="module")
def job(folder: Path, places: Places) -> JobResult:
    return run_job(recipe(folder, "pair", "one", rest=f"teacher: {MODEL}\nstudent: {MODEL}\n"), places)


def ledger(run: Path) -> dict[str, Any]:
    return json.loads((run / "ledger.json").read_text())


def test_every_run_keeps_what_its_models_have_read(job: JobResult) -> None:
    teacher, student, twin = (ledger(job.stages[label]) for label in ("teacher", "student", "twin"))
    names = [(row["kind"], row["name"]) for row in student["readers"]]
    assert names[0] == ("model", job.stages["student"].name) and names[1][0] == "tokenizer"
    assert names[2:] == [("model", job.stages["teacher"].name)]
    assert len(teacher["readers"]) == len(twin["readers"]) == 2
    for content in (teacher, student, twin):
        assert content["words"] == 200 and content["budget"] == 300 and content["track"] == "small"
    for label, content in (("teacher", teacher), ("student", student)):
        result = json.loads((job.stages[label] / "result.json").read_text())
        assert content["readers"][0]["words_read"] == result["words"]
        assert content["readers"][0]["passes"] == pytest.approx(result["words"] / 200, abs=1e-4)


def test_mlflow_has_it_as_the_runs_dataset(job: JobResult, places: Places) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(places.mlflow_uri)
    run_id = json.loads((job.stages["student"] / "mlflow.json").read_text())["run_id"]
    run = client.get_run(run_id)
    profile = json.loads(run.inputs.dataset_inputs[0].dataset.profile)
    assert profile["words"] == {"a.train": 200} and profile["train"]["words"] == 200
    assert run.data.tags["ledger.words"] == "200"
    assert "ledger.json" in {item.path for item in client.list_artifacts(run_id)}


def test_shown_with_the_run(job: JobResult, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    print_run(job.stages["student"].name, places, make_console())
    shown = " ".join(capsys.readouterr().out.split())
    assert "Words read by the models of this run (track small)" in shown and "together, each text once" in shown


def other_text(folder: Path, job: JobResult, *overrides: str) -> AnyRecipe:
    """A student of the finished teacher on another text, with the teacher's tokenizer."""
    tokenizer = json.loads((job.stages["teacher"] / "environment.json").read_text())["data"] + "/tokenizer"
    rest = f"model: {MODEL}\ndistill: {{teachers: [{job.stages['teacher'].name}]}}\n"
    return recipe(folder, "other", "two", f"data.tokenizer={tokenizer}", *overrides, rest=rest)


def test_a_teacher_of_other_text_that_breaks_the_budget_is_refused(
    folder: Path, job: JobResult, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(places.runs.iterdir())
    with pytest.raises(UserError) as error:
        run_job(other_text(folder, job), places)
    assert "have read 400 different words, 100 more than the 300 of the track small" in str(error.value)
    assert "(the run itself 200, the tokenizer " in str(error.value) and "adds 200)" in str(error.value)
    assert set(places.runs.iterdir()) == before
    run_job(other_text(folder, job, "data.enforce_budget=false"), places)
    assert "Warning: other: the models and tokenizers of this run have read 400" in " ".join(
        capsys.readouterr().out.split()
    )


def test_too_many_passes_are_refused(folder: Path, places: Places) -> None:
    with pytest.raises(UserError, match=r"reads its text 3\.\d+ times, and the track small allows 3 passes"):
        run_job(recipe(folder, "long", "one", "training.duration=4 epochs"), places)


def test_an_exported_teacher_brings_its_ledger(folder: Path, job: JobResult, places: Places, tmp_path: Path) -> None:
    export_run(job.stages["teacher"].name, tmp_path / "teacher", places, milestones=False)
    rest = f"model: {MODEL}\ndistill: {{teachers: ['{tmp_path / 'teacher'}']}}\n"
    student = recipe(folder, "exported", "one", rest=rest)
    result = run_job(student, places)
    (run,) = result.stages.values()
    assert [row["name"] for row in ledger(run)["readers"]][2:] == [job.stages["teacher"].name]
    shutil.rmtree(run)
    (tmp_path / "teacher" / "ledger.json").unlink()
    with pytest.raises(UserError, match="nobody can tell what text the model teacher has read"):
        run_job(student, places)
