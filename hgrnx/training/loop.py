"""The training loop. Evaluation, checkpoints, metrics and progress come in as hooks.

Learning rate, data order and dropout are functions of (seed, step), so a run that stops after a checkpoint and
continues gives the same weights as one that never stopped.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from hgrnx.config import parse_duration
from hgrnx.data.loader import TrainLoader
from hgrnx.training.bad_steps import BadSteps
from hgrnx.training.engine import Engine


@dataclass(frozen=True)
class Progress:
    """How far a run is, after ``step`` steps."""

    step: int
    total_steps: int
    epoch: float
    words: int

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps


@dataclass(frozen=True)
class StepResult:
    """What one step gave on this rank: token sums of the losses, and global facts."""

    sums: dict[str, float]
    """This rank's sums over its tokens: ``loss``, ``cross_entropy`` and, when distilling, ``kl``."""
    tokens: int
    """Tokens of the global batch that have a target."""
    learning_rate: float
    grad_norm: float
    """Global norm of the gradient before clipping."""
    seconds: float
    skipped: bool = False
    """The weights were left as they are, by ``training.on_bad_step``."""


class Hook(ABC):
    """Called on every rank after every step; collective operations inside are allowed."""

    @abstractmethod
    def after_step(self, before: Progress, now: Progress, result: StepResult) -> None:
        """``before`` and ``now`` are the progress before and after the step that gave ``result``."""


class Period:
    """Tells when something that happens every ``"1 epoch"``, ``"500 steps"``, ``"1M words"`` or ``"10%"`` is due."""

    def __init__(self, text: str) -> None:
        self.amount, self.unit = parse_duration(text)

    def due(self, before: Progress, now: Progress) -> bool:
        """Whether a multiple of the period was reached between two steps, or the run has ended."""
        return now.finished or self._count(now) > self._count(before)

    def _count(self, progress: Progress) -> int:
        position = {
            "steps": float(progress.step),
            "epochs": progress.epoch,
            "words": float(progress.words),
            "percent": 100.0 * progress.step / progress.total_steps,
        }[self.unit]
        return int(position / self.amount + 1e-9)


def progress_at(loader: TrainLoader, step: int, total_steps: int) -> Progress:
    """The progress after ``step`` of ``total_steps`` steps."""
    return Progress(step, total_steps, loader.epoch_of(step), loader.words_seen(step))


def train(
    engine: Engine,
    loader: TrainLoader,
    *,
    start_step: int,
    total_steps: int,
    micro_batch_size: int,
    seed: int,
    learning_rate: Callable[[int], float],
    hooks: Sequence[Hook],
    bad_steps: BadSteps,
    weights_of: int | None = None,
) -> None:
    """Take steps ``start_step`` to ``total_steps``; every rank calls it with its own engine and loader.

    ``weights_of`` is the step of the engine's weights where that is not ``start_step``: the steps between are
    passed over.

    The gradient of a step is the sum over the global batch's tokens divided by their global number, whatever
    the number of ranks and micro-batches. Only what a model draws in training (dropout) depends on them; it is
    decided by (``seed``, step, rank).
    """
    before = progress_at(loader, start_step if weights_of is None else weights_of, total_steps)
    with closing(loader.batches(start_step, total_steps)) as batches:
        for step in range(start_step, total_steps):
            try:
                started = time.perf_counter()
                torch.manual_seed(step_seed(seed, step, engine.rank))
                micro_batches = loader.micro_batches(next(batches), micro_batch_size)
                tokens = loader.valid_tokens(step)
                sums: dict[str, float] = {}
                for micro, (inputs, targets, cu_seqlens) in enumerate(micro_batches, start=1):
                    inputs = inputs.to(engine.device, non_blocking=True)
                    targets = targets.to(engine.device, non_blocking=True)
                    if cu_seqlens is not None:
                        cu_seqlens = cu_seqlens.to(engine.device, non_blocking=True)
                    output = engine.forward(inputs, targets, cu_seqlens)
                    loss_sum, last = output.loss_sum, micro == len(micro_batches)
                    if last and bad_steps.refuses(sums.get("loss", 0.0) + float(loss_sum.detach()), tokens):
                        loss_sum = loss_sum * math.nan  # every engine leaves out such a gradient
                    engine.backward(loss_sum, tokens, last_micro=last)
                    for name, value in {"loss": output.loss_sum.detach(), **output.metrics}.items():
                        sums[name] = sums.get(name, 0.0) + float(value)
                rate = learning_rate(step)
                grad_norm = engine.step(rate)
                skipped = bad_steps.judge(step + 1, sums["loss"], tokens, grad_norm)
                result = StepResult(sums, tokens, rate, grad_norm, time.perf_counter() - started, skipped)
                now = progress_at(loader, step + 1, total_steps)
                for hook in hooks:
                    hook.after_step(before, now, result)
                before = now
            except Exception as error:
                error.add_note(f"in step {step + 1}")
                raise


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of what the model draws in a step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
