"""`hgrnx eval --tasks` of a small real model, on small files in the pipeline's layout."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_data import write_eval_data
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_model import write_model
from typer.testing import CliRunner

from hgrnx.cli import app
from hgrnx.config import GlueConfig
from hgrnx.data.benchmark_names import SUBTASKS
from hgrnx.errors import UserError
from hgrnx.evaluation import results
from hgrnx.evaluation.predictions import read_predictions, score_predictions
from hgrnx.evaluation.scorer import Scorer
from hgrnx.launch.evaluate_tasks import evaluate_tasks
from hgrnx.launch.task_request import TaskRequest
from hgrnx.paths import Places, resolve_places
from hgrnx.runs import evaluation_folder

ZERO_SHOT = ("blimp", "supplement", "ewok", "bear")
QUICK = GlueConfig(epochs=1, batch_size=4, max_length=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_data(tmp_path_factory.mktemp("eval"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return resolve_places(tmp_path / "home")


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=160, file=io.StringIO())


def score(folder: Path, places: Places, data: Path, console: Console, *tasks: str, **options: Any) -> dict[str, Any]:
    fresh = options.pop("fresh", False)
    request = TaskRequest(data, tasks or None, **options)
    return evaluate_tasks(str(folder), places, request, console, fresh=fresh)


def test_scores_files_and_predictions_agree(folder: Path, places: Places, data: Path, console: Console) -> None:
    mine = data.parent / "mine.json.gz"
    content = score(folder, places, data, console, submission=mine)
    out = evaluation_folder(folder, places)
    assert not out.is_relative_to(folder), "a model folder is left as it is"
    assert json.loads((out / "tasks.json").read_text()) == content
    assert tuple(content["tasks"]) == ZERO_SHOT and content["macro"] is None
    for task in ("blimp", "supplement", "ewok"):
        tables = content["tasks"][task]
        assert [row["name"] for row in tables["subtasks"]] == sorted(SUBTASKS[task])
        mean = np.mean([row["accuracy"] for row in tables["subtasks"]])
        assert tables["overall"]["accuracy"] == pytest.approx(mean)
    assert len(content["tasks"]["blimp"]["groups"]) == 13
    assert {row["name"] for row in content["tasks"]["bear"]["groups"]} == {"Arts", "Geographic"}
    rows = list(csv.DictReader((out / "tasks.csv").open()))
    assert len(rows) == sum(
        1 + len(tables["groups"]) + len(tables["templates"]) + len(tables["subtasks"])
        for tables in content["tasks"].values()
    )
    assert (out / "tasks.png").read_bytes()[:4] == b"\x89PNG"
    predictions = json.loads(gzip.decompress((out / "tasks-predictions.json.gz").read_bytes()))
    item = predictions["ewok"]["social-relations"]
    assert set(item) == {"data", "right", "chosen", "scores"} and len(item["scores"]) == 2
    assert np.array(predictions["bear"]["P2"]["scores"]).shape == (3, 2, 3)
    written = score_predictions(read_predictions([mine, mine.with_name("mine-ewok.zip")]), data)
    theirs = {"blimp": 0, "supplement": 1, "ewok": 2}
    for task, place in theirs.items():
        assert written.tasks[place].score == pytest.approx(content["tasks"][task]["overall"]["accuracy"])
    shown = console.export_text()
    assert "BLiMP Supplement" in shown and "template 2" in shown and "official, %" in shown


def test_ewoks_text_is_nowhere(folder: Path, places: Places, data: Path, console: Console, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    score(folder, places, data, console, "ewok", "blimp", submission=tmp_path / "out" / "mine.json.gz")
    files = [path for place in (places.home, tmp_path / "out") for path in place.rglob("*") if path.is_file()]
    assert len(files) > 80
    for path in files:
        content = path.read_bytes()
        text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        assert b"secret" not in text and b"the see big" not in text, path
    assert "secret" not in console.export_text()


def test_a_kill_loses_one_subtask_at_most(
    folder: Path, places: Places, data: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = score(folder, places, data, console, "blimp", "bear", fresh=True)
    asked: list[int] = []
    strings = Scorer.strings

    def counted(self: Scorer, texts: Any, **options: Any) -> np.ndarray:
        asked.append(len(texts))
        if len(asked) == 30:
            raise KeyboardInterrupt
        return strings(self, texts, **options)

    monkeypatch.setattr(Scorer, "strings", counted)
    assert score(folder, places, data, console, "blimp", "bear") == wanted
    assert asked == [], "nothing is asked again"
    with pytest.raises(KeyboardInterrupt):
        score(folder, places, data, console, "blimp", "bear", fresh=True)
    assert score(folder, places, data, console, "blimp", "bear") == wanted
    assert len(asked) == 30 + (67 - 29) + 2
    damaged = next(evaluation_folder(folder, places).rglob("wh_island.json.gz"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert score(folder, places, data, console, "blimp", "bear") == wanted
    assert len(asked) == 30 + (67 - 29) + 2 + 1


def test_other_weights_data_and_settings_are_asked_anew(
    folder: Path, places: Places, data: Path, console: Console, tmp_path: Path
) -> None:
    first = score(folder, places, data, console, "supplement", "bear")
    both = score(folder, places, data, console, "bear", bear_templates=(0,), bear_reduction="mean")
    assert both["tasks"]["supplement"] == first["tasks"]["supplement"], "what was scored before stays"
    assert both["tasks"]["bear"]["settings"] == {"templates": [0], "reduction": "mean"}
    assert both["tasks"]["bear"]["overall"] != first["tasks"]["bear"]["overall"]
    other = write_eval_data(tmp_path / "other", items=3)
    assert score(folder, places, other, console, "supplement")["tasks"]["supplement"]["overall"]["items"] == 15
    weights = load_file(folder / "model.safetensors")
    weights["model.embeddings.weight"].mul_(0)  # tied: constant logits
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    flat = score(folder, places, data, console, "supplement")
    assert list(flat["tasks"]) == ["supplement"] and flat["weights"] != first["weights"]
    overall = flat["tasks"]["supplement"]["overall"]
    assert overall["ties"] == 10 and (overall["accuracy_ties_half"], overall["accuracy"]) == (0.5, 1.0)


def test_glue_gives_scores_predictions_and_details(folder: Path, places: Places, data: Path, console: Console) -> None:
    mine = data.parent / "glue.json.gz"
    content = score(folder, places, data, console, "cola", "sst2", glue=QUICK, seeds=(1, 2), submission=mine)
    tables = content["tasks"]["glue"]
    assert tables["overall"] is None and [row["name"] for row in tables["subtasks"]] == ["cola", "sst2"]
    assert [len(row["seeds"]) for row in tables["details"]] == [2, 2]
    assert tables["details"][0]["metric"] == "mcc" and tables["details"][0]["settings"]["epochs"] == 1
    written = score_predictions(read_predictions([mine]), data)
    first = {row["name"]: row["seeds"][0]["score"] for row in tables["details"]}
    assert {row.name: row.score for row in written.tasks[0].subtasks} == pytest.approx(first)
    shown = console.export_text()
    assert "cola (mcc)" in shown and "(Super)GLUE (in part)" in shown


def test_glue_tasks_scored_one_after_the_other_stand_together(
    folder: Path, places: Places, data: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = score(folder, places, data, console, "cola", "sst2", glue=QUICK)["tasks"]["glue"]
    score(folder, places, data, console, "cola", "sst2", glue=QUICK.model_copy(update={"batch_size": 3}))
    kept = evaluation_folder(folder, places) / "finished"
    for path in kept.rglob("sst2-*.json"):
        path.unlink()

    def names(*tasks: str, **options: Any) -> list[str]:
        content = score(folder, places, data, console, *tasks, **{"glue": QUICK, **options})
        predictions = json.loads(gzip.decompress((kept.parent / "tasks-predictions.json.gz").read_bytes()))
        rows = [row["name"] for row in content["tasks"]["glue"]["subtasks"]]
        assert list(predictions["glue"]) == rows
        return rows

    assert names("cola") == ["cola"]
    assert names("sst2") == ["cola", "sst2"]
    assert json.loads((kept.parent / "tasks.json").read_text())["tasks"]["glue"] == both
    assert names("sst2", fresh=True) == ["cola", "sst2"], "only what is asked for is forgotten"
    assert names("sst2", glue=QUICK.model_copy(update={"epochs": 2})) == ["sst2"], "the other has other settings"
    assert names("cola", seeds=(5,)) == ["cola"] and names("cola") == ["cola"]
    assert names("supplement") == ["cola"], "stays"
    valid = data / "glue_filtered" / "cola.valid.jsonl"
    whole = valid.read_bytes()
    try:
        valid.write_bytes(whole.replace(b'0"', b'7"', 1))
        assert names("sst2") == ["sst2"], "the other's items are not what they were"
    finally:
        valid.write_bytes(whole)


def test_all_problems_come_before_anything_is_run(
    folder: Path, places: Places, data: Path, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgrnx.launch.evaluate_tasks.open_subject", lambda *_: pytest.fail("something was run"))
    broken = write_eval_data(tmp_path / "broken")
    (broken / "blimp_filtered" / "wh_island.jsonl").unlink()
    path = broken / "supplement_filtered" / "hypernym.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    path = broken / "ewok" / "ewok_filtered.zip"
    path.write_bytes(path.read_bytes()[:-40])
    (broken / "bear" / "BEAR" / "P2.jsonl").unlink()
    with pytest.raises(UserError) as caught:
        score(
            Path("nobody"), places, broken, console, *ZERO_SHOT, "blimpp", "blimp_fast",
            submission=tmp_path / "no" / "mine.json.gz",
        )  # fmt: skip
    message = str(caught.value)
    for part in (
        "no run 'nobody'",
        "There is no task 'blimpp'. Did you mean 'blimp'?",
        "lacks wh_island.jsonl of 67 files",
        "hypernym.jsonl:2: not valid JSON",
        "ewok_filtered.zip is not a readable zip",
        "P2.jsonl",
        "blimp_fast: there is no folder blimp_fast",
        "there is no folder",
    ):
        assert part in message, part
    with pytest.raises(UserError, match="no benchmarks in"):
        score(folder, places, tmp_path, console, "blimp")


def test_bear_needs_a_template(folder: Path, places: Places, data: Path, console: Console) -> None:
    with pytest.raises(UserError, match=r"bear: no relation has a template 3 \(from 0\); the most are 3"):
        score(folder, places, data, console, "bear", bear_templates=(0, 3))


def test_a_wrong_password_is_said(folder: Path, places: Places, tmp_path: Path, console: Console) -> None:
    from hgrnx.evaluation.submission import encrypted_zip

    (tmp_path / "data" / "ewok").mkdir(parents=True)
    content = encrypted_zip({"ewok_filtered/social-relations.jsonl": b"{}"}, b"other")
    (tmp_path / "data" / "ewok" / "ewok_filtered.zip").write_bytes(content)
    with pytest.raises(UserError, match="ewok: The password 'ewok' does not open|ewok: .* is not a readable zip"):
        score(folder, places, tmp_path / "data", console, "ewok")


def test_missing_glue_files_are_said_before_the_rest_is_run(
    folder: Path, places: Places, data: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgrnx.launch.evaluate_tasks.open_subject", lambda *_: pytest.fail("something was run"))
    with pytest.raises(UserError, match=r"lacks .*boolq\.train\.jsonl"):
        score(folder, places, data, console, "blimp", "glue")


def test_broken_weights_are_named(
    folder: Path, places: Places, data: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    strings = Scorer.strings

    def broken(self: Scorer, texts: Any, **options: Any) -> np.ndarray:
        scores = strings(self, texts, **options)
        scores[3] = math.nan
        return scores

    monkeypatch.setattr(Scorer, "strings", broken)
    with pytest.raises(UserError, match=r"supplement/hypernym, item 1 \(from 0\)"):
        score(folder, places, data, console, "supplement")
    assert not (evaluation_folder(folder, places) / "tasks.json").exists()


@pytest.mark.slow
def test_a_run_in_mlflow_gets_scores_files_and_the_figure(
    folder: Path, places: Places, data: Path, console: Console
) -> None:
    from mlflow.tracking import MlflowClient

    from hgrnx.tracking import mlflow

    places.home.mkdir()
    mlflow.init_store(places.mlflow_uri)
    run = mlflow.start_run(places.mlflow_uri, "hgrnx", "some-run", params={}, run_dir=folder)
    content = score(folder, places, data, console, "supplement")
    client = MlflowClient(places.mlflow_uri)
    metrics = client.get_run(run).data.metrics
    overall = content["tasks"]["supplement"]["overall"]
    assert metrics["supplement/accuracy"] == pytest.approx(overall["accuracy"])
    assert "supplement/hypernym/accuracy" in metrics and "macro/accuracy" not in metrics
    names = {item.path for folder in ("eval", "figures") for item in client.list_artifacts(run, folder)}
    assert names == {"eval/tasks.json", "eval/tasks.csv", "eval/tasks-predictions.json.gz", "figures/tasks.png"}


def test_command_line(folder: Path, places: Places, data: Path) -> None:
    options = ["--data", str(data), "--home", str(places.home)]
    done = CliRunner().invoke(
        app, ["eval", str(folder), "--tasks", "supplement,bear", "--bear-templates", "0", *options]
    )
    assert done.exit_code == 0, done.output
    assert "BEAR" in done.output and "template" not in done.output
    wrong = ["--precision", "fp8", "--bear-templates", "x", "--glue", "epoch=3", "--seeds", "one"]
    done = CliRunner().invoke(app, ["eval", str(folder), *wrong, *options])
    assert isinstance(done.exception, UserError)
    for part in ("--precision fp8", "--bear-templates x", "epochs", "--seeds one"):
        assert part in str(done.exception), part


def test_weights_hash_sees_every_value(folder: Path) -> None:
    from hgrnx.models.folders import load_folder

    model = load_folder(folder)
    before = results.weights_hash(model)
    assert before == results.weights_hash(load_folder(folder))
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[-1] += 1e-3
    assert results.weights_hash(model) != before
