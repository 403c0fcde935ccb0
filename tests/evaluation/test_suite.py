from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrnx.config import EvaluationConfig
from hgrnx.evaluation import EvaluationResult, evaluate
from hgrnx.evaluation.perplexity import bits_per_byte
from hgrnx.models import LanguageModel


def test_metrics_and_tables(model: LanguageModel, dataset: Any) -> None:
    result = evaluate(model, dataset, EvaluationConfig(), final=True)
    counts = bits_per_byte(model, dataset.split("dev"))
    assert result.metrics["dev/bits_per_byte"] == pytest.approx(counts.bits_per_byte)
    assert result.metrics["dev/loss"] == pytest.approx(counts.nats_per_token)
    rows = {row["name"]: row for row in result.tables["files"]}
    assert {name: row["items"] for name, row in rows.items()} == {"agreement_a": 18, "agreement_b": 18, "islands": 14}
    mean = (rows["agreement_a"]["accuracy"] + rows["agreement_b"]["accuracy"]) / 2
    assert result.metrics["pairs/agreement/accuracy"] == pytest.approx(mean)
    assert result.metrics["pairs/accuracy"] == pytest.approx((2 * mean + rows["islands"]["accuracy"]) / 3)
    assert result.metrics["pairs/accuracy_stderr"] > 0
    assert result.metrics["pairs/ties"] == 0
    assert [row["name"] for row in result.tables["groups"]] == ["agreement", "islands"]
    for name, item in result.predictions.items():
        assert item["preferred"] == [int(b > g) for g, b in zip(item["good"], item["bad"], strict=True)]
        assert 1 - sum(item["preferred"]) / len(item["preferred"]) == pytest.approx(rows[name]["accuracy"])


def test_samples_only_before_the_end(model: LanguageModel, dataset: Any) -> None:
    config = EvaluationConfig(pairs_per_file=5, dev_documents=3)
    sampled = evaluate(model, dataset, config, final=False)
    everything = evaluate(model, dataset, config, final=True)
    assert [row["items"] for row in sampled.tables["files"]] == [5, 5, 5]
    assert [row["items"] for row in everything.tables["files"]] == [18, 18, 14]
    counts = bits_per_byte(model, dataset.split("dev"), documents=3)
    assert sampled.metrics["dev/loss"] == pytest.approx(counts.nats_per_token)
    assert everything.metrics["dev/loss"] != sampled.metrics["dev/loss"]
    few = evaluate(model, dataset, config.model_copy(update={"final_dev_documents": 4}), final=True)
    assert few.metrics["dev/loss"] == pytest.approx(
        bits_per_byte(model, dataset.split("dev"), documents=4).nats_per_token
    )
    assert few.metrics["pairs/accuracy"] == everything.metrics["pairs/accuracy"]
    wanted = [everything.predictions["islands"]["good"][i] for i in (0, 2, 5, 8, 11)]
    assert sampled.predictions["islands"]["good"] == pytest.approx(wanted, rel=1e-5)


def test_training_mode_is_restored(model: LanguageModel, dataset: Any) -> None:
    for training in (True, False):
        model.train(training)
        evaluate(model, dataset, EvaluationConfig(pairs_per_file=1, dev_documents=1), final=False)
        assert model.training is training
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_folder_of_pairs_goes_before_the_datasets_own(model: LanguageModel, dataset: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "questions.jsonl").write_bytes((dataset.pairs_dir / "islands.jsonl").read_bytes())
    result = evaluate(model, dataset, EvaluationConfig(minimal_pairs=str(other)), final=True)
    assert list(result.predictions) == ["questions"]
    dataset.pairs_dir = None
    bare = evaluate(model, dataset, EvaluationConfig(), final=True)
    assert bare.metrics.keys() == {"dev/bits_per_byte", "dev/loss"}


def test_every_rank_gets_the_same_result(model: LanguageModel, dataset: Any) -> None:
    world = 3
    alone = evaluate(model, dataset, EvaluationConfig(), final=True)
    barrier, slots, results = threading.Barrier(world), [None] * world, [None] * world  # type: list[Any]

    def rank_main(rank: int) -> None:
        def gather(value: object) -> list[object]:
            slots[rank] = value
            barrier.wait(60)
            everyone = list(slots)
            barrier.wait(60)
            return everyone

        results[rank] = evaluate(
            model, dataset, EvaluationConfig(), final=True, rank=rank, world_size=world, gather=gather
        )

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2]
    assert results[0].metrics == pytest.approx(alone.metrics, rel=1e-5)
    for name, item in alone.predictions.items():
        assert results[0].predictions[name]["good"] == pytest.approx(item["good"], rel=1e-5)


def test_a_broken_model_is_refused(model: LanguageModel, dataset: Any) -> None:
    with torch.no_grad():
        model.head_weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="broken"):
        evaluate(model.train(), dataset, EvaluationConfig(), final=True)
    assert model.training


def test_result_is_saved(model: LanguageModel, dataset: Any, tmp_path: Path) -> None:
    result = evaluate(model, dataset, EvaluationConfig(), final=True)
    result.save(tmp_path / "eval", "final")
    saved = json.loads((tmp_path / "eval" / "final.json").read_text())
    assert saved == {"metrics": result.metrics, "tables": result.tables}
    with gzip.open(tmp_path / "eval" / "final-predictions.json.gz", "rt") as file:
        assert json.load(file) == result.predictions
    EvaluationResult({"dev/loss": 1.0}).save(tmp_path / "eval", "bare")
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == [
        "bare.json",
        "final-predictions.json.gz",
        "final.json",
    ]
