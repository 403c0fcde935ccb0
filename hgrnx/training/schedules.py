"""Durations of a recipe in steps of a run, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable

from hgrnx.config import TrainingConfig, parse_duration
from hgrnx.data.loader import TrainLoader


def steps_of(duration: str, loader: TrainLoader, total_steps: int) -> int:
    """``duration`` in steps, at least one and at most the run's; a percentage is of the whole run."""
    amount, unit = parse_duration(duration)
    if unit == "percent":
        return min(total_steps, max(1, round(total_steps * amount / 100)))
    return min(total_steps, loader.steps_for(duration))


def seq_len_schedule(training: TrainingConfig, loader: TrainLoader, total_steps: int) -> Callable[[int], int] | None:
    """Tokens of a sequence at each step under ``training.seq_len_warmup``; None without it."""
    warmup, seq_len = training.seq_len_warmup, training.seq_len
    if warmup is None:
        return None
    steps = steps_of(warmup.duration, loader, total_steps)
    doublings = (seq_len // warmup.first).bit_length() - 1
    return lambda step: warmup.first << min(doublings, step * doublings // steps)
