"""`hgrnx bench eval` on a few items: the same texts for everybody, and honest comparisons."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from hgrnx.bench.eval import Questions, Way, compare, read_questions, small_model, verdicts, ways
from hgrnx.bench.measure import Case, measure
from hgrnx.bench.run import Bench
from hgrnx.console import make_console
from hgrnx.errors import UserError

CPU = torch.device("cpu")
PEERS = find_spec("lm_eval") is not None and find_spec("lm_pub_quiz") is not None


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two files of BLiMP and two relations of BEAR."""
    folder = tmp_path / "data"
    (folder / "blimp_filtered").mkdir(parents=True)
    (folder / "bear" / "BEAR").mkdir(parents=True)
    for number, (right, wrong) in enumerate([("barks", "bark"), ("sleeps", "sleep")]):
        rows = [
            {"sentence_good": f"The {word} {right}.", "sentence_bad": f"The {word} {wrong}."}
            for word in ("dog", "old cat", "bird")
        ]
        path = folder / "blimp_filtered" / f"agreement_{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {}
    for name, templates in {"P1": ["[X] lives in [Y].", "[Y] is home to [X]."], "P2": ["[X] likes [Y]."]}.items():
        answers = {"answer_space_labels": ["Rome", "old Paris", "Oslo"], "answer_space_ids": ["O0", "O1", "O2"]}
        facts[name] = {"templates": templates, **answers}
        rows = [
            {
                "sub_id": f"S{i}",
                "sub_label": label,
                "sub_aliases": [],
                "obj_id": "O0",
                "obj_label": "x",
                "answer_idx": 0,
            }
            for i, label in enumerate(["the dog", "Ann"])
        ]
        path = folder / "bear" / "BEAR" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bear" / "BEAR" / "metadata_relations.json").write_text(json.dumps(facts))
    return folder


def test_it_measures_and_compares_everybody(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Bench(tmp_path, make_console(), rounds=1).eval(data, None, 8, ["fp32", "bf16"])
    stored = json.loads(path.read_text())["cases"]
    printed = " ".join(capsys.readouterr().out.split())
    names = [case["name"] for case in stored]
    ours = ["hgrnx, fp32", "plain forward, fp32", "hgrnx, bf16", "plain forward, bf16"]
    for task, peer in (("BLiMP", "lm-eval"), ("BEAR", "lm-pub-quiz")):
        assert [name for name in names if name.startswith(task)] == [
            f"{task}, {name}" for name in ours + [f"{peer}, fp32"] * PEERS
        ]
        assert f"{task}, hgrnx, bf16: " in printed
        assert PEERS or f"{peer} is not installed" in printed
    for case in stored:
        assert case["seconds"] > 0 and case["cpu_seconds"] > 0
        if "fp32" in case["name"]:
            assert case["other_answers"] == 0 and case["largest_difference"] < 1e-4
        else:
            assert 0 < case["largest_difference"] < 1
    assert {case["texts"] for case in stored} == {12, 9}


def test_the_texts_are_the_benchmarks_own(data: Path) -> None:
    blimp, bear = read_questions(data, 1)
    assert blimp.texts == ["The dog barks.", "The dog bark.", "The dog sleeps.", "The dog sleep."]
    assert bear.texts == [
        "The dog lives in Rome.",
        "The dog lives in old Paris.",
        "The dog lives in Oslo.",
        "Rome is home to the dog.",
        "Old Paris is home to the dog.",
        "Oslo is home to the dog.",
    ]
    assert (blimp.prefix, bear.prefix) == (" ", "")


def test_all_ways_score_alike(data: Path, tmp_path: Path) -> None:
    questions = read_questions(data, 3)
    opened = small_model(questions, tmp_path)
    for part in questions:
        ours, plain, *peers = ways(part, opened, tmp_path / "exported", ("fp32",), CPU)
        wanted = ours.score()
        assert wanted.shape == (len(part.texts),) and np.ptp(wanted) > 0.1
        for way in (plain, *peers):
            np.testing.assert_allclose(way.score(), wanted, atol=1e-4)


def test_answers_that_differ_are_counted_with_their_margin() -> None:
    questions = Questions("X", list("abcde"), "", np.array([0, 2, 5]), lambda *_: None, "somebody")
    scores = {"hgrnx, fp32": [2.0, 1, 3, 5, 4], "plain forward, fp32": [1.0, 2, 3, 5, 4.5]}
    found = [Way(name, lambda given=given: np.array(given)) for name, given in scores.items()]
    measured = measure([Case(way.name, way.step) for way in found], rounds=1)
    ours, plain = compare(questions, found, measured)
    assert (ours["other_answers"], ours["largest_margin"], ours["largest_difference"]) == (1, 1.0, 1.0)
    assert (plain["other_answers"], plain["reference"]) == (0, "plain forward, fp32")
    said, missing = verdicts(questions, [ours, plain])
    assert "1 of 2 answers differ from plain forward, fp32 (by at most 1.0000 nats there)" in said
    assert missing.startswith("somebody is not installed")


def test_nothing_to_measure_is_said(data: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "ewok").mkdir(parents=True)
    with pytest.raises(UserError, match="neither BLiMP nor BEAR"):
        read_questions(tmp_path / "other", 1)
