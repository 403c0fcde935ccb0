"""The summary of runs side by side."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from hgrnx.errors import UserError
from hgrnx.report.paired import paired_difference
from hgrnx.report.summary import count, duration
from hgrnx.report.tables import print_summary, summary_csv, summary_markdown, summary_rows


def printed(runs: dict[str, Path], width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="standard")
    print_summary(runs, console)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def by_measure(runs: dict[str, Path]) -> dict[str, dict[str, object]]:
    return {str(row["measure"]): row for row in summary_rows(runs)}


def test_the_rows_hold_what_the_files_say(three_runs: dict[str, Path]) -> None:
    rows = by_measure(three_runs)
    assert rows["parameters"]["student"] == 1_234_567
    assert rows["words seen"]["twin"] == 1_200_000
    assert rows["bits per byte (dev)"]["teacher"] == pytest.approx(1.53)
    final = json.loads((three_runs["student"] / "eval" / "final.json").read_text())
    pairs = rows["minimal pairs (demo)"]
    assert pairs["student"] == pytest.approx(100 * final["metrics"]["pairs/accuracy"])
    assert pairs["student stderr"] == pytest.approx(100 * final["metrics"]["pairs/accuracy_stderr"])
    assert rows["anaphor agreement"]["student"] == pytest.approx(76.5)
    assert rows["training speed"]["student"] == 4321.7
    assert "ties as half right" not in rows


def test_the_best_value_of_each_row_is_bold(three_runs: dict[str, Path]) -> None:
    lines = {line.split("|")[1]: line for line in summary_markdown(three_runs).splitlines() if "|" in line}
    assert lines[" bits per byte (dev) "].count("**1.5260**") == 1
    assert lines[" minimal pairs (demo), % "].count("**") == 2
    assert "**81.5 ± 1.9**" in lines[" minimal pairs (demo), % "]
    assert "**" not in lines[" parameters "]
    assert "**" not in lines[" training speed, tokens/s "]  # all the same
    bold = re.findall(r"\x1b\[1m *([0-9.]+)", printed(three_runs))
    assert bold.count("1.5260") == 1 and "1.5300" not in bold


def test_the_terminal_table_fits_100_columns(three_runs: dict[str, Path]) -> None:
    many = {f"a-run-with-a-long-name-{index}": three_runs["student"] for index in range(9)}
    for runs, width in ((three_runs, 100), (many, 100), (many, 300), (three_runs, 60)):
        plain = Console(width=width, file=io.StringIO(), color_system=None)
        print_summary(runs, plain)
        output = plain.file
        assert isinstance(output, io.StringIO)
        lines = output.getvalue().splitlines()
        assert max(len(line) for line in lines) <= min(width, 100)
        assert output.getvalue().count("81.5 ± 1.9") == sum(1 for run in runs.values() if run.name == "student")


def test_csv_reads_back(three_runs: dict[str, Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(summary_csv(three_runs))))
    assert rows[0]["measure"] == "parameters" and rows[0]["teacher"] == "1234567"


def test_runs_without_pairs_have_no_such_rows(unscored_run: Path) -> None:
    assert "minimal pairs" not in summary_markdown({"x": unscored_run})
    assert "training time" in printed({"x": unscored_run})


def test_a_run_that_lacks_a_measure_shows_a_dash(three_runs: dict[str, Path], unscored_run: Path) -> None:
    text = summary_markdown({"student": three_runs["student"], "other": unscored_run})
    assert "| minimal pairs (demo), % | 81.5 ± 1.9 | – |" in text


def test_ties_get_a_row(tied_run: Path) -> None:
    rows = by_measure({"x": tied_run})
    assert rows["minimal pairs (demo)"]["x"] == pytest.approx(70.0)
    assert rows["ties as half right"]["x"] == pytest.approx(65.0)


def test_an_unfinished_or_damaged_run_is_named(three_runs: dict[str, Path]) -> None:
    (three_runs["twin"] / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"twin/environment.json can't be read"):
        summary_rows(three_runs)
    (three_runs["student"] / "result.json").unlink()
    with pytest.raises(UserError, match=r"student/result.json is missing: the run has not finished"):
        summary_rows(three_runs)


def test_what_can_not_be_compared_is_said(three_runs: dict[str, Path], other_data_run: Path) -> None:
    student = three_runs["student"]
    assert "can't be compared" not in summary_markdown(three_runs)
    text = summary_markdown({"student": student, "other": other_data_run})
    assert "different minimal pairs" in text and "different data" in text and "pair by pair" not in text


def test_differences_are_paired(three_runs: dict[str, Path]) -> None:
    gap = paired_difference(three_runs["student"], three_runs["twin"])
    assert gap is not None
    assert gap.points == pytest.approx(5.0)
    assert gap.pairs == 400
    assert f"student − twin: +5.0 ± {gap.stderr:.1f} points" in summary_markdown(three_runs)
    back = paired_difference(three_runs["twin"], three_runs["student"])
    assert back is not None and back.points == -gap.points
    same = paired_difference(three_runs["twin"], three_runs["twin"])
    assert same is not None and (same.points, same.stderr) == (0.0, 0.0)


def test_the_error_of_a_difference_is_that_of_a_paired_test(tmp_path: Path) -> None:
    for name, bad in (("a", [-1, -1, -1, 1]), ("b", [-1, 1, 1, -1])):
        (tmp_path / name / "eval").mkdir(parents=True)
        content = json.dumps({"file": {"good": [0] * 4, "bad": bad}}).encode()
        (tmp_path / name / "eval" / "final-predictions.json.gz").write_bytes(gzip.compress(content))
    gap = paired_difference(tmp_path / "a", tmp_path / "b")
    assert gap is not None
    # differences 0, 1, 1, -1: mean 1/4, sample variance 11/12, standard error sqrt(11/48)
    assert gap.points == pytest.approx(25.0)
    assert gap.stderr == pytest.approx(100 * (11 / 48) ** 0.5)


def test_no_difference_without_predictions(three_runs: dict[str, Path], unscored_run: Path) -> None:
    assert paired_difference(three_runs["student"], unscored_run) is None
    (three_runs["twin"] / "eval" / "final-predictions.json.gz").write_bytes(b"\x1f\x8bbroken")
    assert paired_difference(three_runs["student"], three_runs["twin"]) is None


def test_numbers_for_people() -> None:
    assert [count(value) for value in (999, 1_000, 8_812_345, 366_800_000, 30e9)] == [
        "999",
        "1k",
        "8.812M",
        "366.8M",
        "30B",
    ]
    assert [duration(value) for value in (4.4, 754.2, 7_530)] == ["4 s", "12 min 34 s", "2 h 05 min"]
