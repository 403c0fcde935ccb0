"""Learning dynamics: benchmark scores over the words a model has seen. Reads ``task-scores.jsonl`` of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgrnx.report.plots import STYLE, bar_colour, draw_chance, draw_legend, marker, save_figure, word_scale
from hgrnx.report.summary import read_metrics
from hgrnx.report.task_scores import CHANCE, TITLES

DYNAMICS = "dynamics.png"
_MEAN = "mean"


def plot_dynamics(runs: Mapping[str, Path], out: Path) -> bool:
    """Score of each task, and their mean, over words seen: a panel a task, a line a run, bands of one standard error.

    Args:
        runs: run folders by label.
        out: PNG to write.

    Returns:
        Whether there was anything to draw; otherwise nothing is written.
    """
    records = {label: read_metrics(folder / "task-scores.jsonl") for label, folder in runs.items()}
    scored = {key.split("/")[1] for lines in records.values() for record in lines for key in record if "/" in key}
    panels = [task for task in (*TITLES, _MEAN) if task in scored]
    if not panels:
        return False
    import matplotlib
    from matplotlib.figure import Figure

    scale, unit = word_scale(max(record["words"] for lines in records.values() for record in lines))
    with matplotlib.rc_context(STYLE):
        columns = min(len(panels), 3)
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(4.2 * columns, 0.5 + 3.4 * rows), layout="constrained")
        for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            if place >= len(panels):
                axes.remove()
                continue
            task = panels[place]
            for index, lines in enumerate(records.values()):
                _draw(axes, index, list(records)[index], task, lines, scale)
            averaged = [name for name in panels if name not in {"bear", _MEAN}]
            if task in CHANCE or (task == _MEAN and all(name in CHANCE for name in averaged)):
                draw_chance(axes)
            title = "Mean of " + ", ".join(TITLES[name] for name in averaged) if task == _MEAN else TITLES[task]
            axes.set_title(title, fontsize=10.0 if task == _MEAN else None, wrap=True)
            axes.set(xlabel=f"words seen{unit}", ylabel="accuracy, % (± standard error)")
            axes.set_xlim(left=0)
        draw_legend(figure, list(runs))
        save_figure(figure, out)
    return True


def _draw(axes: Any, index: int, label: str, task: str, lines: list[dict[str, Any]], scale: float) -> None:
    key = f"tasks/{task}/accuracy_ties_half"
    points = [(r["words"] / scale, 100 * r[key], 100 * r[f"tasks/{task}/stderr"]) for r in lines if key in r]
    if not points:
        return
    x, y, errors = zip(*points)
    style = {"color": bar_colour(index), "marker": marker(index), "markersize": 4.5, "linewidth": 1.6}
    axes.plot(x, y, label=label, **style)
    low, high = [a - e for a, e in zip(y, errors)], [a + e for a, e in zip(y, errors)]
    axes.fill_between(x, low, high, color=bar_colour(index), alpha=0.18, linewidth=0)
