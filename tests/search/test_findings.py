"""What came out of a search."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from search_cases import METRIC, finished, stopped

from hgrnx.config.spaces import Objective, SearchPlan
from hgrnx.search.findings import (
    best_trial,
    common_reason,
    comparable_scores,
    importances,
    measure_cost,
    pareto_front,
)
from hgrnx.search.propose import propose
from hgrnx.search.trials import Trial

RATE, WEIGHT, TEMPERATURE = "training.learning_rate", "distill.weight", "distill.temperature"
LOW = Objective()


def with_values(number: int, **values: float) -> Trial:
    return Trial(number, f"run-{number}", {}, "finished", values=values)


def test_the_best_is_a_finished_one() -> None:
    trials = [finished(0, {RATE: 1e-3, WEIGHT: 0.5}), finished(1, {RATE: 5e-3, WEIGHT: 0.5})]
    early = stopped(2, {RATE: 5e-3, WEIGHT: 0.0})
    early.points[0][METRIC] = 0.1  # of fewer words and documents: no match for a final score
    assert best_trial([*trials, early], LOW) is trials[1]
    assert best_trial([*trials, early], Objective(metric=METRIC, mode="max")) is trials[0]
    assert best_trial([early], LOW) is None


def test_the_front_has_what_nothing_beats() -> None:
    objectives = [Objective(metric="a", mode="min"), Objective(metric="b", mode="max")]
    values = [(1.0, 1.0), (2.0, 5.0), (2.0, 4.0), (3.0, 5.0), (1.0, 1.0), (0.5, 0.0)]
    trials = [with_values(number, a=a, b=b) for number, (a, b) in enumerate(values)]
    assert [trial.number for trial in pareto_front(trials, objectives)] == [0, 1, 4, 5]


def test_the_common_reason() -> None:
    trials = [Trial(i, "x", {}, "failed", reason) for i, reason in enumerate(["NaN", "memory", "NaN"])]
    assert common_reason(trials) == "2 of 3: NaN"


def test_scores_are_compared_after_as_many_words() -> None:
    trials = [
        finished(0, {RATE: 1e-3, WEIGHT: 0.5}),
        stopped(1, {RATE: 9e-3, WEIGHT: 0.5}),
        Trial(2, "x", {}, "failed", "NaN", [{"words": 1000.0, METRIC: 7.0}]),
        finished(3, {RATE: 2e-3, WEIGHT: 0.5}, reused=True),
    ]
    trials[3].points = []  # it was evaluated after other numbers of words
    found = comparable_scores(trials, LOW)
    assert found is not None and found.words == 1000
    assert found.scores == {number: trials[number].points[0][METRIC] for number in (0, 1)}
    assert comparable_scores(trials[:1], LOW) is None


@pytest.mark.parametrize("some_stopped", [False, True])
def test_importance_finds_what_matters(make_plan: Callable[..., SearchPlan], some_stopped: bool) -> None:
    plan = make_plan(search="random")
    trials: list[Trial] = []
    for number in range(30):
        parameters = propose(plan, trials)
        assert parameters is not None
        make = stopped if some_stopped and number % 2 else finished
        trials.append(make(number, parameters))
    shares = importances(plan, trials)
    assert next(iter(shares)) == RATE and shares[RATE] > 0.7
    assert shares[TEMPERATURE] < 0.2 and set(shares) == {RATE, WEIGHT, TEMPERATURE}
    assert importances(plan, trials[:3]) == {}


def test_the_cost_counts_everything_against_full_trainings() -> None:
    full = [finished(number, {RATE: 1e-3, WEIGHT: 0.5}) for number in range(2)]  # 40 s each
    full[1].seconds = 60.0
    trials = [
        *full,
        *(stopped(number, {RATE: 1e-3, WEIGHT: 0.5}) for number in range(2, 8)),  # 12 s each
        Trial(8, "x", {}, "failed", "NaN", seconds=5.0),
        finished(9, {RATE: 1e-3, WEIGHT: 0.5}, reused=True),  # cost nothing here
    ]
    cost = measure_cost(trials, 4000, 177.0, teacher_seconds=38.0, signal_seconds=0.0, live_ratio=None)
    assert cost.trials == 8 and cost.full_seconds == 50.0
    assert cost.spent == 40 + 60 + 6 * 12 + 5 + 38
    assert cost.share == pytest.approx(215 / (8 * 50))
    assert cost.share_without_teacher == pytest.approx(177 / (8 * 50))
    assert "54% of 8 full distillations" in cost.sentence() and "trials 0, 1)" in cost.sentence()
    assert cost.sentence().endswith("; 44% without the teacher's training, which they need too.")
    unknown = measure_cost(trials, 5000, 177.0, 30.0, 0.0, None)
    assert unknown.share is None and "no full training was measured" in unknown.sentence()
    # From stored signals: of the 50 s, 30 were steps; beside the teacher these would have been 45.
    stored = measure_cost(trials, 4000, 177.0, 30.0, 8.0, 1.5)
    assert stored.full_seconds == 65.0 and "steps 1.50 times as long" in stored.sentence()
    assert measure_cost(trials, 4000, 177.0, 30.0, 8.0, None).share is None
    # Two at a time: one after the other, each alone would have taken half as long.
    pairs = measure_cost(trials, 4000, 177 / 2, 30.0, 8.0, 1.5)
    assert pairs.full_seconds == 32.5 and "2.0 trials ran at once" in pairs.sentence()
    assert pairs.share == pytest.approx((177 / 2 + 38) / (8 * 32.5))
