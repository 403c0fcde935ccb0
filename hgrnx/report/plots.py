"""Figures of runs side by side. matplotlib is imported when a figure is drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from hgrnx.report.summary import read_metrics, read_run

# Okabe and Ito's palette, told apart with every kind of colour vision; markers differ as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {
    "font.size": 11.0,
    "axes.titlesize": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
CHANCE_COLOUR = "#777777"
"""Of the line at which a model knows nothing."""


def bar_colour(index: int) -> str:
    """The colour of the series ``index``."""
    return _COLOURS[index % len(_COLOURS)]


def marker(index: int) -> str:
    """The marker of the series ``index``."""
    return _MARKERS[index % len(_MARKERS)]


def plot_curves(runs: Mapping[str, Path], out: Path) -> bool:
    """Training loss, bits per byte of the development text, and accuracy on minimal pairs, over words seen.

    Args:
        runs: ``metrics.jsonl`` files by label.
        out: PNG to write.

    Returns:
        Whether there was anything to draw; otherwise nothing is written.
    """
    records = {label: list(read_metrics(path)) for label, path in runs.items()}
    panels = [
        (("train/cross_entropy", "train/loss"), "Training loss", "nats per token"),
        (("dev/bits_per_byte",), "Development text", "bits per byte"),
        (("pairs/accuracy",), "Minimal pairs", "accuracy, %"),
    ]
    curves = {title: {label: _curve(lines, keys) for label, lines in records.items()} for keys, title, _ in panels}
    panels = [panel for panel in panels if any(curves[panel[1]].values())]
    if not panels:
        return False
    import matplotlib
    from matplotlib.figure import Figure

    scale, unit = word_scale(
        max(words for lines in curves.values() for points in lines.values() for words, _, _ in points)
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(panels), 3.9), layout="constrained")
        for axes, (_, title, label_y) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            for index, (label, points) in enumerate(curves[title].items()):
                if points:
                    _draw_curve(axes, index, label, points, scale, title)
            if title == "Minimal pairs":
                draw_chance(axes)
            axes.set(title=title, xlabel=f"words seen{unit}", ylabel=label_y)
            axes.set_xlim(left=0)
        draw_legend(figure, list(runs))
        save_figure(figure, out)
    return True


def plot_phenomena(runs: Mapping[str, Path], out: Path) -> bool:
    """Accuracy by phenomenon, as horizontal bars with standard errors, a colour for each run.

    Args:
        runs: run folders by label.
        out: PNG to write.

    Returns:
        Whether the runs were scored on minimal pairs at all; otherwise nothing is written.
    """
    found = {label: read_run(folder) for label, folder in runs.items()}
    groups = list(dict.fromkeys(group for run in found.values() for group in run.groups))
    if not groups:
        return False
    import matplotlib
    from matplotlib.figure import Figure

    def mean(group: str) -> float:
        known = [run.groups[group]["accuracy"] for run in found.values() if group in run.groups]
        return sum(known) / len(known)

    groups.sort(key=mean)
    height = 0.8 / len(found)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 1.4 + len(groups) * max(0.36, 0.2 * len(found) + 0.12)), layout="constrained")
        axes = figure.subplots()
        for index, (label, run) in enumerate(found.items()):
            here = [position for position, group in enumerate(groups) if group in run.groups]
            rows = [run.groups[groups[position]] for position in here]
            axes.barh(
                [position + 0.4 - height * (index + 0.5) for position in here],
                [100 * row["accuracy"] for row in rows],
                height * 0.9,
                xerr=[100 * row["stderr"] for row in rows],
                color=bar_colour(index),
                hatch=("", "///", "...")[index // len(_COLOURS) % 3],
                error_kw={"elinewidth": 1.0, "ecolor": "#333333"},
                label=label,
            )
        axes.axvline(50, color="#333333", linewidth=1, linestyle="--")
        axes.annotate(
            "chance", (50, 1), (0, 2), ("data", "axes fraction"), "offset points", ha="center", color=CHANCE_COLOUR
        )
        axes.set_yticks(range(len(groups)), [group.replace("_", " ") for group in groups])
        axes.set(xlim=(0, 100), ylim=(-0.6, len(groups) - 0.4), xlabel="accuracy, % (± standard error over pairs)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        draw_legend(figure, list(runs))
        save_figure(figure, out)
    return True


def draw_bars(names: Sequence[str], panels: Mapping[str, Sequence[float]], out: Path, title: str) -> None:
    """Horizontal bars, the first name at the top, a panel for each quantity.

    Args:
        names: what the bars stand for.
        panels: values in the order of ``names``, by quantity and unit.
        out: PNG to write.
        title: line above the panels.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 3.9 * len(panels), 1.5 + 0.36 * len(names)), layout="constrained")
        figure.suptitle(title)
        for axes, (quantity, values) in zip(
            figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items()
        ):
            bars = axes.barh(range(len(names)), values, 0.7, color=_COLOURS[: len(names)])
            axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3)
            axes.set(xlabel=quantity, xlim=(0, 1.25 * max(values)))
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        save_figure(figure, out)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Means over windows of ``window`` values around each place; narrower at the ends, and even at the start."""
    sums = [0.0, *accumulate(values)]
    means = []
    for index in range(len(values)):
        before = min(window // 2, index)
        after = min(before, len(values) - 1 - index)
        means.append((sums[index + after + 1] - sums[index - before]) / (before + 1 + after))
    return means


def _curve(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[tuple[float, float, float | None]]:
    """Words, value and standard error of the first of ``keys`` that the records have."""
    for key in keys:
        points = [
            (record["words"], record[key], record.get(f"{key}_stderr"))
            for record in records
            if key in record and "words" in record
        ]
        if points:
            return points
    return []


def _draw_curve(
    axes: Any, index: int, label: str, points: Sequence[tuple[float, float, float | None]], scale: float, title: str
) -> None:
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    line = {"color": colour, "linestyle": ("-", "--", ":")[index // len(_COLOURS) % 3], "label": label}
    x = [words / scale for words, _, _ in points]
    y = [value for _, value, _ in points]
    if title == "Training loss":
        axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(x, smoothed(y, max(1, len(y) // 25)), linewidth=1.8, **line)
    elif title == "Minimal pairs":
        y = [100 * value for value in y]
        errors = [100 * (error or 0.0) for _, _, error in points]
        axes.errorbar(x, y, errors, marker=marker, markersize=5, linewidth=1.6, capsize=2, **line)
    else:
        axes.plot(x, y, marker=marker, markersize=5, linewidth=1.6, **line)


def draw_chance(axes: Any) -> None:
    """The line of a coin toss, for an axis of percentages."""
    axes.axhline(50, color=CHANCE_COLOUR, linewidth=1, linestyle="--", zorder=1)
    axes.annotate(
        "chance",
        (1, 50),
        (-2, 3),
        ("axes fraction", "data"),
        "offset points",
        ha="right",
        color=CHANCE_COLOUR,
    )


def draw_legend(figure: Any, labels: Sequence[str]) -> None:
    """One legend below all panels, of those of ``labels`` that were drawn, in this order."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:  # from the last panel, whose lines have markers, if a run is in it
        found, names = axes.get_legend_handles_labels()
        handles.update(zip(names, found))
    shown = [label for label in labels if label in handles]
    inches = 0.8 + 0.09 * max(len(label) for label in shown)
    columns = max(1, min(len(shown), int(figure.get_figwidth() / inches)))
    figure.legend([handles[label] for label in shown], shown, loc="outside lower center", ncols=columns)


def word_scale(most: float) -> tuple[float, str]:
    """A unit for numbers of words up to ``most``: its size, and how an axis says it."""
    for size, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if most >= size:
            return size, f", {name}"
    return 1.0, ""


def save_figure(figure: Any, out: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    figure.savefig(aside, format="png", dpi=150)
    os.replace(aside, out)
