"""The report of an experiment, of made-up files: the page is whole, fetches nothing and says what the files say."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from experiment_files import GROUPS, TITLES, write_experiment
from experiment_page import Page

from hgrnx.errors import UserError
from hgrnx.launch.experiment_report import compare_arms, find_experiment, write_report
from hgrnx.paths import resolve_places
from hgrnx.report.experiment_files import BITS, read_experiment
from hgrnx.report.svg import Point, Series, line_chart


def written(home: Path, **options: object) -> tuple[Path, Page, str]:
    folder = write_experiment(home / "runs", **options)  # type: ignore[arg-type]
    html, markdown = write_report(folder, resolve_places(home))
    return folder, Page(html.read_text()), markdown.read_text()


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    _, page, markdown = written(tmp_path)
    assert page.unclosed == [] and page.fetched == []
    for arm, title in TITLES.items():
        runs = [tmp_path / "runs" / f"x-{arm}-s{seed}" for seed in range(3)]
        bits = [json.loads((run / "eval/final.json").read_text())["metrics"]["dev/bits_per_byte"] for run in runs]
        cells = []
        for task in GROUPS:
            overall = [json.loads((run / "eval/tasks.json").read_text())["tasks"][task]["overall"] for run in runs]
            scores = [100 * item["accuracy_ties_half"] for item in overall]
            items = np.mean([100 * item["stderr"] for item in overall])
            cells.append(f"{np.mean(scores):.1f} ± {statistics.stdev(scores) / 3**0.5:.1f} ({items:.1f})")
        cells.append(f"{np.mean(bits):.4f} ± {statistics.stdev(bits) / 3**0.5:.4f}")
        row = next(row for row in page.rows if row[0] == title)
        assert row[1:5] == cells and row[-1] == "3 of 3"
        assert " | ".join(cells) in markdown
    assert sum(row[0].startswith("HGRN2 − ") for row in page.rows) == 4 * 4  # bits per byte and three tasks
    assert page.charts == 1 + 3


def test_differences_are_of_the_means_over_seeds(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "runs")
    record = read_experiment(folder, tmp_path / "runs")
    differences = {(item.second, item.measure): item for item in compare_arms(record)}
    first, second = ([run.tasks["blimp"].overall.score for run in record.of(arm)] for arm in ("hgrn2", "mamba"))
    found = differences["mamba", "blimp"]
    assert found.difference == pytest.approx(np.mean(first) - np.mean(second)) and found.p < 0.01
    assert found.seeds == (3, 3) and found.paradigms == 65 and found.interval[0] < found.difference < found.interval[1]
    assert differences["mamba", BITS].difference < 0 and differences["mamba", BITS].paradigms == 1
    other = tmp_path / "runs" / "x-lstm-s0" / "environment.json"
    other.write_text(other.read_text().replace("abab", "cdcd"))
    again = compare_arms(read_experiment(folder, tmp_path / "runs"))
    assert ("lstm", BITS) not in {(item.second, item.measure) for item in again}, "of another text"
    record.plan["arms"]["mamba"]["dev_documents"] = 2000
    assert ("mamba", BITS) not in {(item.second, item.measure) for item in compare_arms(record)}, "of other documents"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder, page, markdown = written(tmp_path, finished=4)
    assert "4 of 15 runs finished" in markdown and "- LSTM, seed 2: not started" in markdown
    row = next(row for row in page.rows if row[0] == "LSTM")
    assert row[1:5] == ["–"] * 4 and row[-1] == "0 of 3"
    assert "3 and 1 *" in markdown and "cannot be known" in markdown
    run = tmp_path / "runs" / "x-transformer-s1"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 5, "words": 250000}\n')
    (folder / "failures.json").write_text(json.dumps({"x-lstm-s0": "The training loss is <nan>"}))
    html, again = write_report(folder, resolve_places(tmp_path))
    assert "Transformer, seed 1: at 0.25M words" in again.read_text()
    assert "LSTM, seed 0: failed: The training loss is &lt;nan&gt;" in html.read_text()
    (tmp_path / "runs" / "x-hgrn2-s0" / "environment.json").write_text("{")
    with pytest.raises(UserError, match="x-hgrn2-s0/environment.json"):
        write_report(folder, resolve_places(tmp_path))
    plan = folder / "experiment.json"
    plan.write_text(plan.read_text().replace("dev_documents", "another_key"))
    with pytest.raises(UserError, match="experiment.json is of an earlier hgrnx"):
        write_report(folder, resolve_places(tmp_path))


def test_curves_of_milestones_and_of_a_varied_key(tmp_path: Path) -> None:
    _, page, markdown = written(tmp_path / "a", finished=6, milestones=True)
    assert page.charts == 1 + 3 + 3 and "bits per byte of the whole development text." in markdown
    _, page, markdown = written(tmp_path / "b", vary=True)
    assert "best temperature" in markdown and "| HGRN2 | 1 (at the edge) |" in markdown and page.charts == 1 + 4 + 3
    assert "of the development text, of which 2,000 documents, evenly spaced, are read." in markdown


def test_experiments_are_found_by_name(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "runs", finished=0)
    places = resolve_places(tmp_path)
    assert find_experiment("table2", places) == find_experiment(str(folder), places) == folder
    with pytest.raises(UserError, match="no experiment 'distill'.*table2-cpu-experiment-01234567"):
        find_experiment("distill", places)


def test_a_chart_places_its_points(tmp_path: Path) -> None:
    chart = line_chart([Series("a < b", 0, [Point(0, 1.0), Point(2, 3.0)])], "x", "y")
    ((x0, y0), (x1, y1)) = [
        tuple(map(float, pair.split(",")))
        for pair in re.search(r'<polyline points="([^"]+)"', chart)[1].split()  # type: ignore[index]
    ]
    assert x0 < x1 and y0 > y1 and "a &lt; b" in chart
    assert Page(chart).unclosed == []
    flat = line_chart([Series("a", 0, [Point(1e-3, 2.0)])], "x", "y", log_x=True)
    assert "nan" not in flat and "0.001" in flat
