"""Whole runs that are scored on benchmark tasks: in turn by themselves, and with snapshots for somebody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_data import write_eval_data

from hgrnx.config import DataConfig, Recipe, durations, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError
from hgrnx.evaluation.points import CURVE
from hgrnx.training import loop, task_hook
from hgrnx.training.checkpoint import load_weights
from hgrnx.training.loop import Progress
from hgrnx.training.run import run_training
from hgrnx.training.snapshots import Snapshots
from hgrnx.training.task_hook import Schedule

DATA: dict[str, Any] = {"track": "demo", "words": 3000, "vocab_size": 400}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepare(DataConfig(**DATA), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_data(tmp_path_factory.mktemp("eval"))


def recipe(data: Path, **evaluation: Any) -> Recipe:
    made = recipe_from_dict(
        {
            "name": "x",
            "data": DATA,
            "model": {"hidden_size": 32, "num_hidden_layers": 2, "expand_ratio": 16, "initializer_range": 0.02},
            "training": {
                "duration": "8 steps",
                "batch_size": 4,
                "seq_len": 32,
                "precision": "fp32",
                "checkpoint_every": "3 steps",
                "log_every": 2,
                "learning_rate": 2e-2,
            },
            "launch": {"engine": "torch"},
            "evaluation": {
                "every": "8 steps",
                "dev_documents": 2,
                "pairs_per_file": 1,
                "tasks": ["supplement", "ewok"],
                "data": str(data),
                "tasks_every": "2 steps",
                **evaluation,
            },
        }
    )
    assert isinstance(made, Recipe)
    return made


def points(run_dir: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run_dir / CURVE).read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


class Stopped(Exception):
    pass


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    progress_at = loop.progress_at

    def stop(loader: object, now: int, total: int) -> loop.Progress:
        if now == step + 1:
            raise Stopped
        return progress_at(loader, now, total)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "progress_at", stop)


@pytest.fixture(scope="module")
def whole(dataset: PreparedDataset, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "x"
    run_training(recipe(data, best="tasks/ewok/accuracy_ties_half"), dataset, folder)
    return folder


def test_in_turn_every_point_is_scored_and_the_best_kept(whole: Path, dataset: PreparedDataset) -> None:
    found = points(whole)
    assert [point["step"] for point in found] == [2, 4, 6, 8]
    words = TrainLoader(dataset, 32, 4, 0).words_seen
    assert [point["words"] for point in found] == [words(step) for step in (2, 4, 6, 8)]
    values = [point["tasks/ewok/accuracy_ties_half"] for point in found]
    assert len(set(values)) > 1
    facts = json.loads((whole / "best" / "best.json").read_text())
    assert facts["value"] == max(values) and facts["step"] == found[values.index(max(values))]["step"]
    assert not Snapshots(whole).waiting()
    tables = json.loads((whole / "eval" / "points" / "step-00000004" / "tasks.json").read_text())["tasks"]
    assert len(tables["ewok"]["subtasks"]) == 11 and tables["supplement"]["overall"]["stderr"] > 0


def test_scoring_changes_nothing_of_the_run(whole: Path, dataset: PreparedDataset, data: Path, tmp_path: Path) -> None:
    run_training(recipe(data, tasks=[]), dataset, tmp_path / "plain")
    assert not (tmp_path / "plain" / CURVE).exists() and not (tmp_path / "plain" / "best").exists()
    mine, plain = (load_weights(run / "checkpoints" / "step-00000008") for run in (whole, tmp_path / "plain"))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


@pytest.mark.parametrize("beside", [False, True])
def test_stopped_and_resumed_gives_the_same_points_once(
    whole: Path, dataset: PreparedDataset, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    """Stopped after step 5 and resumed from step 3, so that step 4 is passed twice."""
    chosen = recipe(data, best="tasks/ewok/accuracy_ties_half")
    with monkeypatch.context() as patched:
        stop_after(5, patched)
        with pytest.raises(Stopped):
            run_training(chosen, dataset, tmp_path / "x", scored_beside=beside)
    if beside:
        assert Snapshots(tmp_path / "x").waiting() == [2, 4] and not (tmp_path / "x" / CURVE).exists()
    asked = []
    score_point = task_hook.score_point
    monkeypatch.setattr(task_hook, "score_point", lambda *a, **k: (asked.append(a[5]), score_point(*a, **k)))
    run_training(chosen, dataset, tmp_path / "x")  # on another machine perhaps: now in turn
    assert points(tmp_path / "x") == points(whole)
    assert not Snapshots(tmp_path / "x").waiting()
    first, second = ((run / "best" / "best.json").read_text() for run in (tmp_path / "x", whole))
    assert first == second
    assert asked == ([2, 4, 4, 6, 8] if beside else [4, 6, 8])


def test_beside_the_training_only_leaves_weights(
    whole: Path, dataset: PreparedDataset, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "x"
    chosen = recipe(data, tasks_every="1 steps", tasks_waiting=3)
    run_training(chosen, dataset, run, scored_beside=True)
    queue = Snapshots(run)
    assert len(queue.waiting()) == 3 and {1, 8} <= set(queue.waiting())
    assert not (run / CURVE).exists()
    assert sorted(queue.waiting() + queue.left_out()) == list(range(1, 9))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(record.get("tasks/left_out", 0) for record in records) == 5
    assert sum("tasks/seconds" in record for record in records) == 8
    last = load_weights(queue.path(8))
    trained = load_weights(run / "checkpoints" / "step-00000008")
    assert all(torch.equal(last[name], trained[name]) for name in trained)
    run_training(chosen, dataset, run)  # finished before; what waits is scored
    assert not queue.waiting() and len(points(run)) == 3
    assert points(run)[-1] == points(whole)[-1]


def test_milestones_are_never_left_out(
    dataset: PreparedDataset, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = TrainLoader(dataset, 32, 4, 0).words_seen
    monkeypatch.setattr(durations, "WORD_MILESTONES", tuple(words(step) - 1 for step in (1, 2, 3, 5, 6)))
    chosen = recipe(data, tasks_every="milestones", tasks_waiting=3)
    run_training(chosen, dataset, tmp_path, scored_beside=True)
    assert Snapshots(tmp_path).waiting() == [1, 2, 3, 5, 6, 8] and not Snapshots(tmp_path).left_out()


def test_schedule_of_milestones_and_periods() -> None:
    def at(words: int, step: int) -> Progress:
        return Progress(step, 1_000, words / 10e6, words)

    def due(text: str) -> list[int]:
        schedule = Schedule(text)
        steps = [at(step * 500_000 + 1, step) for step in range(1, 1_001)]
        before = [at(0, 0), *steps]
        return [now.words // 1_000_000 for last, now in zip(before, steps) if schedule.due(last, now)]

    rising = [*range(1, 11), *range(20, 101, 10), *range(200, 501, 100)]
    assert due("milestones") == rising  # the last step, 500M words, is one by itself
    assert due("100M words") == [100, 200, 300, 400, 500]
    assert due("2 epochs") == list(range(20, 501, 20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["blimp", "ewokk"]}, "Did you mean 'ewok'"),
        ({"tasks": ["glue"]}, "must be fine-tuned on"),
        ({"data": "/nowhere/at/all"}, "does not exist"),
        ({"best": "tasks/ewok/social/accuracy"}, "did you mean .*tasks/ewok/social-relations/accuracy"),
    ],
)
def test_refused_before_anything_is_written(
    dataset: PreparedDataset, data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_training(recipe(**{"data": data, **changes}), dataset, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_best_by_the_development_text(dataset: PreparedDataset, data: Path, tmp_path: Path) -> None:
    chosen = recipe(data, tasks=[], best="dev/bits_per_byte", every="2 steps", dev_documents=None)
    run_training(chosen, dataset, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = {record["step"]: record["dev/bits_per_byte"] for record in records if "dev/bits_per_byte" in record}
    facts = json.loads((tmp_path / "best" / "best.json").read_text())
    assert facts["value"] == min(values.values()) == values[facts["step"]] and len(values) == 4
