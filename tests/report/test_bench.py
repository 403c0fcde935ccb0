"""Benchmark results as a table, a file and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hgrnx.console import make_console
from hgrnx.report.bench import print_bench, save_bench


def row(name: str, seconds: float, memory: float | None = 10.0) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "spread": 0.05,
        "memory_mb": memory,
        "tokens_per_second": 1000 / seconds,
        "flops_per_second": None,
        "share_of_peak": 0.5,
    }


def test_times_are_in_times_of_the_first(capsys) -> None:  # type: ignore[no-untyped-def]
    print_bench("a title", [row("ours", 0.1), row("theirs", 0.25, None)], make_console())
    lines = capsys.readouterr().out.splitlines()
    theirs = next(line for line in lines if "theirs" in line)
    assert "250.0" in theirs and "500.0" in theirs and "2.50x" in theirs and "4,000" in theirs and "50%" in theirs
    assert any("ours" in line and "1.00x" in line for line in lines)


def test_everything_is_kept(tmp_path: Path) -> None:
    rows = [row("ours", 0.1), row("theirs", 0.25)]
    path = save_bench(tmp_path / "bench", "op-1", {"title": "a title", "rounds": 3}, rows)
    assert json.loads(path.read_text()) == {"settings": {"title": "a title", "rounds": 3}, "cases": rows}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
