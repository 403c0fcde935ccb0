from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from hgrnx.config import DataConfig
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.ledger import ledger, print_ledger
from hgrnx.data.prepare import prepare


def test_rows_add_up(small: PreparedDataset) -> None:
    rows = ledger(small.manifest)
    assert [(row["source"], row["split"]) for row in rows] == [
        ("a.dev", "dev"),
        ("a.train", "train"),
        ("b.train", "train"),
        ("total", "train"),
        ("total", "dev"),
    ]
    for key in ("documents", "words", "bytes", "tokens", "available_words"):
        assert rows[1][key] + rows[2][key] == rows[3][key] > 0
    assert rows[3]["tokens"] == len(small.split("train").tokens)
    assert rows[1]["share"] + rows[2]["share"] == rows[3]["share"] == 1


def test_printed_ledger_tells_what_was_left_out(write: Callable[..., Path], tmp_path: Path) -> None:
    source = write({"a.train": "one two\r\n\r\n\n" * 30, "a.dev": "b\0b\n"})
    config = DataConfig(track="strict-small", source=str(source), vocab_size=5_000)
    out = io.StringIO()
    print_ledger(prepare(config, tmp_path / "data").manifest, Console(file=out, width=120))
    text = " ".join(out.getvalue().split())
    for part in (
        "(5,000 asked for; the text yields no more), trained on the 60 training words",
        "blank lines left out: 60",
        "carriage returns at line ends dropped: 60",
        "NUL characters kept: 1",
    ):
        assert part in text
    assert "byte order" not in text
