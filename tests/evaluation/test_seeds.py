"""The test of recipes over seeds and paradigms: even p-values where nothing differs, and what differs is found."""

from __future__ import annotations

import numpy as np
import pytest

from hgrnx.evaluation import seeds
from hgrnx.evaluation.seeds import seed_difference

RUNS = 300


def scores(
    random: np.random.Generator, seeds: int, paradigm_P: np.ndarray, seed: float, own: float, mean: float = 0.0
) -> np.ndarray:
    """What ``seeds`` models score on paradigms: their means, a seed's effect, and what only a seed finds."""
    shape = (seeds, len(paradigm_P))
    return 0.6 + mean + paradigm_P + seed * random.standard_normal((seeds, 1)) + own * random.standard_normal(shape)


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "DRAWS", 1000)


@pytest.mark.parametrize(
    ("count", "paradigms", "between", "seed", "own"),
    [
        (3, 30, 0.00, 0.02, 0.05),  # seeds differ
        (3, 30, 0.05, 0.00, 0.05),  # paradigms favour one recipe or the other
        (3, 30, 0.05, 0.02, 0.05),  # both
        (3, 5, 0.05, 0.001, 0.01),  # few paradigms, as the Supplement has
        (5, 30, 0.00, 0.00, 0.05),  # neither: only what a seed finds in a paradigm
        (3, 1, 0.00, 0.02, 0.00),  # no paradigms: bits per byte
        (1, 30, 0.05, 0.00, 0.05),  # one seed, and seeds do not differ
    ],
)
def test_p_is_even_where_nothing_differs(count: int, paradigms: int, between: float, seed: float, own: float) -> None:
    random = np.random.default_rng(1)
    p, covered = [], 0
    for _ in range(RUNS):
        easy_P = 0.1 * random.standard_normal(paradigms)  # the same for both
        tilt_P = between * random.standard_normal((2, paradigms))
        found = seed_difference(
            scores(random, count, easy_P + tilt_P[0], seed, own), scores(random, count, easy_P + tilt_P[1], seed, own)
        )
        assert found is not None
        p.append(found.p)
        covered += found.interval[0] <= 0 <= found.interval[1]
    for level in (0.05, 0.2, 0.5, 0.8):
        share, error = np.mean(np.array(p) <= level), np.sqrt(level * (1 - level) / RUNS)
        assert share <= level + 3.3 * error, (level, share)
        assert share >= 0.55 * level - 3.3 * error, (level, share)  # and not much too careful
    assert covered >= 0.95 * RUNS - 3.3 * np.sqrt(0.05 * 0.95 * RUNS)


def test_a_real_difference_is_found_and_none_is_made_up_from_one_seed() -> None:
    random = np.random.default_rng(2)
    easy_P = 0.1 * random.standard_normal(60)
    better = scores(random, 3, easy_P, 0.003, 0.02, mean=0.04)
    worse = scores(random, 3, easy_P, 0.003, 0.02)
    found = seed_difference(better, worse)
    assert found is not None and found.knows_seeds and found.p < 0.01
    assert found.interval[0] < 0.04 < found.interval[1] and found.interval[0] > 0.02
    other = seed_difference(worse, better)
    assert other is not None and other.difference == pytest.approx(-found.difference) and other.p < 0.01
    one = seed_difference(better[:1], worse)
    assert one is not None and not one.knows_seeds and one.seeds == (1, 3)
    assert seed_difference(better[:1, :1], worse[:1, :1]) is None


def test_paradigms_are_weighted_as_in_the_score() -> None:
    first, second = np.array([[0.5, 0.9], [0.5, 0.9]]), np.array([[0.5, 0.5], [0.5, 0.5]])
    found = seed_difference(first, second, [3, 1])
    assert found is not None and found.difference == pytest.approx(0.1)
    same = seed_difference(first, first)
    assert same is not None and same.p == 1.0 and same.interval == (0.0, 0.0)
