from __future__ import annotations

import pytest
from search_cases import finished, stopped

from hgrnx.config.spaces import BudgetConfig
from hgrnx.search.budget import is_spent, progress

PARAMETERS = {"training.learning_rate": 5e-3, "distill.weight": 0.5, "distill.temperature": 1.0}
TRIALS = [finished(0, PARAMETERS), stopped(1, PARAMETERS)]  # 4,000 and 1,000 words


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        ({"trials": 3}, False),
        ({"trials": 2}, True),
        ({"hours": 0.02}, False),
        ({"hours": 0.01}, True),
        ({"words": 5001}, False),
        ({"words": 5000}, True),
        ({"trials": 9, "hours": 9.0, "words": 5000}, True),
    ],
    ids=str,
)
def test_whichever_comes_first_ends_it(budget: dict[str, float], spent: bool) -> None:
    assert is_spent(BudgetConfig.model_validate(budget), TRIALS, seconds=60.0) is spent


def test_the_screen_says_what_is_left_of_each() -> None:
    budget = BudgetConfig(trials=12, hours=0.5, words=2_000_000)
    assert progress(budget, TRIALS, 600.0) == "2 of 12 trials begun, 20 of 30 minutes left, 0.01 of 2.00M words"
    assert progress(BudgetConfig(hours=0.5), TRIALS, 9000.0) == "0 of 30 minutes left"
