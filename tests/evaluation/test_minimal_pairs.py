from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hgrnx.errors import UserError
from hgrnx.evaluation.minimal_pairs import PairScores, score_pairs, summarise


def pair(good: str, bad: str) -> Any:
    return SimpleNamespace(good=good, bad=bad, phenomenon="p", field="f")


def numbers(strings: Sequence[str]) -> np.ndarray:
    """Scores a string with the number it spells."""
    return np.array([float(string) for string in strings])


FILES = {"one": [pair(f"{i}.5", f"{i}.25") for i in range(5)], "two": [pair("-1", "-2")], "three": [pair("3", "9")] * 3}


@pytest.mark.parametrize("world", [1, 2, 3, 4, 20])
def test_ranks_share_the_pairs_and_all_get_everything(world: int) -> None:
    scored: list[int] = []

    def scorer(strings: Sequence[str]) -> np.ndarray:
        scored.append(len(strings))
        return numbers(strings)

    class HandedOver(Exception):
        pass

    parts: list[Any] = []

    def hand_over(value: Any) -> list[Any]:
        parts.append(value)
        raise HandedOver

    for rank in range(world):
        with contextlib.suppress(HandedOver):
            score_pairs(FILES, scorer, rank=rank, world_size=world, gather=hand_over)
    assert sum(scored) == 2 * 9
    assert max(scored) - min(scored) <= 2
    for rank in range(world):
        scores = score_pairs(FILES, numbers, rank=rank, world_size=world, gather=lambda value: parts)
        assert list(scores) == ["one", "two", "three"]
        np.testing.assert_array_equal(scores["one"].good, np.arange(5) + 0.5)
        np.testing.assert_array_equal(scores["one"].bad, np.arange(5) + 0.25)
        np.testing.assert_array_equal(scores["three"].bad, [9, 9, 9])


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_numbers_that_are_none_are_refused_by_name(bad: str) -> None:
    files = {"fine": [pair("1", "2")], "broken": [pair("1", "0"), pair("2", bad)]}
    with pytest.raises(UserError, match=rf"broken, pair 2 \('2' / '{bad}'\)"):
        score_pairs(files, numbers)


def test_accuracy_follows_the_official_rule_and_shows_ties() -> None:
    scores = {
        "a": PairScores(np.array([1.0, 1.0, 0.0, 5.0]), np.array([0.0, 1.0, 1.0, 4.0])),  # right, tie, wrong, right
        "b": PairScores(np.array([0.0, 2.0]), np.array([1.0, 1.0])),  # wrong, right
        "c": PairScores(np.array([0.0] * 8), np.array([1.0] * 8)),  # all wrong
    }
    summary = summarise(scores, {"a": "x", "b": "x", "c": "y"})
    a, b, c = summary.files
    assert (a.accuracy, a.accuracy_ties_half, a.ties, a.items) == (0.75, 0.625, 1, 4)
    assert a.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert (b.accuracy, c.accuracy, c.stderr) == (0.5, 0.0, 0.0)
    x, y = summary.groups
    assert (x.name, x.accuracy, x.items, x.ties) == ("x", 0.625, 6, 1)
    assert (y.name, y.accuracy) == ("y", 0.0)
    # The mean of files, not of pairs (5 of 14 would be 0.357), nor of groups.
    assert summary.overall.accuracy == pytest.approx((0.75 + 0.5 + 0.0) / 3)
    assert summary.overall.accuracy_ties_half == pytest.approx((0.625 + 0.5) / 3)
    assert summary.overall.stderr == pytest.approx(math.hypot(a.stderr, b.stderr) / 3)
    assert summary.tables()["files"][0]["name"] == "a"


def test_a_model_that_says_nothing_is_seen_through() -> None:
    scores = score_pairs({"a": [pair("1", "1")] * 4}, numbers)
    overall = summarise(scores, {"a": "x"}).overall
    assert (overall.accuracy, overall.accuracy_ties_half, overall.ties) == (1.0, 0.5, 4)
