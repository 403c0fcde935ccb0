"""The training loop. Evaluation, checkpoints, metrics and progress come in as hooks.

Learning rate, data order and dropout are functions of (seed, step), so a run that stops after a checkpoint and
continues gives the same weights as one that never stopped.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from hgrnx.config import parse_duration
from hgrnx.data.loader import Batch, TrainLoader
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
    waited: float
    """Of these, seconds until this rank's batch was there."""
    updating: float
    """Of these, seconds in the optimizer's step, with what is left of the exchange of gradients; on a GPU also with
    what it still has to compute, because the processor runs ahead of it."""
    batches_ready: int
    """Batches that were made ahead when this one was asked for."""
    skipped: bool = False
    """The weights were left as they are, by ``training.on_bad_step``."""


class Stopped(Exception):
    """Raised by a hook on every rank at once: the run ends here, before its last step."""


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
    seq_len: Callable[[int], int] | None = None,
    before_step: Callable[[int], None] | None = None,
) -> None:
    """Take steps ``start_step`` to ``total_steps``; every rank calls it with its own engine and loader.

    ``weights_of`` is the step of the engine's weights where that is not ``start_step``: the steps between are
    passed over.

    The gradient of a step is the sum over the global batch's tokens divided by their global number, whatever
    the number of ranks and micro-batches. Only what a model draws in training (dropout) depends on them; it is
    decided by (``seed``, step, rank). Sequences longer than ``seq_len`` of the step are cut into pieces of that
    length; ``before_step`` is told of each step.
    """

    def take(step: int, batches: Iterator[Batch]) -> StepResult:
        started = time.perf_counter()
        if before_step is not None:
            before_step(step)
        torch.manual_seed(step_seed(seed, step, engine.rank))
        batch = next(batches)
        waited = time.perf_counter() - started
        micro_batches = loader.micro_batches(batch, micro_batch_size)
        if seq_len is not None:
            micro_batches = [micro.cut(seq_len(step)) for micro in micro_batches]
        tokens = loader.valid_tokens(step)
        sums: dict[str, float] = {}
        for micro, (inputs, targets, cu_seqlens, chunks) in enumerate(micro_batches, start=1):
            inputs = inputs.to(engine.device, non_blocking=True)
            targets = targets.to(engine.device, non_blocking=True)
            if cu_seqlens is not None:
                cu_seqlens = cu_seqlens.to(engine.device, non_blocking=True)
            output = engine.forward(inputs, targets, cu_seqlens, chunks)
            loss_sum, last = output.loss_sum, micro == len(micro_batches)
            if last and bad_steps.refuses(sums.get("loss", 0.0) + float(loss_sum.detach()), tokens):
                loss_sum = loss_sum * math.nan  # every engine leaves out such a gradient
            engine.backward(loss_sum, tokens, last_micro=last)
            for name, value in {"loss": output.loss_sum.detach(), **output.metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        rate = learning_rate(step)
        computed = time.perf_counter()
        grad_norm = engine.step(rate)
        ended = time.perf_counter()
        skipped = bad_steps.judge(step + 1, sums["loss"], tokens, grad_norm)
        return StepResult(
            sums, tokens, rate, grad_norm, ended - started, waited, ended - computed, loader.batches_ready, skipped
        )

    before = progress_at(loader, start_step if weights_of is None else weights_of, total_steps)
    with closing(loader.batches(start_step, total_steps)) as batches:
        for step in range(start_step, total_steps):
            try:
                result = take(step, batches)
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
