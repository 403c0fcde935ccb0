"""Fine-tuning learns, stops early with the best epoch's weights, and is decided by its seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CONFIGS, VOCAB, lively

from hgrnx.config import FinetuneConfig, LSTMConfig
from hgrnx.errors import UserError
from hgrnx.evaluation.classifier import Classifier, class_logits
from hgrnx.evaluation.finetune import EarlyStopping, Fit, Labelled, finetune, predict
from hgrnx.evaluation.metrics import count_table, score_table
from hgrnx.models import build_model
from hgrnx.models.folders import save_folder

CONFIG = FinetuneConfig(epochs=4, batch_size=16, learning_rate=3e-3)


def rows_of(count: int, seed: int) -> Labelled:
    """Every other token is 7 in a row of class 1, and 8 in one of class 0."""
    generator = np.random.default_rng(seed)
    rows, labels = [], generator.integers(0, 2, count)
    for label in labels:
        row = generator.integers(9, VOCAB, generator.integers(3, 12))
        row[::2] = 7 if label else 8
        rows.append(row)
    return Labelled(rows, labels)


def classifier_of(architecture: str = "hgrn2") -> Classifier:
    return Classifier(build_model(CONFIGS[architecture], VOCAB), 2, torch.Generator().manual_seed(1))


def fitted(train: Labelled, valid: Labelled, config: FinetuneConfig = CONFIG, **more: Any) -> tuple[Classifier, Fit]:
    classifier = classifier_of()
    return classifier, finetune(classifier, train, valid, config, **({"select_by": "accuracy", "seed": 5} | more))


def test_it_learns_a_separable_task() -> None:
    train, valid = rows_of(128, 0), rows_of(64, 1)
    _, fit = fitted(train, valid)
    accuracy, _ = score_table("accuracy", count_table(valid.labels.tolist(), fit.predictions.tolist()))
    assert accuracy > 0.9
    assert fit.epochs[-1].loss < 0.5 * fit.epochs[0].loss
    assert accuracy == max(epoch.score for epoch in fit.epochs) == fit.epochs[fit.best_epoch - 1].score


def test_every_weight_that_is_used_is_trained() -> None:
    classifier, _ = fitted(rows_of(32, 0), rows_of(8, 1), CONFIG.model_copy(update={"epochs": 1}))
    before = classifier_of().state_dict()
    still = [name for name, weight in classifier.state_dict().items() if torch.equal(weight, before[name])]
    assert still == []


def test_the_seed_decides_everything() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    train, valid = rows_of(40, 0), rows_of(16, 1)
    config = CONFIG.model_copy(update={"epochs": 2})
    # Dropout, so that what is drawn in a step matters.
    dropping = LSTMConfig(embedding_size=24, hidden_size=40, num_hidden_layers=2, dropout=0.5)
    logits = []
    for seed in (5, 5, 6):
        torch.rand(seed)
        classifier = Classifier(build_model(dropping, VOCAB), 2, torch.Generator().manual_seed(1))
        finetune(classifier, train, valid, config, select_by="accuracy", seed=seed)
        logits.append(class_logits(classifier, valid.rows))
    assert (logits[0] == logits[1]).all() and (logits[0] != logits[2]).any()
    torch.random.set_rng_state(before)
    orders = [class_logits(fitted(train, valid, config, seed=seed)[0], valid.rows) for seed in (5, 6)]
    assert (orders[0] != orders[1]).any()  # nothing is dropped here: the order of the rows differs
    assert torch.equal(torch.random.get_rng_state(), before)


def test_parts_of_a_batch_change_nothing() -> None:
    train, valid = rows_of(40, 0), rows_of(24, 1)
    config = CONFIG.model_copy(update={"epochs": 1})
    logits = [class_logits(fitted(train, valid, config, batch_tokens=b)[0], valid.rows) for b in (1, 30, 10_000)]
    np.testing.assert_allclose(logits[0], logits[2], atol=1e-3)
    np.testing.assert_allclose(logits[1], logits[2], atol=1e-3)


def test_it_stops_and_goes_back_to_the_best_epoch() -> None:
    """Training labels that are turned round: the more it learns, the worse it gets on the valid rows."""
    train, valid = rows_of(96, 0), rows_of(48, 1)
    turned = replace(train, labels=1 - train.labels)
    config = CONFIG.model_copy(update={"epochs": 9, "patience": 2})
    classifier, fit = fitted(turned, valid, config)
    scores = [epoch.score for epoch in fit.epochs]
    assert len(scores) < 9 and len(scores) >= fit.best_epoch + 2
    assert scores[fit.best_epoch - 1] == max(scores) > scores[-1]
    assert not classifier.training
    assert (predict(classifier, valid.rows, config) == fit.predictions).all()


def test_patience_counts_as_transformers_does() -> None:
    def epochs(scores: list[float]) -> tuple[int, int]:
        stopping, best = EarlyStopping(patience=2, min_improvement=0.1), 0
        for epoch, score in enumerate(scores, start=1):
            best = epoch if stopping.is_best(score) else best
            if stopping.stop:
                return epoch, best
        return len(scores), best

    assert epochs([0.0, 0.0, 0.0, 1.0]) == (3, 1)
    assert epochs([0.5, 0.4, 0.7, 0.6, 0.6, 0.9]) == (5, 3)
    assert epochs([0.5, 0.55, 0.58, 0.9]) == (3, 3)  # too little to go on, but the best
    assert epochs([0.1, 0.3, 0.5, 0.7]) == (4, 4)


def test_the_rate_falls_from_the_peak_to_nearly_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, closure: None = None) -> Any:
        rates.extend({group["lr"] for group in self.param_groups})
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    fitted(rows_of(40, 0), rows_of(8, 1), CONFIG.model_copy(update={"epochs": 2, "patience": 9}))
    assert rates == pytest.approx([3e-3 * (1 - step / 6) for step in range(6)])  # transformers' linear schedule


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_architecture_takes_steps_and_still_reads_longer_texts(architecture: str) -> None:
    classifier = classifier_of(architecture)
    train, valid = rows_of(16, 0), rows_of(8, 1)
    valid.rows[0] = np.tile(valid.rows[0], 5)
    fit = finetune(
        classifier, train, valid, CONFIG.model_copy(update={"epochs": 2}), select_by="f1", seed=0, batch_tokens=60
    )
    assert len(fit.epochs) == 2 and fit.predictions.shape == (8,)


def test_bf16_learns_too() -> None:
    valid = rows_of(64, 1)
    _, fit = fitted(rows_of(128, 0), valid, CONFIG.model_copy(update={"precision": "bf16", "epochs": 3}))
    assert max(epoch.score for epoch in fit.epochs) > 0.9


def test_numbers_that_are_none_are_refused() -> None:
    classifier = classifier_of()
    with torch.no_grad():
        classifier.score.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="update 1 is not a number"):
        finetune(classifier, rows_of(8, 0), rows_of(8, 1), CONFIG, select_by="accuracy", seed=0)
    with pytest.raises(UserError, match="row 0 are not numbers"):
        predict(classifier, rows_of(8, 1).rows, CONFIG)


@pytest.mark.gpu
def test_it_learns_on_a_gpu() -> None:
    classifier = Classifier(lively(CONFIGS["hgrn2"]), 2, torch.Generator().manual_seed(1)).to("cuda")
    valid = rows_of(64, 1)
    fit = finetune(classifier, rows_of(192, 0), valid, CONFIG, select_by="accuracy", seed=5)
    assert max(epoch.score for epoch in fit.epochs) > 0.9
    assert (predict(classifier, valid.rows, CONFIG) == fit.predictions).all()


@pytest.mark.slow
def test_transformers_own_classifier_learns_the_same(tmp_path: Path) -> None:
    """LlamaForSequenceClassification on padded rows, AdamW and the linear schedule of transformers' Trainer."""
    transformers = pytest.importorskip("transformers")
    model = lively(CONFIGS["transformer"])
    save_folder(model, tmp_path)
    pad = VOCAB - 1
    train, valid = (
        Labelled([np.where(row == pad, 9, row) for row in part.rows], part.labels)
        for part in (rows_of(24, 0), rows_of(12, 1))
    )
    classifier = Classifier(model, 2, torch.Generator().manual_seed(1))
    theirs = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=2, pad_token_id=pad)
    with torch.no_grad():
        theirs.score.weight.copy_(classifier.score.weight)

    def padded(part: Labelled) -> torch.Tensor:
        rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in part.rows], True, pad)
        return theirs(rows, attention_mask=(rows != pad).long()).logits

    np.testing.assert_allclose(class_logits(classifier, valid.rows), padded(valid).detach().numpy(), atol=1e-4)
    before = class_logits(classifier, valid.rows)
    config = FinetuneConfig(epochs=1, batch_size=8, learning_rate=5e-3)
    finetune(classifier, train, valid, config, select_by="accuracy", seed=0)
    ours = class_logits(classifier, valid.rows)

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, 3)
    for batch in np.random.default_rng([0, 0]).permutation(24).reshape(3, 8):
        part = Labelled([train.rows[row] for row in batch], train.labels[batch])
        torch.nn.functional.cross_entropy(padded(part), torch.from_numpy(part.labels)).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert np.abs(ours - before).max() > 0.3
    np.testing.assert_allclose(ours, padded(valid).detach().numpy(), atol=2e-3)
