"""The learning-dynamics figure: what is drawn, from what, and that an empty one is not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrnx.report.dynamics import plot_dynamics


def write_run(folder: Path, tasks: dict[str, float], points: int = 5, shift: float = 0.0) -> Path:
    """A run whose score of each task rises from half to the given share."""
    folder.mkdir()
    lines = []
    for point in range(1, points + 1):
        record: dict[str, float] = {"step": 100 * point, "time": 1.0, "words": 1_000_000 * point}
        for task, end in tasks.items():
            value = 0.5 + (end - 0.5) * point / points + shift
            record |= {f"tasks/{task}/accuracy": 0.9, f"tasks/{task}/accuracy_ties_half": value}
            record |= {f"tasks/{task}/stderr": 0.01, f"tasks/{task}/island_effects/accuracy": 0.1}
        lines.append(json.dumps(record) + "\n")
    (folder / "task-scores.jsonl").write_text("".join(lines))
    return folder


def test_a_panel_a_task_and_a_line_a_run_with_bands(tmp_path: Path, figures: list[Any]) -> None:
    tasks = {"supplement": 0.55, "blimp": 0.72, "bear": 0.06, "mean": 0.6}
    runs = {
        "student": write_run(tmp_path / "a", tasks),
        "twin": write_run(tmp_path / "b", {"blimp": 0.7}, points=3, shift=0.01),
        "without": tmp_path / "c",
    }
    assert plot_dynamics(runs, tmp_path / "out" / "dynamics.png")
    assert (tmp_path / "out" / "dynamics.png").read_bytes()[:4] == b"\x89PNG"
    axes = figures[0].axes
    titles = ["BLiMP", "BLiMP Supplement", "BEAR", "Mean of BLiMP, BLiMP Supplement"]
    assert [panel.get_title() for panel in axes] == titles
    blimp = axes[0]
    student, twin = (line for line in blimp.lines if len(line.get_xdata()) > 2)
    assert np.allclose(student.get_xdata(), [1, 2, 3, 4, 5])
    assert np.allclose(student.get_ydata(), 50 + 22 * np.arange(1, 6) / 5)
    assert len(twin.get_xdata()) == 3 and student.get_color() != twin.get_color()
    band = blimp.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(54.4 - 1) and band[:, 1].max() == pytest.approx(72 + 1)
    assert blimp.get_xlabel() == "words seen, millions"
    assert [len(panel.lines) for panel in axes] == [3, 2, 1, 2]  # chance is half, but not for BEAR
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["student", "twin"]


def test_nothing_to_draw_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "task-scores.jsonl").write_text("")
    assert not plot_dynamics({"x": tmp_path / "empty", "y": tmp_path / "nowhere"}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
