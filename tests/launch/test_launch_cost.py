"""`hgrnx bench launch`: the arithmetic, and the whole of it at a size where only the plumbing is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hgrnx.bench.run import Bench
from hgrnx.config import recipe_from_dict
from hgrnx.console import make_console
from hgrnx.data.prepare import prepare
from hgrnx.launch.launch_cost import ON_RAY, PLAIN, SAVING, WAYS, measure_launch, rows_of, sentences
from hgrnx.paths import resolve_places

RECIPE = {
    "name": "tiny",
    "data": {"track": "demo", "words": 6000, "vocab_size": 400},
    "model": {"hidden_size": 32, "num_hidden_layers": 2, "expand_ratio": 16},
    "training": {"duration": "20000 steps", "batch_size": 8, "seq_len": 32, "precision": "fp32"},
}


def test_what_is_said_is_what_was_measured() -> None:
    seconds = {
        PLAIN.name: [[1.0, 1.0, 1.0, 5.0], [2.0] * 4, [1.0] * 4],  # one step of somebody else's work
        SAVING.name: [[1.0, 1.0, 1.0, 5.4], [2.2] * 4, [1.1] * 4],
        WAYS[2].name: [[1.0] * 4] * 3,
        ON_RAY.name: [[1.1] * 4, [2.1] * 4, [1.03, 1.03, 1.03, 9.0]],
    }
    launched, saved = sentences(seconds)
    assert "+5.0% (rounds: +10.0, +5.0, +3.0)" in launched
    # 0.1, 0.2 and 0.1 s a step more with one checkpoint in ten steps.
    assert "A checkpoint takes 1.00 s; every 100 steps: +1.0% (rounds: +0.5, +1.0, +1.0)" in saved
    rows = rows_of(seconds, tokens=100)
    assert [row["name"] for row in rows] == [way.name for way in WAYS]
    assert rows[0]["seconds"] == 2.0 and rows[0]["tokens_per_second"] == 50.0 and rows[0]["rounds"] == [2.0, 2.0, 1.0]


@pytest.mark.ray
@pytest.mark.long
def test_every_way_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, places = recipe_from_dict(RECIPE), resolve_places(tmp_path)
    dataset = prepare(recipe.data, places.data)
    own = replace(places, runs=tmp_path / "bench")
    path = Bench(tmp_path / "bench", make_console(), rounds=1).turns(
        "launch", "launch", lambda rounds, progress: measure_launch(recipe, dataset, own, 1, rounds, progress)
    )
    stored, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert [case["name"] for case in stored["cases"]] == [way.name for way in WAYS]
    assert all(case["seconds"] > 0 for case in stored["cases"])
    assert all(note.split(":")[0] in printed for note in stored["settings"]["notes"])
    assert not list((tmp_path / "bench").glob("bench-launch*"))  # the runs are no one's results
