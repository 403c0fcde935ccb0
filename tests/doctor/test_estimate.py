"""Estimates come from steps that were really taken."""

from __future__ import annotations

import pytest

from hgrnx.config import AnyRecipe, recipe_from_dict
from hgrnx.doctor.estimate import estimate
from hgrnx.errors import UserError

pytestmark = pytest.mark.slow  # processes of their own


def recipe(**changes: object) -> AnyRecipe:
    model = {"hidden_size": 32, "num_hidden_layers": 2, "expand_ratio": 16}
    content: dict[str, object] = {
        "name": "try",
        "data": {"vocab_size": 400},
        "teacher": {**model, "num_hidden_layers": 4},
        "student": model,
        "training": {"duration": "10 steps", "batch_size": 8, "seq_len": 32, "precision": "fp32"},
    }
    return recipe_from_dict({**content, **changes})


def test_every_stage_is_tried() -> None:
    found = {one.stage: one for one in estimate(recipe(), None, 8.0)}
    assert list(found) == ["teacher", "student", "twin"]
    assert found["teacher"].parameters > found["student"].parameters == found["twin"].parameters
    for one in found.values():
        assert one.steps == 10 and one.seconds == pytest.approx(10 * 8 * 32 / one.tokens_per_second)
        assert 100 < one.memory_mb < 4000


def test_a_stored_teacher_is_not_run() -> None:
    """One that ran would take most of the time."""
    large = {"hidden_size": 256, "num_hidden_layers": 6, "expand_ratio": 64}
    found = [
        {one.stage: one for one in estimate(recipe(teacher=large, distill=distill), None, 8.0)}["student"]
        for distill in ({"top_k": 1000}, {})
    ]
    assert found[0].tokens_per_second > 2 * found[1].tokens_per_second


def test_without_data_words_tell_no_time() -> None:
    training = {"duration": "1M words", "batch_size": 8, "seq_len": 32, "precision": "fp32"}
    (first, *_) = estimate(recipe(training=training), None, 8.0)
    assert first.steps is None and first.seconds is None and first.tokens_per_second > 0


def test_what_cannot_fit_is_refused_before_it_is_tried() -> None:
    with pytest.raises(UserError, match=r"teacher: .* need .* this machine has 0\.0001 GB"):
        next(estimate(recipe(), None, 0.0001))
