"""Figures: what is drawn, from what, and that an empty one is not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrnx.report.plots import plot_curves, plot_phenomena, smoothed


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_curves_show_the_files_values(three_runs: dict[str, Path], tmp_path: Path, figures: list[Any]) -> None:
    out = tmp_path / "new" / "curves.png"
    assert plot_curves({label: run / "metrics.jsonl" for label, run in three_runs.items()}, out)
    assert min(size(out)) > 400
    loss, dev, pairs = figures[0].axes
    assert [axes.get_ylabel() for axes in figures[0].axes] == [
        "nats per token",
        "bits per byte",
        "accuracy, %",
    ]
    assert loss.get_xlabel() == "words seen, millions"
    lines = [json.loads(line) for line in (three_runs["twin"] / "metrics.jsonl").read_text().splitlines()]
    expected = [(x["words"] / 1e6, x["dev/bits_per_byte"]) for x in lines if "dev/bits_per_byte" in x]
    assert np.allclose(dev.lines[2].get_xydata(), expected)
    assert max(pairs.get_ylim()) > 60  # percent, not a share
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["teacher", "student", "twin"]
    assert len({line.get_color() for line in dev.lines}) == 3


def test_a_panel_without_values_is_left_out(unscored_run: Path, tmp_path: Path, figures: list[Any]) -> None:
    assert plot_curves({"x": unscored_run / "metrics.jsonl"}, tmp_path / "x.png")
    assert [axes.get_title() for axes in figures[0].axes] == ["Training loss", "Development text"]


def test_nothing_to_draw_writes_nothing(unscored_run: Path, tmp_path: Path) -> None:
    assert not plot_phenomena({"x": unscored_run}, tmp_path / "x.png")
    assert not plot_curves({"x": tmp_path / "no-metrics.jsonl"}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_phenomena_have_a_bar_for_each_run_and_its_error(
    three_runs: dict[str, Path], tmp_path: Path, figures: list[Any]
) -> None:
    assert plot_phenomena(three_runs, tmp_path / "phenomena.png")
    assert min(size(tmp_path / "phenomena.png")) > 300
    (axes,) = figures[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["anaphor agreement", "subject verb agreement", "filler gap dependency"]  # lowest first
    assert len(axes.patches) == 9
    teacher = [bar.get_width() for bar in axes.patches[:3]]
    assert teacher == pytest.approx([72.5, 80.0, 85.0])
    assert axes.get_xlim() == (0, 100)
    tops = [bar.get_y() for bar in axes.patches[::3]]
    assert tops == sorted(tops, reverse=True)  # the runs from top to bottom in their order
    (teacher_errors, *_) = [item for item in axes.collections]
    first = teacher_errors.get_segments()[0]
    final = json.loads((three_runs["teacher"] / "eval" / "final.json").read_text())
    stderr = next(row["stderr"] for row in final["tables"]["groups"] if row["group"] == "anaphor_agreement")
    assert (first[1, 0] - first[0, 0]) / 2 == pytest.approx(100 * stderr)


def test_long_names_stay_inside_the_figure(three_runs: dict[str, Path], tmp_path: Path, figures: list[Any]) -> None:
    runs = {f"strict-small-cpu-student-with-a-long-name-{index}": three_runs["student"] for index in range(9)}
    assert plot_curves({label: run / "metrics.jsonl" for label, run in runs.items()}, tmp_path / "c.png")
    assert plot_phenomena(runs, tmp_path / "p.png")
    for figure in figures:
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_smoothing_keeps_lines_straight_and_means() -> None:
    assert smoothed([1.0, 2.0, 3.0, 4.0, 5.0], 3)[:4] == [1.0, 2.0, 3.0, 4.0]
    noise = np.random.default_rng(0).normal(size=1_000)
    assert np.std(smoothed(list(noise), 101)) < 0.25
    assert smoothed([5.0, 7.0], 1) == [5.0, 7.0]
    assert smoothed([], 3) == []
