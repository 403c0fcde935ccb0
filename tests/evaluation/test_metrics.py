from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrnx.evaluation.metrics import count_table, score_table

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
many = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def columns(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [right for right, _ in pairs], [predicted for _, predicted in pairs]


@given(rows)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs: list[tuple[int, int]]) -> None:
    right, predicted = columns(pairs)
    both = sum(pair == (1, 1) for pair in pairs)
    precision = both / sum(predicted) if any(predicted) else 0.0
    recall = both / sum(right) if any(right) else 0.0
    wanted = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert score_table("f1", count_table(right, predicted))[0] == pytest.approx(wanted)


@given(many)
def test_correlation_of_two_labels_is_pearsons_and_accuracy_the_share(pairs: list[tuple[int, int]]) -> None:
    right, predicted = columns(pairs)
    table = count_table(right, predicted)
    assert table.sum() == len(pairs)
    accuracy, stderr = score_table("accuracy", table)
    assert accuracy == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert stderr == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / len(pairs)))
    value = score_table("mcc", table)[0]
    # R_K: the correlation of one-hot labels, summed over them (Gorodkin 2004).
    a, b = np.eye(4)[right], np.eye(4)[predicted]
    a, b = a - a.mean(0), b - b.mean(0)
    spread = math.sqrt((a * a).sum() * (b * b).sum())
    assert value == pytest.approx((a * b).sum() / spread if spread > 1e-9 else 0.0, abs=1e-9)
    if max(right + predicted) == 1 and len(set(right)) == len(set(predicted)) == 2:
        assert value == pytest.approx(np.corrcoef(right, predicted)[0, 1], abs=1e-9)


def test_metrics_are_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    for labels in (2, 3):
        right = generator.integers(0, labels, 200).tolist()
        predicted = [
            value if draw < 0.6 else int(draw * 10) % labels for value, draw in zip(right, generator.random(200))
        ]
        table = count_table(right, predicted)
        assert score_table("mcc", table)[0] == pytest.approx(sklearn.matthews_corrcoef(right, predicted))
        if labels == 2:
            assert score_table("f1", table)[0] == pytest.approx(sklearn.f1_score(right, predicted))


@pytest.mark.parametrize("metric", ["f1", "mcc"])
def test_standard_errors_are_those_of_new_rows(metric: str) -> None:
    generator = np.random.default_rng(1)
    cells = np.array([[0.3, 0.1], [0.2, 0.4]])
    tables = generator.multinomial(400, cells.ravel(), size=400).reshape(-1, 2, 2)
    scores = [score_table(metric, table) for table in tables[:40]]  # type: ignore[arg-type]
    spread = np.std([score_table(metric, table)[0] for table in tables])  # type: ignore[arg-type]
    assert np.mean([stderr for _, stderr in scores]) == pytest.approx(spread, rel=0.15)
