from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hgrnx.cli import app
from hgrnx.errors import UserError
from hgrnx.evaluation.predictions import ChallengeScore, print_scores, read_predictions, score_predictions

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REFERENCE = SHARED / "reference"

COLA = [1, 1, 0, 1, 0, 0]
COLA_PREDICTED = [1, 0, 0, 1, 1, 0]  # tp 2, tn 2, fp 1, fn 1: MCC 1/3
MRPC = [1, 1, 0, 0]
MRPC_PREDICTED = [1, 1, 1, 0]  # F1 0.8
RTE = [0, 1]


def texts(name: str, values: list[Any]) -> dict[str, Any]:
    return {"predictions": [{"id": f"{name}_{row}", "pred": value} for row, value in enumerate(values)]}


@pytest.fixture
def few_subtasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller challenge."""
    names = {
        "blimp": ("agreement", "islands"),
        "supplement": ("hypernym",),
        "ewok": ("social",),
        "glue": ("cola", "mrpc", "rte"),
    }
    monkeypatch.setattr("hgrnx.evaluation.predictions.SUBTASKS", names)


@pytest.fixture
def content(few_subtasks: None) -> dict[str, Any]:
    return {
        "blimp": {
            "agreement": texts("agreement", [" Dogs bark.", "dogs BARK loudly. ", " Cat run.", " Cats run."]),  # 3 of 4
            "islands": texts("islands", [" What?\nWho."]),  # 1 of 1
        },
        "blimp_supplement": {"hypernym": texts("hypernym", [" bad 0", " good 1"])},
        "ewok": {"social": texts("social", [" Good.", " Bad."])},
        "glue": {
            "cola": texts("cola", COLA_PREDICTED),
            "mrpc": texts("mrpc", MRPC_PREDICTED),
            "rte": texts("rte", [0, 0]),
        },
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    def write(name: str, rows: list[dict[str, Any]]) -> None:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def pair(good: str, bad: str) -> dict[str, str]:
        return {"sentence_good": good, "sentence_bad": bad}

    agreement = [
        ("Dogs bark.", "Dogs barks."),
        ("Dogs bark loudly.", "x"),
        ("Cats run.", "Cat run."),
        ("Cats run.", "y"),
    ]
    write("blimp_filtered/agreement.jsonl", [pair(*row) for row in agreement])
    write("blimp_filtered/islands.jsonl", [pair("What?\nWho.", "Z")])
    write("supplement_filtered/hypernym.jsonl", [pair(f"good {i}", f"bad {i}") for i in range(2)])
    item = {key: "x" for key in ("Domain", "ConceptA", "ConceptB", "Context1", "Context2")}
    write("ewok_filtered/social.jsonl", [{**item, "Target1": "Good.", "Target2": "Bad."}] * 2)
    write("glue_filtered/cola.valid.jsonl", [{"sentence": "s", "label": label} for label in COLA])
    sentences = {"sentence1": "a", "sentence2": "b"}
    write("glue_filtered/mrpc.valid.jsonl", [{**sentences, "label": label} for label in MRPC])
    write("glue_filtered/rte.valid.jsonl", [{**sentences, "label": label} for label in RTE])
    return tmp_path / "data"


def test_scores_follow_the_rules(content: dict[str, Any], data: Path) -> None:
    score = score_predictions(read(content, data), data)
    found = {(task.name, row.name): (row.metric, row.score) for task in score.tasks for row in task.subtasks}
    assert found == {
        ("blimp", "agreement"): ("accuracy", 0.75),
        ("blimp", "islands"): ("accuracy", 1.0),
        ("blimp_supplement", "hypernym"): ("accuracy", 0.5),
        ("ewok", "social"): ("accuracy", 0.5),
        ("glue", "cola"): ("mcc", pytest.approx(1 / 3)),
        ("glue", "mrpc"): ("f1", pytest.approx(0.8)),
        ("glue", "rte"): ("accuracy", 0.5),
    }
    # Unweighted means: 4 of 5 pairs would be 0.8.
    assert [task.score for task in score.tasks] == pytest.approx([0.875, 0.5, 0.5, (1 / 3 + 0.8 + 0.5) / 3])
    assert score.macro == pytest.approx((0.875 + 0.5 + 0.5 + (1 / 3 + 0.8 + 0.5) / 3) / 4)


def test_order_of_the_file_does_not_matter_but_the_ids_do(content: dict[str, Any], data: Path) -> None:
    wanted = score_predictions(read(content, data), data)
    content["glue"]["cola"]["predictions"].reverse()
    assert score_predictions(read(content, data), data) == wanted
    for row, item in enumerate(content["glue"]["cola"]["predictions"]):
        item["id"] = f"cola_{row}"
    assert score_predictions(read(content, data), data) != wanted


def test_a_text_that_is_neither_is_wrong_and_told(content: dict[str, Any], data: Path) -> None:
    content["blimp"]["islands"]["predictions"][0]["pred"] = "What? Who."
    score = score_predictions(read(content, data), data)
    assert score.tasks[0].subtasks[1].score == 0.0
    assert "blimp/islands: 1 predictions are none of the two texts" in shown(score)
    assert "none of the two" in shown(score) and "agreement: " not in shown(score)


def test_incomplete_files_get_no_mean(content: dict[str, Any], data: Path) -> None:
    del content["blimp"]["islands"]
    score = score_predictions(read(content, data), data)
    assert score.tasks[0].missing == ["islands"] and score.tasks[0].score is None and score.macro is None
    assert score.tasks[1].score == 0.5
    assert "blimp lacks islands: no mean is given." in shown(score)
    del content["ewok"]
    score = score_predictions(read(content, data), data)
    assert score.missing == ["ewok"] and "no predictions of ewok" in shown(score)


def drop(content: dict[str, Any]) -> None:
    del content["glue"]["cola"]["predictions"][2]


def double(content: dict[str, Any]) -> None:
    content["glue"]["cola"]["predictions"].append({"id": "cola_3", "pred": 1})


def extra(content: dict[str, Any]) -> None:
    content["glue"]["cola"]["predictions"].append({"id": "cola_6", "pred": 1})


def shifted(content: dict[str, Any]) -> None:
    for row, item in enumerate(content["blimp"]["agreement"]["predictions"]):
        item["id"] = f"agreement_{row + 1}"


def wrong_label(content: dict[str, Any]) -> None:
    content["glue"]["rte"]["predictions"][1]["pred"] = 2


def text_label(content: dict[str, Any]) -> None:
    content["glue"]["rte"]["predictions"][1]["pred"] = "1"


def number_text(content: dict[str, Any]) -> None:
    content["ewok"]["social"]["predictions"][0]["pred"] = 0


def unknown_subtask(content: dict[str, Any]) -> None:
    content["blimp"]["island"] = content["blimp"].pop("islands")


def unknown_task(content: dict[str, Any]) -> None:
    content["vqa"] = {}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (drop, ["glue/cola: 5 predictions for 6 rows", "1 ids are missing (cola_2)"]),
        (double, ["glue/cola: 7 predictions for 6 rows", "1 ids are given twice (cola_3)"]),
        (extra, ["glue/cola: 7 predictions for 6 rows", "1 ids are not in the data (cola_6)"]),
        (shifted, ["blimp/agreement", "not in the data (agreement_4)", "missing (agreement_0)"]),
        (wrong_label, ["glue/rte", "not one of the labels [0, 1]", "2 of row 1"]),
        (text_label, ["glue/rte", "'1' of row 1"]),
        (number_text, ["ewok/social", "not a text", "0 of row 0"]),
        (unknown_subtask, ["blimp has no subtask 'island'", "did you mean 'islands'?"]),
        (unknown_task, ["no task 'vqa'", "blimp_supplement"]),
    ],
)
def test_what_does_not_fit_the_data_is_refused(
    content: dict[str, Any], data: Path, change: Callable[[dict[str, Any]], None], parts: list[str]
) -> None:
    change(content)
    with pytest.raises(UserError) as caught:
        score_predictions(read(content, data), data)
    for part in parts:
        assert part in str(caught.value)


def test_all_problems_come_at_once(content: dict[str, Any], data: Path) -> None:
    for change in (drop, wrong_label, unknown_task):
        change(content)
    with pytest.raises(UserError, match="3 problems") as caught:
        score_predictions(read(content, data), data)
    assert "glue/cola" in str(caught.value) and "glue/rte" in str(caught.value) and "vqa" in str(caught.value)


def test_data_that_is_not_there_is_named(content: dict[str, Any], data: Path) -> None:
    for path in (data / "ewok_filtered").iterdir():
        path.unlink()
    (data / "ewok_filtered").rmdir()
    with pytest.raises(UserError, match="data of ewok is not in"):
        score_predictions(read(content, data), data)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda text: gzip.compress(text)[:-20], "cut short or damaged"),
        (lambda text: gzip.compress(text)[:40] + b"12345", "damaged"),
        (lambda text: text[:-20], "not valid JSON"),
        (lambda text: b"[1, 2]", "not a file of predictions"),
        (lambda text: b'{"blimp": [1]}', "not a file of predictions"),
        (
            lambda text: b'{"blimp": {"islands": {"predictions": [{"id": "islands_0"}]}}}',
            "blimp/islands: needs the key",
        ),
    ],
)
def test_broken_files_are_refused(
    content: dict[str, Any], tmp_path: Path, write: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "predictions.json.gz"
    path.write_bytes(write(json.dumps(content).encode()))
    with pytest.raises(UserError, match=message):
        read_predictions([path])
    with pytest.raises(UserError, match="Cannot read"):
        read_predictions([tmp_path / "nowhere.json.gz"])


def test_tasks_may_come_in_several_files(content: dict[str, Any], data: Path, tmp_path: Path) -> None:
    wanted = score_predictions(read(content, data), data)
    with zipfile.ZipFile(tmp_path / "ewok.zip", "w") as archive:
        archive.writestr("ewok.json", json.dumps({"ewok": content.pop("ewok")}))
    (tmp_path / "rest.json").write_text(json.dumps(content))
    parts = [tmp_path / "rest.json", tmp_path / "ewok.zip"]
    assert score_predictions(read_predictions(parts), data) == wanted
    with pytest.raises(UserError, match="has predictions of ewok, and so has"):
        read_predictions([*parts, tmp_path / "ewok.zip"])


def test_command_prints_table_or_json(content: dict[str, Any], data: Path, tmp_path: Path) -> None:
    path = tmp_path / "predictions.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    table = CliRunner().invoke(app, ["score", str(path), "--data", str(data)])
    assert table.exit_code == 0 and "macro average" in table.output and "87.50" in table.output
    printed = json.loads(CliRunner().invoke(app, ["score", str(path), "--data", str(data), "--json"]).output)
    assert printed["macro"] == pytest.approx(score_predictions(read(content, data), data).macro)
    assert printed["tasks"][3]["subtasks"][0] | {"stderr": 0.0} == {
        "name": "cola",
        "metric": "mcc",
        "score": pytest.approx(1 / 3),
        "stderr": 0.0,
        "items": 6,
        "neither": 0,
    }


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published predictions are not on this machine")
def test_published_predictions_get_their_published_scores() -> None:
    path = REFERENCE / "hgrn2_pile_10m_distill_babylm_textonly_predictions.json.gz"
    score = score_predictions(read_predictions([path]), SHARED / "eval")
    means = {task.name: round(100 * (task.score or 0), 2) for task in score.tasks}
    assert means == {"blimp": 72.11, "blimp_supplement": 58.57, "ewok": 51.31, "glue": 65.79}
    assert round(100 * (score.macro or 0), 2) == 61.94
    ours = {row.name: f"{row.score:.4f}" for row in score.tasks[0].subtasks}
    published = {}
    for line in (REFERENCE / "blimp_10m_results.txt").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 6 and cells[1].startswith("- blimp_"):
            published[cells[1].removeprefix("- blimp_").removesuffix("_filtered")] = cells[6]
    assert len(published) == 67 and ours == published


def read(content: dict[str, Any], folder: Path) -> Any:
    path = folder.parent / "content.json"
    path.write_text(json.dumps(content))
    return read_predictions([path])


def shown(score: ChallengeScore) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        print_scores(score, console)
    return capture.get()
