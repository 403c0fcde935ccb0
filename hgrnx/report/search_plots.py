"""Figures of a search: all trials as lines over their parameters, and the score against one parameter."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgrnx.config.spaces import Choice, IntRange, LogUniform, Parameter, SpaceConfig
from hgrnx.report.plots import STYLE, bar_colour, save_figure
from hgrnx.search.findings import Comparable
from hgrnx.search.trials import Trial

_ABSENT = -0.12
"""Height, on an axis from 0 to 1, of a parameter that a trial doesn't have."""


def plot_parallel(trials: Sequence[Trial], space: SpaceConfig, out: Path) -> bool:
    """Parallel coordinates: an axis for each parameter, the last for the final score, the best at its top.

    Trials that were stopped early are grey and don't reach the last axis.

    Args:
        out: PNG to write.

    Returns:
        Whether there was anything to draw: a finished trial.
    """
    metric = space.objectives[0].metric
    finished = [trial for trial in trials if trial.status == "finished"]
    if not finished:
        return False
    import matplotlib
    from matplotlib.figure import Figure

    scores = [trial.values[metric] for trial in finished]
    low, high = min(scores), max(scores)
    if low == high:
        high = low + abs(low) * 0.01 + 1e-9
    minimised = space.objectives[0].mode == "min"
    colours = matplotlib.colormaps["viridis_r"]  # the best in the darkest colour
    keys = list(space.parameters)
    absent = [key for key in keys if any(key not in trial.parameters for trial in trials)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 1.7 * (len(keys) + 1), 4.6), layout="constrained")
        axes = figure.subplots()
        for trial in sorted(trials, key=lambda trial: (trial.status == "finished", -_rank(trial, metric, minimised))):
            places = [_place(space.parameters[key], trial.parameters.get(key)) for key in keys]
            if trial.status == "finished":
                score = trial.values[metric]
                places.append((high - score if minimised else score - low) / (high - low))
                axes.plot(range(len(places)), places, color=colours(places[-1]), linewidth=2.0, marker="o", zorder=3)
            elif trial.status == "stopped":
                axes.plot(range(len(places)), places, color="#BBBBBB", linewidth=1.0, zorder=2)
        for position, key in enumerate([*keys, metric]):
            axes.axvline(position, color="#333333", linewidth=0.9, zorder=1)
            marks = (
                _marks(space.parameters[key])
                if key in space.parameters
                else _even(*((high, low) if minimised else (low, high)))
            )
            for place, text in marks:
                axes.annotate(
                    text, (position, place), (5, 0), textcoords="offset points", fontsize=9, va="center", zorder=4,
                    bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
                )  # fmt: skip
        axes.set_xticks(range(len(keys) + 1), [*(key.rsplit(".", 1)[-1].replace("_", " ") for key in keys), metric])
        for key in absent:
            foot = (keys.index(key), _ABSENT)
            axes.annotate("not used", foot, (8, -9), textcoords="offset points", fontsize=9, va="center")
        axes.set(xlim=(-0.1, len(keys) + 0.55), ylim=(_ABSENT - 0.1 if absent else -0.06, 1.06), yticks=[])
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
        stopped = sum(trial.status == "stopped" for trial in trials)
        note = f", {stopped} stopped early (grey)" if stopped else ""
        axes.set_title(f"{len(finished)} trials finished{note}")
        save_figure(figure, out)
    return True


def plot_against(key: str, trials: Sequence[Trial], space: SpaceConfig, early: Comparable | None, out: Path) -> bool:
    """The score against the parameter ``key``: early, of all trials, and at the end, of those that finished.

    Of a grid also the means, as a line.

    Returns:
        Whether there was anything to draw: two trials that have the parameter.
    """
    metric = space.objectives[0].metric
    parameter = space.parameters[key]
    final = {trial.number: trial.values[metric] for trial in trials if trial.status == "finished"}
    stopped_early = any(trial.status == "stopped" for trial in trials)
    panels = [("at the end", final)]
    if early is not None and stopped_early:
        panels.insert(0, (f"after {early.words:,} words", early.scores))
    by_number = {trial.number: trial for trial in trials}
    points = [
        (title, [(by_number[number].parameters[key], score) for number, score in scores.items()
                 if key in by_number[number].parameters])
        for title, scores in panels
    ]  # fmt: skip
    if all(len(found) < 2 for _, found in points):
        return False
    import matplotlib
    from matplotlib.figure import Figure

    name = key.rsplit(".", 1)[-1].replace("_", " ")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(points), 3.7), layout="constrained")
        for index, (axes, (title, found)) in enumerate(zip(figure.subplots(1, len(points), squeeze=False)[0], points)):
            if isinstance(parameter, Choice):
                options = _in_order(parameter)
                x: list[Any] = [options.index(value) for value, _ in found]
                axes.set_xticks(range(len(options)), [str(option) for option in options])
                axes.set_xlim(-0.5, len(options) - 0.5)
            else:
                x = [value for value, _ in found]
                if _is_log(parameter):
                    axes.set_xscale("log")
                    ticks = [_unplace(parameter, place) for place in (0, 1 / 3, 2 / 3, 1)]
                    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
                    axes.minorticks_off()
                axes.set_xlim(_unplace(parameter, -0.04), _unplace(parameter, 1.04))  # the same in both panels
            scores = [score for _, score in found]
            axes.plot(x, scores, "o", color=bar_colour(index), markersize=7, alpha=0.85)
            if space.search == "grid":  # every value with the same values of the others, so that means compare
                places = sorted(set(x))
                means = [statistics.fmean(score for place, score in zip(x, scores) if place == here) for here in places]
                axes.plot(places, means, color=bar_colour(index), linewidth=1.2)
            axes.set(title=f"{title} ({len(found)} trials)", xlabel=name, ylabel=metric)
        save_figure(figure, out)
    return True


def _rank(trial: Trial, metric: str, minimised: bool) -> float:
    score = trial.score(metric)
    if score is None:
        return float("inf")
    return -score if not minimised else score


def _in_order(parameter: Choice) -> list[Any]:
    """The options: numbers by size, others as the space has them."""
    numbers = all(isinstance(option, int | float) for option in parameter.options)
    return sorted(parameter.options) if numbers else list(parameter.options)


def _is_log(parameter: Parameter) -> bool:
    return isinstance(parameter, LogUniform) or (isinstance(parameter, IntRange) and parameter.log)


def _place(parameter: Parameter, value: Any) -> float:
    """Where a value is on its axis, from 0 to 1."""
    import math

    if value is None:
        return _ABSENT
    if isinstance(parameter, Choice):
        return _in_order(parameter).index(value) / (len(parameter.options) - 1)
    if _is_log(parameter):
        return math.log(value / parameter.low) / math.log(parameter.high / parameter.low)
    return float((value - parameter.low) / (parameter.high - parameter.low))


def _unplace(parameter: Any, place: float) -> float:
    if _is_log(parameter):
        return float(parameter.low * (parameter.high / parameter.low) ** place)
    return float(parameter.low + place * (parameter.high - parameter.low))


def _marks(parameter: Parameter) -> list[tuple[float, str]]:
    if isinstance(parameter, Choice):
        return [(_place(parameter, option), str(option)) for option in _in_order(parameter)]
    return [(place, f"{_unplace(parameter, place):.3g}") for place in (0.0, 0.5, 1.0)]


def _even(low: float, high: float) -> list[tuple[float, str]]:
    return [(place, f"{low + place * (high - low):.4g}") for place in (0.0, 0.5, 1.0)]
