"""Runs that learn from a stored signal, in this process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hgrnx.config import DataConfig, Recipe, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError
from hgrnx.models import build_model
from hgrnx.models.folders import save_folder
from hgrnx.objectives import LiveTeacher, StoredTeacher
from hgrnx.training.run import run_training
from hgrnx.training.teacher_cost import live_ratio
from hgrnx.training.teacher_signal import make_shards, plan_signal
from hgrnx.training.weights import last_weights

VOCAB = 400


def recipe(top_k: int | None = VOCAB, seed: int = 0, **changes: dict[str, Any]) -> Recipe:
    distill = {"teachers": ["teacher"], "weight": 0.7, "temperature": 2.0, "top_k": top_k}
    content: dict[str, Any] = {
        "name": "x",
        "seed": seed,
        # From wider weights one gradient of 14,000 is so near 0 that the stored signal's, which agrees to 5e-5 of their
        # norm, has another sign, of which Adam makes a whole step.
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "expand_ratio": 16, "initializer_range": 0.02},
        "data": {"track": "demo", "words": 3000, "vocab_size": VOCAB},
        "training": {"duration": "6 steps", "batch_size": 4, "seq_len": 32, "precision": "fp32", "log_every": 1},
        "evaluation": {"every": "6 steps", "dev_documents": 2, "pairs_per_file": 1},
        "launch": {"engine": "torch", "micro_batch_size": 2},
        "distill": distill,
    }
    for section, change in changes.items():
        content[section] = {**content[section], **change}
    made = recipe_from_dict(content)
    assert isinstance(made, Recipe)
    return made


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepare(DataConfig(track="demo", words=3000, vocab_size=VOCAB), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, dataset: PreparedDataset) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    teacher = recipe(seed=9).model_copy(update={"distill": None})
    run_training(teacher, dataset, folder / "teacher")
    return folder


def make(wanted: Recipe, dataset: PreparedDataset, runs: Path, signals: Path, **options: Any) -> list[int]:
    """Store what is missing, three chunks a shard; returns the chunks made."""
    plan = plan_signal(wanted, dataset, runs, signals, **options)
    store = plan.store()
    store.open()
    missing = store.missing(plan.chunks).tolist()
    make_shards(wanted, dataset, runs, store, [missing[i : i + 3] for i in range(0, len(missing), 3)])
    return missing


def kl(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/kl"] for line in lines if "train/kl" in line]


@pytest.mark.parametrize("reset_state", ["never", "document"])
def test_every_entry_stored_is_the_live_teacher(
    dataset: PreparedDataset, runs: Path, tmp_path: Path, reset_state: str
) -> None:
    """Step by step: also a check that each batch is given the signal of its own text."""
    changes = {"training": {**recipe().training.model_dump(), "reset_state": reset_state}}
    run_training(recipe(None, **changes), dataset, runs / f"live-{reset_state}")
    stored = recipe(**changes)
    make(stored, dataset, runs, tmp_path)
    run_training(stored, dataset, runs / f"stored-{reset_state}", signals=tmp_path)
    live = kl(runs / f"live-{reset_state}")
    assert kl(runs / f"stored-{reset_state}") == pytest.approx(live, rel=1e-3) and len(set(live)) == 6
    for name, weights in last_weights(runs / f"live-{reset_state}").items():
        torch.testing.assert_close(last_weights(runs / f"stored-{reset_state}")[name], weights, rtol=1e-2, atol=2e-4)


def test_what_is_not_stored_is_refused_before_the_first_step(
    dataset: PreparedDataset, runs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="lacks 24 of the 24 sequences"):
        run_training(recipe(8), dataset, runs / "none", signals=tmp_path)
    make(recipe(8), dataset, runs, tmp_path)
    longer = recipe(8, training={"duration": "8 steps"})
    with pytest.raises(UserError, match="lacks 8 of the 32 sequences"):
        run_training(longer, dataset, runs / "longer", signals=tmp_path)
    assert not (runs / "longer" / "result.json").exists()


def test_another_seed_adds_only_what_it_lacks(dataset: PreparedDataset, runs: Path, tmp_path: Path) -> None:
    first = make(recipe(8), dataset, runs, tmp_path)
    assert len(first) == 24 and make(recipe(8), dataset, runs, tmp_path) == []
    other = recipe(8, seed=1)
    needed = plan_signal(other, dataset, runs, tmp_path).chunks.tolist()
    assert make(other, dataset, runs, tmp_path) == sorted(set(needed) - set(first)) != needed
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("teacher-top8-")
    run_training(recipe(8), dataset, runs / "first", signals=tmp_path)
    run_training(other, dataset, runs / "other", signals=tmp_path)


def test_how_the_work_is_cut_does_not_matter(dataset: PreparedDataset, runs: Path, tmp_path: Path) -> None:
    plans = []
    for name, rows in (("one", 1), ("four", 4)):
        chosen = recipe(8, launch={"micro_batch_size": rows})
        make(chosen, dataset, runs, tmp_path / name)
        plans.append(plan_signal(chosen, dataset, runs, tmp_path / name))
    one, four = (plan.store() for plan in plans)
    one.open()
    four.open()
    chunks = plans[0].chunks.tolist()
    assert plans[0].folder.name == plans[1].folder.name
    for ours, others in zip(one.read(chunks), four.read(chunks), strict=True):
        np.testing.assert_allclose(ours.astype(float), others.astype(float), rtol=1e-2, atol=1e-2)


def test_all_that_decides_the_signal_is_in_its_name(dataset: PreparedDataset, runs: Path, tmp_path: Path) -> None:
    tokenizer = dataset.tokenizer_dir
    save_folder(build_model(recipe().model, VOCAB, seed=3), tmp_path / "hub", tokenizer)
    save_folder(build_model(recipe().model, VOCAB, seed=4), tmp_path / "other" / "hub", tokenizer)

    def name(chosen: Recipe, **options: Any) -> str:
        return plan_signal(chosen, dataset, runs, tmp_path, **options).folder.name

    changed = [
        recipe(8, distill={"teachers": [str(tmp_path / "hub")], "top_k": 8}),
        recipe(8, distill={"teachers": [str(tmp_path / "other" / "hub")], "top_k": 8}),
        recipe(9),
        recipe(8, training={"seq_len": 16}),
        recipe(8, training={"reset_state": "document"}),
        recipe(8, training={"precision": "bf16"}),
    ]
    names = [name(recipe(8)), *map(name, changed), name(recipe(8), values="float32")]
    assert len(set(names)) == len(names)
    same = [
        recipe(8, seed=5),
        recipe(8, training={"batch_size": 2, "learning_rate": 1e-4, "duration": "2 steps"}),
        recipe(8, distill={"temperature": 1.0, "weight": 0.1, "top_k": 8}),
        recipe(8, launch={"micro_batch_size": 1}),
        recipe(8, model={"hidden_size": 64, "num_hidden_layers": 1}),
    ]
    assert {name(one) for one in same} == {names[0]}
    assert name(recipe(10_000)) == name(recipe(VOCAB))


def test_the_chunks_planned_are_those_read(dataset: PreparedDataset, runs: Path, tmp_path: Path) -> None:
    for duration in ("1 steps", "6 steps", "1 epochs", "2.5 epochs"):
        chosen = recipe(8, training={"duration": duration})
        loader = TrainLoader(dataset, 32, 4, 0)
        steps = loader.steps_for(duration)
        read = {chunk for step in range(steps) for chunk in loader.batch(step).chunks}
        assert plan_signal(chosen, dataset, runs, tmp_path).chunks.tolist() == sorted(read)


def test_a_step_with_the_teacher_itself_is_compared_with_one_without(
    dataset: PreparedDataset, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of both kinds take turns; a teacher that takes its time is seen."""
    wanted = recipe(training={"duration": "30 steps"}, launch={"num_workers": 2, "micro_batch_size": None})
    make(wanted, dataset, runs, tmp_path)
    asked: list[str] = []
    for kind in (LiveTeacher, StoredTeacher):
        signal = kind.signal

        def slow(self: Any, *args: Any, signal: Any = signal, kind: type = kind) -> Any:
            asked.append(kind.__name__)
            time.sleep(0.2 if kind is LiveTeacher else 0.05)
            return signal(self, *args)

        monkeypatch.setattr(kind, "signal", slow)
    ratio = live_ratio(wanted, dataset, runs, tmp_path)
    assert 1.5 < ratio < 4.5  # of 4 x at most
    turns = asked[::2]  # two micro-batches a step
    assert turns == ["LiveTeacher", "StoredTeacher"] * 10
