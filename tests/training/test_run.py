"""Whole runs in this process: resumption bit for bit, distillation's fixed points, messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hgrnx.config import DataConfig, LSTMConfig, ModelConfig, Recipe, durations, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError
from hgrnx.models import build_model
from hgrnx.ops import implementation_note
from hgrnx.tracking.tracker import repeatable
from hgrnx.training import loop, session
from hgrnx.training.checkpoint import latest_checkpoint, load_checkpoint, load_weights, read_meta
from hgrnx.training.hooks import CheckpointHook
from hgrnx.training.run import run_training
from hgrnx.training.weights import last_weights


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepare(DataConfig(track="demo", words=3000, vocab_size=400), tmp_path_factory.mktemp("data"))


def recipe(**changes: dict[str, object]) -> Recipe:
    values: dict[str, dict[str, object]] = {
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "expand_ratio": 16},
        "training": {
            "duration": "6 steps",
            "batch_size": 4,
            "seq_len": 32,
            "precision": "fp32",
            "checkpoint_every": "3 steps",
            "log_every": 2,
            "learning_rate": 5e-3,
        },
        "evaluation": {"every": "6 steps", "dev_documents": 4, "pairs_per_file": 2},
        "launch": {"engine": "torch", "micro_batch_size": 2},
        "data": {"track": "demo", "words": 3000, "vocab_size": 400},
    }
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change}
    made = recipe_from_dict({"name": "x", **values})
    assert isinstance(made, Recipe)
    return made


def lines(run_dir: Path) -> list[dict[str, float]]:
    return repeatable(run_dir / "metrics.jsonl")


class Stopped(Exception):
    pass


@pytest.mark.parametrize("model", [None, LSTMConfig(embedding_size=16, hidden_size=24, dropout=0.3)])
def test_stop_and_resume_is_bit_for_bit(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ModelConfig | None
) -> None:
    """Dropout included."""
    chosen = recipe() if model is None else recipe().model_copy(update={"model": model})
    run_training(chosen, dataset, tmp_path / "whole")

    progress_at = loop.progress_at

    def stop_after_five(loader: object, step: int, total: int) -> loop.Progress:
        if step == 5:
            raise Stopped
        return progress_at(loader, step, total)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "progress_at", stop_after_five)
    with pytest.raises(Stopped):
        run_training(chosen, dataset, tmp_path / "halves")
    monkeypatch.undo()
    folder = latest_checkpoint(tmp_path / "halves" / "checkpoints")
    assert folder is not None and folder.name == "step-00000003"
    assert not (tmp_path / "halves" / "result.json").exists()
    run_training(chosen, dataset, tmp_path / "halves")

    states = [load_checkpoint(tmp_path / name / "checkpoints" / "step-00000006") for name in ("whole", "halves")]
    (whole, _), (halves, _) = states
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, halves.weights[name]), name
        assert torch.equal(whole.optimizer["exp_avg"][name], halves.optimizer["exp_avg"][name]), name
    assert lines(tmp_path / "whole") == lines(tmp_path / "halves")


def test_weights_at_word_milestones_are_kept(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond keep_checkpoints, and without a trace in the weights and the metrics."""
    words = TrainLoader(dataset, 32, 4, 0).words_seen
    # In the steps 2 and 5; the last one is not reached. Two in one step have the same weights.
    monkeypatch.setattr(durations, "WORD_MILESTONES", (words(1) + 1, words(2), words(5) - 1, words(6) + 1))
    monkeypatch.setattr(durations, "milestone_name", lambda words: f"chck_{words}M")
    every_step = {"checkpoint_every": "1 steps", "keep_checkpoints": 6}
    run_training(recipe(training=every_step), dataset, tmp_path / "all")
    kept = recipe(training={"checkpoint_every": "1 steps", "keep_checkpoints": 1, "word_milestones": True})
    leftover = tmp_path / "run" / "milestones" / "chck_5M.tmp-0a1b2c3d"
    leftover.mkdir(parents=True)
    run_training(kept, dataset, tmp_path / "run")

    assert lines(tmp_path / "all") == lines(tmp_path / "run")
    assert not (tmp_path / "all" / "milestones").exists() and not leftover.exists()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000006"]
    folders = {path.name: path for path in (tmp_path / "run" / "milestones").iterdir()}
    steps = {words(1) + 1: 2, words(2): 2, words(5) - 1: 5}
    assert folders.keys() == {f"chck_{words}M" for words in steps}
    for milestone, step in steps.items():
        folder = folders[f"chck_{milestone}M"]
        assert read_meta(folder) == {"step": step, "words": words(step)}
        at_that_step = load_weights(tmp_path / "all" / "checkpoints" / f"step-{step:08d}")
        assert all(torch.equal(tensor, at_that_step[name]) for name, tensor in load_weights(folder).items())
        with pytest.raises(UserError, match="weights only"):
            load_checkpoint(folder)


def test_a_milestone_whose_checkpoint_was_lost_is_written_again(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = TrainLoader(dataset, 32, 4, 0).words_seen
    monkeypatch.setattr(durations, "WORD_MILESTONES", (words(3),))  # a checkpoint's step
    monkeypatch.setattr(durations, "milestone_name", lambda words: "chck_1M")
    chosen = recipe(training={"word_milestones": True})
    with monkeypatch.context() as patched:
        patched.setattr(session, "CheckpointHook", _Dying)
        with pytest.raises(Stopped):
            run_training(chosen, dataset, tmp_path)
    first = load_weights(tmp_path / "milestones" / "chck_1M")
    (tmp_path / "milestones" / "chck_1M" / "model.safetensors").unlink()  # not emptied: it is mapped
    run_training(chosen, dataset, tmp_path)
    again = load_weights(tmp_path / "milestones" / "chck_1M")
    assert all(torch.equal(first[name], again[name]) for name in first)


class _Dying(CheckpointHook):
    """The process ends when the first checkpoint is due."""

    def after_step(self, before: loop.Progress, now: loop.Progress, result: loop.StepResult) -> None:
        if now.step == 3:
            raise Stopped


def test_environment_says_which_recurrence_was_used(dataset: PreparedDataset, tmp_path: Path) -> None:
    """The fallback is several times slower, and its warning is lost among a cluster's logs."""
    run_training(recipe(training={"duration": "1 steps"}), dataset, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["recurrence"] == implementation_note("cpu")


def test_micro_batches_do_not_change_the_run(dataset: PreparedDataset, tmp_path: Path) -> None:
    run_training(recipe(), dataset, tmp_path / "two")
    run_training(recipe(launch={"micro_batch_size": 4}), dataset, tmp_path / "one")
    for name, tensor in last_weights(tmp_path / "two").items():
        torch.testing.assert_close(tensor, last_weights(tmp_path / "one")[name], rtol=1e-4, atol=1e-5)


def test_distilling_from_itself_gives_no_divergence_at_the_first_step(dataset: PreparedDataset, tmp_path: Path) -> None:
    # A teacher whose last checkpoint is the student's start: one step at a vanishing learning rate.
    still = {"duration": "1 steps", "learning_rate": 1e-30, "weight_decay": 0.0}
    run_training(recipe(training=still), dataset, tmp_path / "teacher")
    student = recipe(training=still, distill={"teachers": ["teacher"], "weight": 0.5, "temperature": 2.0})
    run_training(student, dataset, tmp_path / "student")
    first = lines(tmp_path / "student")[0]
    assert abs(first["train/kl"]) < 1e-6
    assert first["train/loss"] == pytest.approx(0.5 * first["train/cross_entropy"], rel=1e-5)


def test_weight_zero_is_the_plain_run_bit_for_bit(dataset: PreparedDataset, tmp_path: Path) -> None:
    run_training(recipe(), dataset, tmp_path / "plain")
    run_training(recipe(distill={"teachers": ["plain"], "weight": 0.0}), dataset, tmp_path / "zero")
    plain, zero = last_weights(tmp_path / "plain"), last_weights(tmp_path / "zero")
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert lines(tmp_path / "plain") == lines(tmp_path / "zero")


def test_distillation_moves_towards_the_teacher(dataset: PreparedDataset, tmp_path: Path) -> None:
    run_training(recipe(training={"duration": "20 steps"}), dataset, tmp_path / "teacher")
    distilled = recipe(distill={"teachers": ["teacher"], "weight": 1.0}, training={"duration": "20 steps"})
    run_training(distilled, dataset, tmp_path / "student")
    kl = [line["train/kl"] for line in lines(tmp_path / "student") if "train/kl" in line]
    assert kl[-1] < 0.5 * kl[0]


def test_evaluation_and_words_are_recorded(dataset: PreparedDataset, tmp_path: Path) -> None:
    result = run_training(recipe(), dataset, tmp_path / "run")
    last = lines(tmp_path / "run")[-1]
    assert last["step"] == 6 and 0 < last["dev/bits_per_byte"] < 10 and 0 <= last["pairs/accuracy"] <= 1
    assert last["words"] == result["words"] > 0
    final = json.loads((tmp_path / "run" / "eval" / "final.json").read_text())
    assert final["metrics"]["dev/bits_per_byte"] < 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"batch_size": 4096}}, "batch"),
        ({"distill": {"teachers": ["nobody"]}}, "no teacher 'nobody'"),
        ({"training": {"learning_rate": 1e38, "duration": "6 steps"}}, "Lower training.learning_rate"),
    ],
)
def test_messages(
    dataset: PreparedDataset, tmp_path: Path, changes: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_training(recipe(**changes), dataset, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_states_reset_at_documents_are_those_of_documents_alone(dataset: PreparedDataset, tmp_path: Path) -> None:
    """What a step with ``reset_state`` reports is the loss of every piece of a document computed by itself."""
    once: dict[str, object] = {"duration": "1 steps", "log_every": 1, "checkpoint_every": "1 steps", "seq_len": 96}
    chosen = recipe(training={**recipe().training.model_dump(), **once, "reset_state": "document"})
    run_training(chosen, dataset, tmp_path / "reset")
    logged = next(line for line in lines(tmp_path / "reset") if "train/loss" in line)
    model = build_model(chosen.model, dataset.vocab_size, seed=chosen.seed).train()
    batch = TrainLoader(dataset, 96, 4, chosen.seed).batch(0)
    total, pieces = 0.0, 0
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        begins = [0, *(i for i in range(1, 96) if inputs[i] == dataset.bos_id), 96]
        for begin, end in zip(begins, begins[1:], strict=False):
            logits = model(inputs[None, begin:end])[0]
            loss = torch.nn.functional.cross_entropy(logits, targets[begin:end], reduction="sum")
            total += float(loss.detach())
            pieces += 1
    assert pieces > 4
    assert logged["train/loss"] == pytest.approx(total / batch.inputs.numel(), rel=1e-5)
    run_training(recipe(training={**recipe().training.model_dump(), **once}), dataset, tmp_path / "never")
    never = next(line for line in lines(tmp_path / "never") if "train/loss" in line)
    assert never["train/loss"] != pytest.approx(logged["train/loss"], rel=1e-6)


def test_a_run_that_is_told_to_stop_ends_after_that_evaluation_and_can_go_on(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    chosen = recipe(evaluation={"every": "2 steps"})
    run_training(chosen, dataset, tmp_path / "whole")
    answers = iter([True, False])
    assert run_training(chosen, dataset, tmp_path / "stopped", go_on=lambda: next(answers)) is None
    evaluated = [line["step"] for line in lines(tmp_path / "stopped") if "dev/bits_per_byte" in line]
    assert evaluated == [2, 4] and next(answers, None) is None
    assert not (tmp_path / "stopped" / "result.json").exists()

    def never() -> bool:
        raise AssertionError("asked after the last evaluation")

    # From the checkpoint of step 3; it asks after steps 4 and not after 6, the last.
    answers = iter([True])
    assert run_training(chosen, dataset, tmp_path / "stopped", go_on=lambda: next(answers, None) or never())
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
