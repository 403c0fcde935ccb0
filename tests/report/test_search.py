"""The table of trials and the plots of a search."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from search_cases import METRIC, finished, stopped

from hgrnx.config.spaces import SpaceConfig, load_space
from hgrnx.report import search_plots
from hgrnx.report.search_plots import plot_against, plot_parallel
from hgrnx.report.search_tables import print_findings, search_markdown, trial_rows
from hgrnx.search.findings import comparable_scores
from hgrnx.search.trials import Trial

RATE, WEIGHT, TEMPERATURE = "training.learning_rate", "distill.weight", "distill.temperature"


@pytest.fixture
def space() -> SpaceConfig:
    return load_space("demo")


@pytest.fixture
def trials() -> list[Trial]:
    far = stopped(3, {RATE: 9e-3, WEIGHT: 0.2, TEMPERATURE: 5.0})
    far.points.append({"words": 2000.0, METRIC: 1.3})
    return [
        finished(0, {RATE: 4e-3, WEIGHT: 0.5, TEMPERATURE: 2.0}),
        stopped(1, {RATE: 1.1e-2, WEIGHT: 0.0}),
        Trial(2, "run-2", {RATE: 2e-3, WEIGHT: 0.9, TEMPERATURE: 1.0}, "failed", "out of memory\nat step 3"),
        far,
        Trial(4, "run-4", {RATE: 3e-3, WEIGHT: 0.1, TEMPERATURE: 3.0}),
        finished(5, {RATE: 5e-3, WEIGHT: 0.1, TEMPERATURE: 4.0}),
    ]


def test_rows_are_best_first(trials: list[Trial], space: SpaceConfig) -> None:
    rows = trial_rows(trials, space, {5})
    assert [row["trial"] for row in rows] == [5, 0, 4, 3, 1, 2]
    assert rows[0][METRIC] == trials[5].values[METRIC] and rows[0]["note"] == "on the Pareto front"
    assert rows[4][TEMPERATURE] is None and rows[4]["words"] == 1000
    highest = space.model_copy(update={"objectives": (space.objectives[0].model_copy(update={"mode": "max"}),)})
    assert [row["trial"] for row in trial_rows(trials, highest, set())][:2] == [0, 5]


def test_what_a_person_reads(trials: list[Trial], space: SpaceConfig) -> None:
    out = io.StringIO()
    rows = trial_rows(trials, space, set())
    early = comparable_scores(trials, space.objectives[0])
    print_findings(rows, space, {RATE: 0.75, WEIGHT: 0.05}, early, Console(file=out, width=120))
    text = out.getvalue()
    for part in ("learning_rate", "stopped", "out of memory", "75%", "after 1,000 words, which 4 trials reached", "–"):
        assert part in text
    assert "at step 3" not in text
    markdown = search_markdown(rows, space, {RATE: 0.75}, early, "Cost: nothing.")
    assert markdown.count("\n| ") == len(trials) and markdown.endswith("Cost: nothing.\n")
    assert search_markdown(rows[:2], space, {RATE: 1.0}, None, "").count("of the final score") == 1


def test_plots_are_drawn_where_there_is_something(trials: list[Trial], space: SpaceConfig, tmp_path: Path) -> None:
    early = comparable_scores(trials, space.objectives[0])
    assert plot_parallel(trials, space, tmp_path / "parallel.png")
    for key in space.parameters:
        assert plot_against(key, trials, space, early, tmp_path / f"{key}.png")
    assert all(path.stat().st_size > 5_000 for path in tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 4
    assert not plot_parallel(trials[1:3], space, tmp_path / "none.png")
    assert not plot_against(TEMPERATURE, trials[:2], space, None, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_grid_shows_the_mean_over_seeds_in_the_order_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(search_plots, "save_figure", lambda figure, out: figures.append(figure))
    space = load_space("temperature-strict-small")
    scores = {(1.0, 0): 1.0, (1.0, 1): 1.2, (8.0, 0): 2.0, (2.0, 0): 1.5, (2.0, 1): 1.6}
    trials = [
        finished(number, {RATE: 5e-3, WEIGHT: 0.5, TEMPERATURE: temperature, "seed": seed})
        for number, (temperature, seed) in enumerate(scores)
    ]
    for trial, score in zip(trials, scores.values(), strict=True):
        trial.values[METRIC] = score
    assert plot_against(TEMPERATURE, trials, space, None, Path("nowhere"))
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1.0", "2.0", "4.0", "8.0"]
    _, means = axes.lines
    assert list(means.get_xdata()) == [0, 1, 3]
    assert list(means.get_ydata()) == pytest.approx([1.1, 1.55, 2.0])
