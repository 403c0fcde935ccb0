"""Fitting a classifier: epochs over labelled rows, early stopping, the best epoch's weights.

Shapes: N texts of a batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hgrnx.config import FinetuneConfig
from hgrnx.errors import UserError
from hgrnx.evaluation.classifier import BATCH_TOKENS, Classifier, class_logits, length_buckets, pack
from hgrnx.evaluation.metrics import MetricName, count_table, score_table
from hgrnx.ops.cpu import guard_bf16_products
from hgrnx.training.engine import autocast
from hgrnx.training.loop import step_seed
from hgrnx.training.optim import learning_rate, make_optimizer

_LOWER_RATE = " Fine-tune with a smaller learning_rate, or with precision=fp32."


@dataclass(frozen=True)
class Labelled:
    """Token ids and class of each row."""

    rows: list[np.ndarray]
    labels: np.ndarray


@dataclass(frozen=True)
class Epoch:
    """One pass: the mean training loss in nats, and the score on the valid rows after it."""

    loss: float
    score: float


@dataclass(frozen=True)
class Fit:
    """What a fine-tuning came to."""

    epochs: list[Epoch]
    best_epoch: int
    """Counted from 1."""
    predictions: np.ndarray
    """Class of each valid row after the best epoch."""


class EarlyStopping:
    """Says when to stop; transformers' ``EarlyStoppingCallback`` with its ``Trainer``'s notion of the best epoch."""

    def __init__(self, patience: int, min_improvement: float) -> None:
        self.patience, self.min_improvement = patience, min_improvement
        self.best = -math.inf
        self.waited = 0

    def is_best(self, score: float) -> bool:
        """Take the score of one more epoch; whether it is above all before, by any margin."""
        self.waited = 0 if score > self.best + self.min_improvement else self.waited + 1
        better = score > self.best
        self.best = max(self.best, score)
        return better

    @property
    def stop(self) -> bool:
        return self.waited >= self.patience


def finetune(
    classifier: Classifier,
    train: Labelled,
    valid: Labelled,
    config: FinetuneConfig,
    *,
    select_by: MetricName,
    seed: int,
    batch_tokens: int | None = None,
    on_rows: Callable[[int, list[Epoch]], None] | None = None,
) -> Fit:
    """Train all weights of ``classifier``, which is left in evaluation mode with those of the best epoch.

    The order of the rows is a function of (``seed``, epoch), dropout of (``seed``, update); the global random state
    stays as it was.

    Args:
        select_by: what the best epoch is best at, on ``valid``.
        batch_tokens: bounds memory: an update's rows go through in parts. The result is the same up to rounding.
        on_rows: called after every update and every epoch with the training rows seen so far and the epochs done.

    Raises:
        UserError: losses or scores are no numbers any more.
    """
    if config.precision == "bf16" and classifier.device.type == "cpu":
        guard_bf16_products()
    stopping = EarlyStopping(config.patience, config.min_improvement)
    epochs: list[Epoch] = []
    optimizer = make_optimizer(classifier, config.training())
    limit = batch_tokens or BATCH_TOKENS[classifier.device.type]
    with _own_randomness(classifier.device):
        while len(epochs) < config.epochs and not stopping.stop:
            loss_sum = 0.0
            for rows, loss in _epoch(classifier, optimizer, train, config, seed, len(epochs), limit):
                loss_sum += loss
                if on_rows is not None:
                    on_rows(len(epochs) * len(train.rows) + rows, epochs)
            predictions = predict(classifier, valid.rows, config, batch_tokens)
            score, _ = score_table(select_by, count_table(valid.labels.tolist(), predictions.tolist()))
            epochs.append(Epoch(loss_sum / len(train.rows), score))
            if on_rows is not None:
                on_rows(len(epochs) * len(train.rows), epochs)
            if stopping.is_best(score):
                fit = Fit(epochs, len(epochs), predictions)
                weights = {name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()}
    classifier.load_state_dict(weights)
    classifier.eval()
    return fit


def predict(
    classifier: Classifier, rows: list[np.ndarray], config: FinetuneConfig, batch_tokens: int | None = None
) -> np.ndarray:
    """The class of each row, int64, in the order of ``rows``. Raises UserError where logits are no numbers."""
    logits_NC = class_logits(classifier, rows, precision=config.precision, batch_tokens=batch_tokens)
    bad = np.flatnonzero(~np.isfinite(logits_NC).all(1))
    if len(bad):
        raise UserError(f"The model's scores for row {bad[0]} are not numbers (NaN or infinite).{_LOWER_RATE}")
    return logits_NC.argmax(1)


def _epoch(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    train: Labelled,
    config: FinetuneConfig,
    seed: int,
    epoch: int,
    batch_tokens: int,
) -> Iterator[tuple[int, float]]:
    """One pass over ``train`` in an order of its own; after every update the rows seen and the batch's summed loss."""
    classifier.train()
    order = np.random.default_rng([seed, epoch]).permutation(len(train.rows))
    updates = -(-len(order) // config.batch_size)
    training = config.training()
    for update in range(updates):
        chosen = order[update * config.batch_size : (update + 1) * config.batch_size]
        step = epoch * updates + update
        for group in optimizer.param_groups:
            # One step more than there are: the rate reaches 0 after the last update, as transformers' schedule does.
            group["lr"] = learning_rate(step, config.epochs * updates + 1, 0, training)
        torch.manual_seed(step_seed(seed, step, 0))
        loss_sum = _gradient(classifier, train, chosen, config, batch_tokens)
        norm = nn.utils.clip_grad_norm_(classifier.parameters(), config.max_grad_norm)
        if not torch.isfinite(norm):
            raise UserError(f"The gradient of update {step + 1} is not a number (NaN or infinite).{_LOWER_RATE}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield update * config.batch_size + len(chosen), loss_sum


def _gradient(
    classifier: Classifier, train: Labelled, chosen: np.ndarray, config: FinetuneConfig, batch_tokens: int
) -> float:
    """Leave the gradient of the mean loss of the rows ``chosen``; returns their summed loss."""
    device = classifier.device
    loss_sum = 0.0
    for part in length_buckets([len(train.rows[row]) for row in chosen], batch_tokens):
        labels_N = torch.from_numpy(train.labels[chosen[part]]).to(device)
        with autocast(device, config.precision):
            logits_NC = classifier(*pack([train.rows[row] for row in chosen[part]], device))
        loss = F.cross_entropy(logits_NC, labels_N, reduction="sum")
        (loss / len(chosen)).backward()
        loss_sum += float(loss.detach())
    return loss_sum


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
