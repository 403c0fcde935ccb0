"""What a search found, as files in its folder: the table, the plots, and the figures for MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgrnx.config.spaces import SearchPlan
from hgrnx.report.search_plots import plot_against, plot_parallel
from hgrnx.report.search_tables import search_markdown, trial_rows
from hgrnx.search.findings import Comparable, Cost, comparable_scores, importances, pareto_front
from hgrnx.search.trials import Trial


@dataclass(frozen=True)
class Findings:
    """What the tables show besides the trials' own values."""

    rows: list[dict[str, Any]]
    """A row per trial, the best first."""
    shares: dict[str, float]
    """Importance of each parameter."""
    early: Comparable | None
    figures: dict[str, float]
    """Importances and cost by their names in MLflow."""


def write_findings(plan: SearchPlan, trials: Sequence[Trial], cost: Cost, folder: Path) -> Findings:
    """Write ``summary.md``, ``parallel.png`` and a plot per parameter into ``folder``; at least one trial finished."""
    space, objective = plan.space, plan.space.objectives[0]
    front = pareto_front(trials, space.objectives) if len(space.objectives) > 1 else []
    shares = importances(plan, trials)
    early = comparable_scores(trials, objective)
    rows = trial_rows(trials, space, {trial.number for trial in front})
    plot_parallel(trials, space, folder / "parallel.png")
    for key in space.parameters:
        plot_against(key, trials, space, early, folder / f"{key.rsplit('.', 1)[-1]}.png")
    summary = search_markdown(rows, space, shares, early, cost.sentence())
    (folder / "summary.md").write_text(summary, encoding="utf-8")
    figures = {f"importance/{key}": share for key, share in shares.items()} | {"cost/seconds": cost.spent}
    if cost.share is not None:
        figures["cost/share"] = cost.share
    return Findings(rows, shares, early, figures)
