"""The trials of a search as a table, best first, and what was found, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hgrnx.config.spaces import SpaceConfig
from hgrnx.report.summary import duration
from hgrnx.search.findings import Comparable
from hgrnx.search.trials import Trial

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_ORDER = {"finished": 0, "running": 1, "stopped": 2, "failed": 3}


def trial_rows(trials: Sequence[Trial], space: SpaceConfig, front: set[int]) -> list[dict[str, Any]]:
    """A plain row a trial, best first: finished ones, running ones, those stopped (the furthest first), failed ones.

    Args:
        front: numbers of the trials on the Pareto front.
    """
    first = space.objectives[0]
    sign = 1.0 if first.mode == "min" else -1.0

    def place(trial: Trial) -> tuple[float, ...]:
        score = trial.score(first.metric)
        known = (0.0, sign * score) if score is not None and score == score else (1.0, 0.0)
        words = 0 if trial.status == "finished" else -_stage(trial)
        return (_ORDER[trial.status], words, *known, trial.number)

    return [
        {
            "trial": trial.number,
            "status": trial.status,
            "words": trial.words,
            **{objective.metric: trial.score(objective.metric) for objective in space.objectives},
            **{key: trial.parameters.get(key) for key in space.parameters},
            "seconds": round(trial.seconds, 1),
            "run": trial.run,
            "note": trial.reason
            or ("on the Pareto front" if trial.number in front else "finished before" if trial.reused else ""),
        }
        for trial in sorted(trials, key=place)
    ]


def trials_table(rows: Sequence[Mapping[str, Any]], space: SpaceConfig) -> Table:
    """The rows for a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in _columns(space):
        left = name in ("status", "note")
        table.add_column(name, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        style = "bold" if row is rows[0] and row["status"] == "finished" else ""
        table.add_row(*_cells(row, space), style=style)
    return table


def print_findings(
    rows: Sequence[Mapping[str, Any]],
    space: SpaceConfig,
    shares: Mapping[str, float],
    early: Comparable | None,
    console: Console,
) -> None:
    """The table, and how much each parameter mattered."""
    console.print()
    console.print(trials_table(rows, space), width=None if console.is_terminal else 200)
    if shares:
        console.print(f"\n{_importance_title(rows, early)}")
        width = max(len(key) for key in shares)
        for key, share in shares.items():
            bar = "█" * round(24 * share)
            console.print(f"  {key:{width}} {100 * share:4.0f}%  {bar}{_among(key, space)}", highlight=False)


def search_markdown(
    rows: Sequence[Mapping[str, Any]],
    space: SpaceConfig,
    shares: Mapping[str, float],
    early: Comparable | None,
    cost: str,
) -> str:
    """The same, and the cost, as Markdown."""
    names = _columns(space)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row, space)) + " |" for row in rows]
    if shares:
        lines += ["", _importance_title(rows, early), ""]
        lines += [f"- {key}: {100 * share:.0f}%{_among(key, space)}" for key, share in shares.items()]
    return "\n".join([*lines, "", cost, ""])


def _stage(trial: Trial) -> float:
    """Evaluations passed: trials that were stopped at the same one have nearly the same words."""
    return float(len(trial.points))


def _importance_title(rows: Sequence[Mapping[str, Any]], early: Comparable | None) -> str:
    when = "of the final score"
    if early is not None and any(row["status"] == "stopped" for row in rows):
        when = f"of the score after {early.words:,} words, which {len(early.scores)} trials reached"
    return f"Importance (share of the variance {when}; few trials make it rough):"


def _among(key: str, space: SpaceConfig) -> str:
    """That a conditional parameter is judged among the trials that have it, so that the shares do not sum to 1."""
    return " (among the trials that have it)" if space.parameters[key].when else ""


def _columns(space: SpaceConfig) -> list[str]:
    short = [key.rsplit(".", 1)[-1] for key in space.parameters]
    return ["trial", "status", "words", *(o.metric for o in space.objectives), *short, "time", "note"]


def _cells(row: Mapping[str, Any], space: SpaceConfig) -> list[str]:
    scores = ["" if row[o.metric] is None else f"{row[o.metric]:.6g}" for o in space.objectives]
    values = [_value(row[key]) for key in space.parameters]
    note = str(row["note"]).partition("\n")[0]
    return [
        str(row["trial"]),
        row["status"],
        f"{row['words'] / 1e6:.2f}M",
        *scores,
        *values,
        duration(row["seconds"]),
        note if len(note) <= 60 else f"{note[:59]}…",
    ]


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
