"""Whole runs in this process with the options of training and distillation: resumption, words, schedules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_run import Stopped, dataset, lines, recipe  # noqa: F401

from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.models import build_model
from hgrnx.training import loop
from hgrnx.training.checkpoint import latest_checkpoint, load_checkpoint
from hgrnx.training.run import run_training
from hgrnx.training.schedules import seq_len_schedule, steps_of
from hgrnx.training.weights import last_weights

EVERYTHING = {
    "optimizer": "muon",
    "schedule": "wsd",
    "decay": "50%",
    "weight_average": {"half_life": "2 steps", "every": 1},
    "seq_len_warmup": {"first": 8, "duration": "4 steps"},
}


def training(**changes: object) -> dict[str, object]:
    return {**recipe().training.model_dump(), **changes}


def test_stop_and_resume_with_every_option_is_bit_for_bit(
    dataset: PreparedDataset,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_training(recipe(training={"duration": "2 steps"}), dataset, tmp_path / "teacher")
    distill = {"teachers": ["teacher"], "final_weight": 0.0, "temperature": 2.0, "final_temperature": 1.0}
    chosen = recipe(
        training=training(**EVERYTHING),
        distill={**distill, "hidden_weight": 0.3, "reverse_kl": True},
        model={**recipe().model.model_dump(exclude={"architecture"}), "use_short_conv": True},
    )
    run_training(chosen, dataset, tmp_path / "whole")

    progress_at = loop.progress_at

    def stop_after_five(loader: TrainLoader, step: int, total: int) -> loop.Progress:
        if step == 5:
            raise Stopped
        return progress_at(loader, step, total)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "progress_at", stop_after_five)
        with pytest.raises(Stopped):
            run_training(chosen, dataset, tmp_path / "halves")
    assert str(latest_checkpoint(tmp_path / "halves" / "checkpoints")).endswith("step-00000003")
    run_training(chosen, dataset, tmp_path / "halves")

    whole, halves = (
        load_checkpoint(tmp_path / name / "checkpoints" / "step-00000006")[0] for name in ("whole", "halves")
    )
    assert whole.optimizer.keys() == {"exp_avg", "exp_avg_sq", "momentum_buffer", "weights"}
    for ours, theirs in (
        (whole.weights, halves.weights),
        *((m, halves.optimizer[n]) for n, m in whole.optimizer.items()),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert lines(tmp_path / "whole") == lines(tmp_path / "halves")
    logged = [line for line in lines(tmp_path / "whole") if "train/loss" in line]
    assert [line["train/learning_rate"] for line in logged] == pytest.approx([5e-3, 5e-3, 5e-3 * 2 / 3, 0.0])
    assert all(line["train/kl"] > 0 and line["train/hidden_distance"] > 0 for line in logged)


def test_the_average_is_what_is_evaluated_and_given_away(dataset: PreparedDataset, tmp_path: Path) -> None:  # noqa: F811
    run_training(recipe(), dataset, tmp_path / "plain")
    averaged = recipe(training=training(weight_average={"half_life": "3 steps", "every": 1}))
    run_training(averaged, dataset, tmp_path / "averaged")
    state, _ = load_checkpoint(tmp_path / "averaged" / "checkpoints" / "step-00000006")
    plain, given = last_weights(tmp_path / "plain"), last_weights(tmp_path / "averaged")
    for name, weight in given.items():
        assert torch.equal(weight, state.weights[name])
        assert torch.equal(state.optimizer["weights"][name], plain[name]), "the training itself is the same"
    assert any(not torch.equal(given[name], plain[name]) for name in given)
    scores = []
    for name, weights in (("plain", plain), ("averaged", given)):
        final = json.loads((tmp_path / name / "eval" / "final.json").read_text())["metrics"]["dev/bits_per_byte"]
        assert final == pytest.approx(bits_per_byte(dataset, averaged.model, weights), rel=1e-4)
        scores.append(final)
    assert scores[0] != scores[1]


def bits_per_byte(dataset: PreparedDataset, model_config: object, weights: dict[str, torch.Tensor]) -> float:  # noqa: F811
    from hgrnx.config import EvaluationConfig
    from hgrnx.evaluation.suite import evaluate

    model = build_model(model_config, dataset.vocab_size).eval()  # type: ignore[arg-type]
    model.load_state_dict(weights, strict=False)
    result = evaluate(model, dataset, EvaluationConfig(), final=True)
    return result.metrics["dev/bits_per_byte"]


@pytest.mark.parametrize("reset", ["never", "document"])
def test_pieces_of_sequences_are_read_alone(dataset: PreparedDataset, tmp_path: Path, reset: str) -> None:  # noqa: F811
    """The first step's loss is that of every piece by itself; words and tokens are those of whole sequences."""
    once = {"duration": "4 steps", "log_every": 1, "checkpoint_every": "4 steps", "seq_len": 96, "reset_state": reset}
    chosen = recipe(training=training(**once, seq_len_warmup={"first": 24, "duration": "2 steps"}))
    run_training(chosen, dataset, tmp_path / "pieces")
    run_training(recipe(training=training(**once)), dataset, tmp_path / "whole")
    pieces, whole = ([line for line in lines(tmp_path / name) if "train/loss" in line] for name in ("pieces", "whole"))
    assert [line["words"] for line in pieces] == [line["words"] for line in whole]
    model = build_model(chosen.model, dataset.vocab_size, seed=chosen.seed).train()
    batch = TrainLoader(dataset, 96, 4, chosen.seed).batch(0)
    total = 0.0
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        begins = {0, 24, 48, 72, 96}
        if reset == "document":
            begins |= {place for place in range(1, 96) if inputs[place] == dataset.bos_id}
        cuts = sorted(begins)
        for begin, end in zip(cuts, cuts[1:], strict=False):
            logits = model(inputs[None, begin:end])[0]
            total += float(torch.nn.functional.cross_entropy(logits, targets[begin:end], reduction="sum").detach())
    assert pieces[0]["train/loss"] == pytest.approx(total / batch.inputs.numel(), rel=1e-5)
    assert whole[0]["train/loss"] != pytest.approx(pieces[0]["train/loss"], rel=1e-6)


def test_pieces_double_evenly(dataset: PreparedDataset) -> None:  # noqa: F811
    loader = TrainLoader(dataset, 64, 4, 0)
    config = recipe(training=training(seq_len=64, seq_len_warmup={"first": 8, "duration": "60%"})).training
    lengths = seq_len_schedule(config, loader, 20)
    assert lengths is not None
    assert [lengths(step) for step in range(20)] == [8] * 4 + [16] * 4 + [32] * 4 + [64] * 8
    assert seq_len_schedule(recipe().training, loader, 20) is None
    assert [steps_of(text, loader, 20) for text in ("1%", "50%", "7 steps", "100 steps", "1 words")] == [
        1,
        10,
        7,
        20,
        1,
    ]


def test_a_divergence_that_is_not_computed_in_some_steps_is_a_mean_over_the_others(
    dataset: PreparedDataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    run_training(recipe(training={"duration": "2 steps"}), dataset, tmp_path / "teacher")
    distill = {"teachers": ["teacher"], "weight": 0.5, "final_weight": 0.0}
    kl = []
    for every in (1, 2):
        chosen = training(duration="2 steps", learning_rate=1e-30, weight_decay=0.0, log_every=every)
        run_training(recipe(distill=distill, training=chosen), dataset, tmp_path / f"every-{every}")
        kl.append([line["train/kl"] for line in lines(tmp_path / f"every-{every}") if "train/kl" in line])
    assert len(kl[0]) == 1 and kl[1] == pytest.approx(kl[0], rel=1e-6)
