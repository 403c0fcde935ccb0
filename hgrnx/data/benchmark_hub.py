"""Benchmarks that the Hugging Face hub has."""

from __future__ import annotations

from pathlib import Path

from hgrnx.data.hub import Purpose, download
from hgrnx.data.tracks import HubSource
from hgrnx.errors import UserError

HUB_BENCHMARKS = {
    "bear": HubSource(dataset="lm-pub-quiz/BEAR", files=("BEAR/*", "relation_info.json")),
    "ewok": HubSource(dataset="ewok-core/ewok-core-1.0", files=("*test*.parquet",)),
}
"""EWoK's is gated, and whole: the BabyLM pipeline leaves out the items with rare words."""


def fetch_benchmark(name: str) -> Path:
    """Download a benchmark, unless it was before; returns its folder.

    Raises:
        UserError: the hub does not have it in the challenge's form, or cannot be reached.
    """
    if name not in HUB_BENCHMARKS:
        raise UserError(
            f"The hub does not have the challenge's form of it, only of {' and '.join(HUB_BENCHMARKS)}: give the "
            "folder of the challenge's evaluation data with --data."
        )
    purpose = Purpose(f"The benchmark {name}", "Or get it some other way, and give its folder with --data.")
    return download(HUB_BENCHMARKS[name], purpose)[0]
