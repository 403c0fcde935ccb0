"""Spaces of searches: the shipped ones fit their recipes, wrong ones are refused with all that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hgrnx.config import DistillRecipe, flatten
from hgrnx.config.spaces import SearchPlan, load_space, plan_search, shipped_spaces, space_yaml
from hgrnx.data.tracks import shipped_tracks
from hgrnx.errors import UserError

SPACE = """
recipe: demo
parameters:
  training.learning_rate: {kind: loguniform, low: 1e-3, high: 1e-2, grid_points: 2}
  distill.weight: {kind: choice, options: [0.0, 0.5]}
  distill.temperature: {kind: quantized, low: 1.0, high: 3.0, step: 1.0, when: {distill.weight: {above: 0}}}
budget: {trials: 3}
"""


def plan_of(tmp_path: Path, text: str, *overrides: str) -> SearchPlan:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return plan_search(load_space(str(path)), overrides=overrides)


@pytest.mark.parametrize("name", shipped_spaces())
def test_shipped_spaces_fit_their_recipes_and_tracks(name: str) -> None:
    plan = plan_search(load_space(name))
    assert plan.own_values() is not None  # so that the recipe itself is the first trial
    if name in shipped_tracks():
        assert plan.recipe.data.track == name
    for value in plan.own_values() or {}:
        assert value in flatten(plan.recipe)


def test_every_track_has_a_space() -> None:
    assert set(shipped_tracks()) <= set(shipped_spaces())


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = SPACE
    for right, wrong in (
        ("training.learning_rate", "training.lerning_rate"),
        ("[0.0, 0.5]", "[0.0, 1.5]"),
        ("{distill.weight: {above", "{distil.weight: {above"),
    ):
        text = text.replace(right, wrong)
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, text)
    for part in (
        "3 problems",
        "training.lerning_rate: there is no such key; did you mean training.learning_rate?",
        "distill.weight: Input should be less than or equal to 1 (given: 1.5)",
        "distill.temperature: it depends on distil.weight, which there is not; did you mean distill.weight?",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("low: 1e-3", "low: 0.0", "more than zero on a logarithmic scale"),
        ("low: 1e-3", "low: 1.0", "must be less than high"),
        ("step: 1.0", "step: 0.7", "number of steps"),
        ("{trials: 3}", "{}", "needs an end"),
        ("kind: choice", "kind: choise", "distill.weight"),
        ("budget:", "budgt:", "budgt: there is no such key; did you mean budget?"),
        ("{above: 0}", "{above: 0, one_of: [1]}", "a condition is either"),
    ],
)
def test_spaces_that_make_no_sense_are_refused(tmp_path: Path, old: str, new: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        plan_of(tmp_path, SPACE.replace(old, new))


def test_values_at_both_ends_are_tried(tmp_path: Path) -> None:
    text = SPACE.replace(
        "distill.weight: {kind", "training.batch_size: {kind: int, low: 16, high: 17}\n  distill.weight: {kind"
    )
    with pytest.raises(UserError, match="training.batch_size=17 must be a multiple of launch.num_workers=2"):
        plan_of(tmp_path, text)


def test_conditions_must_look_back(tmp_path: Path) -> None:
    lines = SPACE.splitlines()
    lines[4], lines[5] = lines[5], lines[4]
    with pytest.raises(UserError, match="distill.weight, which must stand before it"):
        plan_of(tmp_path, "\n".join(lines))


def test_conditional_parameters_take_part_only_where_they_matter(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SPACE)
    assert [key for key, _ in plan.active({"distill.weight": 0.5})] == list(plan.space.parameters)
    assert "distill.temperature" not in dict(plan.active({"distill.weight": 0.0}))
    grid = plan.grid()
    assert len(grid) == 2 * (1 + 3)
    assert all(("distill.temperature" in point) == (point["distill.weight"] > 0) for point in grid)
    assert {point["training.learning_rate"] for point in grid} == {1e-3, 1e-2}


def test_fixed_keys_are_not_searched(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SPACE, "distill.weight=0.3", "seed=4")
    assert list(plan.space.parameters) == ["training.learning_rate", "distill.temperature"]
    assert plan.recipe.seed == 4 and plan.left_out == ("distill.weight is fixed",)
    # The condition is on the recipe's own value now.
    assert dict(plan.active({})).keys() == plan.space.parameters.keys()
    assert "distill.temperature" not in dict(plan_of(tmp_path, SPACE, "distill.weight=0.0").active({}))


def test_without_distillation_its_parameters_are_left_out() -> None:
    plan = plan_search(load_space("strict-small"), recipe="hgrn2-360m")
    assert not any(key.startswith("distill.") for key in plan.space.parameters)
    assert any("does not distil" in sentence for sentence in plan.left_out)


def test_trials_are_the_recipe_with_their_values(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SPACE + "words: 1000\nfixed: {evaluation.pairs_per_file: 3}\n")
    recipe = plan.trial_recipe({"distill.temperature": 3.0})
    assert isinstance(recipe, DistillRecipe)
    changed = {key for key, value in flatten(recipe).items() if flatten(plan.recipe)[key] != value}
    assert changed == {"distill.temperature"}
    assert recipe.training.duration == "1000 words" and recipe.evaluation.pairs_per_file == 3


def test_trials_may_be_launched_otherwise_than_their_teacher(tmp_path: Path) -> None:
    text = SPACE + "trials: {launch.num_workers: 1, launch.engine: torch}\n"
    plan = plan_of(tmp_path, text, "launch.engine=deepspeed")  # the command line has the last word
    assert plan.recipe.launch.num_workers == 2
    launch = plan.trial_recipe({}).launch
    assert (launch.num_workers, launch.engine) == (1, "deepspeed")
    other = plan_search(load_space(str(tmp_path / "space.yaml")), recipe="strict-small-cpu")
    assert other.trial_recipe({}).launch == other.recipe.launch
    with pytest.raises(UserError, match="trials: training.seq_len is no key of the recipe's launch"):
        plan_of(tmp_path, SPACE + "trials: {training.seq_len: 1}\n")


def test_a_space_survives_the_way_to_yaml_and_back(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SPACE)
    (tmp_path / "copy.yaml").write_text(space_yaml(plan.space), encoding="utf-8")
    assert load_space(str(tmp_path / "copy.yaml")) == plan.space


def test_a_recipe_that_does_not_distil_has_nothing_of_it() -> None:
    space = load_space("strict-small")
    assert flatten(plan_search(space).recipe)["distill.top_k"] == space.fixed["distill.top_k"]
    plan = plan_search(space, recipe="hgrn2-360m")
    for key in ("distill.top_k", "distill.weight", "distill.temperature"):
        assert f"{key}: the recipe hgrn2-360m does not distil" in plan.left_out
    assert "training.learning_rate" in plan.space.parameters
