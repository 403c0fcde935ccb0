from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrnx.evaluation.metrics import count_table, score_table
from hgrnx.evaluation.significance import mcnemar, paired_task


def asked(right: np.ndarray, seed: int = 0, data: str = "d") -> dict[str, Any]:
    """A subtask of two options in which the items of ``right`` were right."""
    scores = np.where(np.asarray(right)[:, None], [1.0, 0.0], [0.0, 1.0])
    return {
        "data": data,
        "right": [0] * len(scores),
        "chosen": (1 - np.asarray(right)).tolist(),
        "scores": scores.tolist(),
    }


def exact_mid_p(better: int, worse: int) -> float:
    from math import comb

    count, least = better + worse, min(better, worse)
    tail = sum(comb(count, i) for i in range(least + 1))
    return min(1.0, (2 * tail - comb(count, least)) / 2**count)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_mid_p_is_the_binomial_sum(better: int, worse: int) -> None:
    assert mcnemar(better, worse) == pytest.approx(exact_mid_p(better, worse), rel=1e-9)
    assert mcnemar(better, worse) == mcnemar(worse, better)


def test_mcnemar_of_many_items() -> None:
    assert mcnemar(10_000, 10_000) == pytest.approx(1.0)
    assert mcnemar(10_000, 10_400) == pytest.approx(0.0051, abs=0.0003)  # normal: z = 400 / sqrt(20400) = 2.80
    assert mcnemar(0, 5000) < 1e-300


def test_interval_is_that_of_the_paired_difference() -> None:
    generator = np.random.default_rng(3)
    easy = generator.random((2, 900)) < 0.3
    first = {name: asked((easy[i] | (generator.random(900) < 0.5)).astype(int)) for i, name in enumerate("ab")}
    second = {name: asked((easy[i] | (generator.random(900) < 0.4)).astype(int)) for i, name in enumerate("ab")}
    found = paired_task("blimp", first, second)
    assert found is not None and found.items == 1800
    gaps = [np.array(second[name]["chosen"]) - np.array(first[name]["chosen"]) for name in "ab"]
    assert found.difference == pytest.approx(np.mean([gap.mean() for gap in gaps]))
    stderr = np.sqrt(sum(gap.var() / 900 for gap in gaps)) / 2
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * stderr, rel=0.1)
    assert (low + high) / 2 == pytest.approx(found.difference, abs=0.2 * stderr)
    assert (found.better, found.worse) == (sum((gap > 0).sum() for gap in gaps), sum((gap < 0).sum() for gap in gaps))
    assert found.subtask_interval is not None


def test_subtasks_that_disagree_widen_the_interval() -> None:
    every = np.ones(400, dtype=int)
    first = {"a": asked(every), "b": asked(0 * every), "c": asked(every)}
    second = {"a": asked(0 * every), "b": asked(every), "c": asked(every)}
    found = paired_task("blimp", first, second)
    assert found is not None and found.subtask_interval is not None
    assert found.difference == 0 and found.interval == (0, 0) and found.p == 1.0
    assert found.subtask_interval[0] < -0.5 and found.subtask_interval[1] > 0.5


def test_bear_counts_items_and_templates() -> None:
    def relation(chosen: list[list[int]]) -> dict[str, Any]:
        scores = np.array([[[float(i == option) for i in range(3)] for option in row] for row in chosen])
        return {"data": "d", "right": [0] * scores.shape[1], "chosen": chosen, "scores": scores.tolist()}

    first = {"P1": relation([[0, 0, 1], [0, 1, 1]]), "P2": relation([[0], [0]])}
    second = {"P1": relation([[1, 0, 1], [1, 0, 1]]), "P2": relation([[0], [0]])}
    found = paired_task("bear", first, second)
    assert found is not None
    assert found.difference == pytest.approx((1.0 - 0.5 + 0.0 + 0.0) / 4)
    assert (found.better, found.worse, found.items) == (1, 1, 4)


def test_f1_and_correlation_are_compared_as_such() -> None:
    generator = np.random.default_rng(0)
    right = generator.integers(0, 2, 500)
    guesses = [np.where(generator.random(500) < share, right, 1 - right) for share in (0.8, 0.7)]
    for name, metric in (("cola", "mcc"), ("mrpc", "f1"), ("rte", "accuracy")):
        one, two = ({name: {"data": "d", "right": right.tolist(), "chosen": guess.tolist()}} for guess in guesses)
        found = paired_task("glue", one, two)
        assert found is not None and found.subtask_interval is None
        scores = [score_table(metric, count_table(right.tolist(), guess.tolist()))[0] for guess in guesses]  # type: ignore[arg-type]
        assert found.difference == pytest.approx(scores[0] - scores[1])
        assert found.interval[0] < found.difference < found.interval[1]


def test_other_items_are_not_compared() -> None:
    one = {"a": asked(np.ones(5, dtype=int))}
    assert paired_task("blimp", one, {"a": asked(np.ones(5, dtype=int), data="other")}) is None
    assert paired_task("blimp", one, {}) is None
    assert paired_task("blimp", one, {**one, "b": one["a"]}) is None
    assert paired_task("blimp", one, one) is not None
