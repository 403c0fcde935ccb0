"""Estimates come from steps that were really taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from hgrnx.config import AnyRecipe, ModelConfig, recipe_from_dict
from hgrnx.doctor import estimate as module
from hgrnx.doctor.estimate import estimate
from hgrnx.errors import UserError
from hgrnx.models import LanguageModel

pytestmark = pytest.mark.slow  # processes of their own


def recipe(**changes: object) -> AnyRecipe:
    model = {"hidden_size": 32, "num_hidden_layers": 2, "expand_ratio": 16}
    content: dict[str, object] = {
        "name": "try",
        "data": {"vocab_size": 400},
        "teacher": {**model, "num_hidden_layers": 4},
        "student": model,
        "training": {"duration": "10 steps", "batch_size": 8, "seq_len": 32, "precision": "fp32"},
        "launch": {"engine": "torch"},
    }
    return recipe_from_dict({**content, **changes})


def test_every_stage_is_tried_by_workers_together() -> None:
    launch = {"num_workers": 2, "engine": "torch"}
    found = {one.stage: one for one in estimate(recipe(launch=launch), None, 8.0)}
    assert list(found) == ["teacher", "student", "twin"]
    assert found["teacher"].parameters > found["student"].parameters == found["twin"].parameters
    for one in found.values():
        assert one.steps == 10 and one.seconds == pytest.approx(10 * 8 * 32 / one.tokens_per_second)
        assert 100 < one.memory_mb < 4000


def test_a_stored_teacher_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not even built."""
    built: list[int] = []
    build = module.build_model

    def counting(config: ModelConfig, *arguments: int, **options: int) -> LanguageModel:
        built.append(config.num_hidden_layers)
        return build(config, *arguments, **options)

    monkeypatch.setattr(module, "build_model", counting)
    for distill, expected in (({"top_k": 1000}, [2]), ({}, [4, 2])):
        built.clear()
        _, student, teachers = list(module._stages(recipe(distill=distill)))[1]
        seconds, memory_mb = module._try_steps(student.model_dump(mode="json"), teachers, 400, tmp_path, 0, 1)
        assert built == expected and seconds > 0 and memory_mb > 0


def test_without_data_words_tell_no_time() -> None:
    training = {"duration": "1M words", "batch_size": 8, "seq_len": 32, "precision": "fp32"}
    (first, *_) = estimate(recipe(training=training), None, 8.0)
    assert first.steps is None and first.seconds is None and first.tokens_per_second > 0


def test_what_cannot_fit_is_refused_before_it_is_tried() -> None:
    with pytest.raises(UserError, match=r"teacher: .* need .* this machine has 0\.0001 GB"):
        next(estimate(recipe(), None, 0.0001))
