"""The record of a search: whole after a kill, each trial once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from search_cases import METRIC, finished

from hgrnx.errors import UserError
from hgrnx.search.trials import Trial, TrialRecord, unusable


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    for number in range(3):
        trial = record.add(f"run-{number}", {"training.learning_rate": 0.1 * (number + 1), "x": "5%"})
        trial.add_point({"words": 10.0, METRIC: 1.0})
        trial.status = "stopped"
        record.save(trial)
    record.trials[1].status, record.trials[1].reason = "failed", "out of memory"
    record.save(record.trials[1])
    again = TrialRecord(tmp_path)
    assert again.trials == record.trials
    assert again.counts() == {"finished": 0, "stopped": 2, "failed": 1, "running": 0}
    assert again.add("run-3", {}).number == 3


def test_a_kill_while_writing_leaves_the_old_content(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    record.add("run-0", {"a": 1})
    (tmp_path / ".0000.json.77").write_text('{"number": 0, "ru')
    assert TrialRecord(tmp_path).trials == record.trials


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "0000.json").write_text("{")
    with pytest.raises(UserError, match="0000.json"):
        TrialRecord(tmp_path)


def test_an_evaluation_counts_once() -> None:
    trial = Trial(0, "run", {})
    assert trial.add_point({"words": 10.0, METRIC: 2.0})
    assert not trial.add_point({"words": 10.0, METRIC: 9.0})  # again, after going back to a checkpoint
    assert trial.add_point({"words": 10.0, "tasks/blimp": 0.6})  # more of the same evaluation
    assert trial.add_point({"words": 20.0, METRIC: 1.5})
    assert trial.points == [{"words": 10.0, METRIC: 2.0, "tasks/blimp": 0.6}, {"words": 20.0, METRIC: 1.5}]
    assert trial.score(METRIC) == 1.5 and trial.score("tasks/blimp") == 0.6 and trial.words == 20


def test_what_cannot_be_judged_says_why() -> None:
    trial = finished(0, {"training.learning_rate": 1e-3, "distill.weight": 0.5})
    assert unusable(trial, [METRIC, "seconds"]) is None
    assert "no metric 'pairs/accuracy'; it has dev/bits_per_byte" in (unusable(trial, ["pairs/accuracy"]) or "")
    trial.values[METRIC] = math.nan
    assert unusable(trial, [METRIC]) == f"its {METRIC} is nan"
