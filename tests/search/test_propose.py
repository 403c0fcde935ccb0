"""Proposals depend on seed and history alone, keep to the space, and get better."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
from search_cases import finished, score, stopped

from hgrnx.config.spaces import SearchPlan
from hgrnx.search.propose import propose
from hgrnx.search.trials import Trial

MakePlan = Callable[..., SearchPlan]


def play(plan: SearchPlan, count: int, trials: list[Trial] | None = None) -> list[Trial]:
    trials = list(trials or [])
    while len(trials) < count:
        parameters = propose(plan, trials)
        assert parameters is not None
        make = stopped if len(trials) % 3 == 2 else finished
        trials.append(make(len(trials), parameters))
    return trials


def parameters(trials: list[Trial]) -> list[dict[str, Any]]:
    return [trial.parameters for trial in trials]


@pytest.mark.parametrize("search", ["tpe", "random", "grid"])
def test_the_same_history_gives_the_same_proposals(make_plan: MakePlan, search: str) -> None:
    plan = make_plan(search=search)
    first = play(plan, 14)
    assert parameters(play(plan, 14)) == parameters(first)
    assert parameters(play(plan, 14, first[:6])) == parameters(first)  # a resumed search goes on as it was
    if search != "grid":
        assert parameters(play(make_plan(search=search, seed=1), 14)) != parameters(first)


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_proposals_are_different_and_keep_to_the_space(make_plan: MakePlan, search: str) -> None:
    plan = make_plan(search=search)
    found = parameters(play(plan, 20))
    assert all(found[i] != found[j] for i in range(20) for j in range(i))
    for point in found:
        assert ("distill.temperature" in point) == (point["distill.weight"] > 0)
        assert all(plan.space.parameters[key].contains(value) for key, value in point.items())
        plan.trial_recipe(point)


def test_tpe_begins_with_the_recipe_itself(make_plan: MakePlan) -> None:
    plan = make_plan()
    assert propose(plan, []) == plan.own_values()
    assert propose(make_plan(search="random"), []) != plan.own_values()


def test_tpe_finds_better_points_than_chance(make_plan: MakePlan) -> None:
    def late(search: str, seed: int) -> float:
        trials = play(make_plan(search=search, seed=seed), 30)
        return median(score(trial.parameters) for trial in trials[15:])

    tpe, chance = (median(late(search, seed) for seed in range(5)) for search in ("tpe", "random"))
    assert tpe - 0.9 < 0.7 * (chance - 0.9)


def test_a_grid_ends(make_plan: MakePlan) -> None:
    plan = make_plan(search="grid")
    trials = play(plan, len(plan.grid()))
    assert parameters(trials) == plan.grid() and propose(plan, trials) is None


def test_a_space_whose_points_were_all_tried_ends(make_plan: MakePlan) -> None:
    plan = make_plan(search="random", parameters={"distill.weight": {"kind": "choice", "options": [0.0, 0.5]}})
    trials: list[Trial] = []
    while (point := propose(plan, trials)) is not None:
        trials.append(Trial(len(trials), "x", point))
    assert sorted(point["distill.weight"] for point in parameters(trials)) == [0.0, 0.5]


def test_failed_and_running_trials_are_part_of_the_history(make_plan: MakePlan) -> None:
    plan = make_plan()
    trials = play(plan, 8)
    trials[3] = Trial(3, "run-3", trials[3].parameters, "failed", "NaN")
    trials[7] = Trial(7, "run-7", trials[7].parameters)
    point = propose(plan, trials)
    assert point is not None and point not in parameters(trials)
