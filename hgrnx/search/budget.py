"""When a search has had enough."""

from __future__ import annotations

from collections.abc import Sequence

from hgrnx.config.spaces import BudgetConfig
from hgrnx.search.trials import Trial


def is_spent(budget: BudgetConfig, trials: Sequence[Trial], seconds: float) -> bool:
    """Whether no further trial is to begin, after these and ``seconds`` of searching."""
    return (
        (budget.trials is not None and len(trials) >= budget.trials)
        or (budget.hours is not None and seconds >= 3600 * budget.hours)
        or (budget.words is not None and sum(trial.words for trial in trials) >= budget.words)
    )


def progress(budget: BudgetConfig, trials: Sequence[Trial], seconds: float) -> str:
    """How much of it is used, in words for the screen."""
    parts = []
    if budget.trials is not None:
        parts.append(f"{len(trials)} of {budget.trials} trials begun")
    if budget.hours is not None:
        left = max(0.0, 60 * budget.hours - seconds / 60)
        parts.append(f"{left:.0f} of {60 * budget.hours:.0f} minutes left")
    if budget.words is not None:
        parts.append(f"{sum(trial.words for trial in trials) / 1e6:.2f} of {budget.words / 1e6:.2f}M words")
    return ", ".join(parts)
