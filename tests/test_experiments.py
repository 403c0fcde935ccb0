"""The shipped experiments: every recipe of every scale is whole, and what an experiment calls equal is equal."""

from __future__ import annotations

import pytest

from hgrnx.config import DistillRecipe, Recipe, load_recipe
from hgrnx.config.experiments import ExperimentConfig, load_experiment, plan_experiment, shipped_experiments
from hgrnx.config.files import validated
from hgrnx.errors import UserError
from hgrnx.models import empty_model

ALL = [(name, str(scale)) for name in shipped_experiments() for scale in load_experiment(name).scales]


def parameters(recipe: Recipe) -> int:
    return empty_model(recipe.model, recipe.data.vocab_size).parameter_counts()["other"]


def test_each_experiment_has_every_scale() -> None:
    beyond_the_paper = {"objectives", "training", "ablations"}
    assert set(shipped_experiments()) == {"table2", "dynamics", "data", "distill", "lr-sweep"} | beyond_the_paper
    for name in shipped_experiments():
        assert set(load_experiment(name).scales) == {"demo", "cpu", "gpu", "paper"}


@pytest.mark.parametrize(("name", "scale"), ALL)
def test_every_scale_is_a_set_of_whole_recipes(name: str, scale: str) -> None:
    plan = plan_experiment(name, scale)
    names = [recipe.name for arm in plan.arms.values() for recipe in arm.recipes.values()]
    assert len(names) == len(set(names)) == len(plan.arms) * len(plan.seeds)
    if scale == "cpu" and name != "lr-sweep":
        assert len(plan.seeds) >= 3


@pytest.mark.parametrize("scale", ["demo", "cpu", "gpu"], ids="table2-{}".format)
def test_table2_compares_equals(scale: str) -> None:
    plan = plan_experiment("table2", scale)
    recipes = [recipe for arm in plan.arms.values() for recipe in arm.recipes.values()]
    sizes = {parameters(recipe) for recipe in recipes}
    assert plan.parameters_within == 0.03 and max(sizes) <= 1.03 * min(sizes)
    # everything but the architecture, the learning rate and how it is computed
    same = {
        (
            recipe.data.model_dump_json(),
            recipe.training.model_copy(update={"learning_rate": 1.0}).model_dump_json(),
        )
        for recipe in recipes
    }
    assert len(same) == 1
    assert {recipe.model.architecture for recipe in recipes} == {"hgrn2", "transformer", "lstm", "xlstm", "mamba"}


def test_the_sweep_tries_the_models_of_table2() -> None:
    swept = {arm.family: arm.recipes[0].model for arm in plan_experiment("lr-sweep", "cpu").arms.values()}
    assert swept == {name: arm.recipes[0].model for name, arm in plan_experiment("table2", "cpu").arms.items()}


def test_ways_of_training_are_those_of_the_shipped_recipes() -> None:
    arms = plan_experiment("training", "cpu").arms
    muon, distilled = load_recipe("strict-small-muon"), load_recipe("strict-small-cpu")
    assert isinstance(muon, Recipe) and isinstance(distilled, DistillRecipe)
    for arm, shipped in (("twice", muon), ("large-batch", distilled.twin_recipe())):
        tried = arms[arm].recipes[0]
        assert (tried.model, tried.data) == (shipped.model, shipped.data)
        habits = {"checkpoint_every": tried.training.checkpoint_every, "log_every": tried.training.log_every}
        assert tried.training == shipped.training.model_copy(update=habits)


def test_students_and_twins_begin_alike_and_teachers_do_not() -> None:
    plan = plan_experiment("distill", "demo")
    for seed in plan.seeds:
        teacher, student, twin = (plan.arms[arm].recipes[seed] for arm in ("teacher", "student-2", "twin"))
        assert student.seed == twin.seed == seed and teacher.seed not in plan.seeds
        assert student.training == twin.training == teacher.training and student.model == twin.model
        assert student.distill is not None and twin.distill is None


@pytest.mark.parametrize("name", ["distill", "objectives"])
def test_no_student_begins_as_its_teacher_and_all_read_the_same_text(name: str) -> None:
    plan = plan_experiment(name, "cpu")
    for arm in plan.arms.values():
        for seed, recipe in arm.recipes.items():
            teachers = [plan.arms[teacher].recipes[seed] for teacher in arm.teachers]
            assert recipe.seed not in {teacher.seed for teacher in teachers}
            assert all((teacher.data, teacher.training) == (recipe.data, recipe.training) for teacher in teachers)
            assert recipe.data.words and recipe.training.duration == "1 epoch"


def test_students_of_different_objectives_differ_in_nothing_else() -> None:
    plan = plan_experiment("objectives", "cpu")
    students = [arm.recipes[0] for name, arm in plan.arms.items() if name not in {"teacher", "second", "again"}]
    same = {recipe.model_copy(update={"name": "", "distill": None}).model_dump_json() for recipe in students}
    assert len(same) == 1 and len({str(recipe.distill) for recipe in students}) == len(students) - 1
    assert plan.arms["ensemble"].recipes[0].distill == plan.arms["student"].recipes[0].distill


def test_ablations_begin_from_the_undistilled_run_of_objectives() -> None:
    base, twin = plan_experiment("ablations", "cpu").arms["base"], plan_experiment("objectives", "cpu").arms["twin"]
    for seed, recipe in base.recipes.items():
        assert recipe.model_copy(update={"name": ""}) == twin.recipes[seed].model_copy(update={"name": ""})


@pytest.mark.parametrize("scale", ["demo", "cpu", "gpu"], ids="ablations-{}".format)
def test_every_ablation_turns_a_switch(scale: str) -> None:
    arms = plan_experiment("ablations", scale).arms
    different = {arm.recipes[0].model_copy(update={"name": ""}).model_dump_json() for arm in arms.values()}
    assert len(different) == len(arms) == 8


def test_arms_seeds_and_keys_are_chosen() -> None:
    plan = plan_experiment(
        "distill",
        "demo",
        seeds=[3],
        arms=["student-2"],
        overrides=["training.duration=20 steps", "arms.student.distill.weight=0.25", "arms.teacher.seed=9"],
    )
    assert list(plan.arms) == ["teacher", "student-2"] and plan.comparisons == ()
    student, teacher = plan.arms["student-2"].recipes[3], plan.arms["teacher"].recipes[3]
    assert student.distill is not None and (student.distill.weight, student.distill.temperature) == (0.25, 2.0)
    assert student.training.duration == "20 steps" and (teacher.seed, student.seed) == (9, 3)


def test_all_problems_are_raised_at_once() -> None:
    with pytest.raises(UserError) as error:
        plan_experiment(
            "table2",
            "cpu",
            arms=["hgrn", "lstm", "mamba"],
            overrides=["training.learnin_rate=1", "arms.mamba.model.state_sise=8", "arms.gru.seed=1"],
        )
    text = str(error.value)
    assert "no arm 'hgrn'. Did you mean 'hgrn2'?" in text and "arms.gru.seed=1: There is no arm 'gru'" in text
    assert text.count("did you mean training.learning_rate?") == 2 and "did you mean model.state_size?" in text
    with pytest.raises(UserError, match="Did you mean 'table2'"):
        plan_experiment("tabel2", "cpu")
    with pytest.raises(UserError, match="no scale 'large'"):
        plan_experiment("table2", "large")


def test_an_experiment_that_contradicts_itself_is_refused() -> None:
    arms = {"b": {"title": "b", "teachers": ["a", "c"]}, "a": {"title": "a"}}
    scale = {"seeds": [0, 0], "arms": arms, "comparisons": [["a", "d"]]}
    with pytest.raises(UserError) as error:
        validated(ExperimentConfig, {"title": "x", "question": "y", "scales": {"cpu": scale}}, "experiment x")
    for part in ("no arm 'd'", "arm a must stand before b", "no arm 'c'", "seeds: one is named twice"):
        assert part in str(error.value)
