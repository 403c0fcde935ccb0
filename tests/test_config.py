"""Recipes: every problem at once, by name; values that survive the way to YAML and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hgrnx.config import (
    ARCHITECTURES,
    DataConfig,
    DistillRecipe,
    HGRN2Config,
    MambaConfig,
    Recipe,
    TrainingConfig,
    TransformerConfig,
    durations,
    flatten,
    load_recipe,
    parse_duration,
    recipe_from_dict,
    run_name,
    shipped_recipes,
    to_yaml,
)
from hgrnx.config.recipes import ADDED_LATER
from hgrnx.errors import UserError


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ntraining:\n  batch_sizze: 3\n  learning_rate: fast\nmodel:\n  hidden_size: 100\n")
    with pytest.raises(UserError) as caught:
        load_recipe(path, ["distil.temperature=2", "seed=true", "nonsense"])
    message = str(caught.value)
    for part in (
        "6 problems",
        "training.batch_sizze: there is no such key; did you mean training.batch_size?",
        "training.learning_rate: Input should be a valid number",
        "hidden_size=100 must be a multiple of expand_ratio=64",
        "distil: there is no such key; did you mean distill?",
        "seed: Input should be a valid integer (given: true)",
        "'nonsense': write overrides as key=value",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("- a\n", "not a mapping"),
        ("name: x\nname: y\n", "line 2: not valid YAML: the key 'name' is written twice"),
        ("name: [\n", "not valid YAML"),
        ("name: x\ntraining:\n  seq_len: '512'\n", "training.seq_len: Input should be a valid integer"),
        ("name: x\ntraining:\n  duration: 5 years\n", "'5 years' is not a duration"),
        (
            "name: x\ntraining:\n  batch_size: 9\nlaunch:\n  num_workers: 2\n",
            "must be a multiple of launch.num_workers",
        ),
        ("name: x\nlaunch:\n  micro_batch_size: 7\n", "launch.micro_batch_size=7 must divide"),
        ("name: x\nstudent: {}\n", "there is no teacher"),
        ("name: x\nteacher: {}\ndistill:\n  teachers: [a]\n", "there are two teachers"),
        ("name: 'a b'\n", "name: String should match pattern"),
        (
            "name: x\nmodel: {architecture: mmba}\n",
            "model.architecture: there is no architecture 'mmba'; did you mean mamba? (known: hgrn2, transformer, ",
        ),
        ("name: x\nmodel: {architecture: 3}\n", "model.architecture: there is no architecture '3' (known: "),
        ("name: x\nmodel: mamba\n", "model: Input should be an object"),
        (
            "name: x\nmodel: {architecture: mamba, hiden_size: 3}\n",
            "model.hiden_size: architecture mamba has no such key; did you mean model.hidden_size?",
        ),
        (
            "name: x\nteacher: {architecture: lstm, expand_ratio: 64}\n",
            "teacher.expand_ratio: architecture lstm has no such key (a key of hgrn2)",
        ),
        (
            "name: x\nmodel: {architecture: transformer, num_hidden_layers: '3'}\n",
            'model.num_hidden_layers: Input should be a valid integer (given: "3")',
        ),
        (
            "name: x\nmodel: {architecture: transformer, num_attention_heads: 3}\n",
            "model: hidden_size=256 must be a multiple of 2 * num_attention_heads=6",
        ),
        ("name: x\nmodel: {architecture: xlstm, num_heads: 3}\n", "hidden_size=256 must be even and a multiple of"),
        ("name: x\nmodel: {architecture: xlstm, slstm_at: [1, 12]}\n", "from 0 to 11, once each, not [12] among them"),
        ("name: x\nmodel: {architecture: xlstm, slstm_at: [1, 1]}\n", "once each, not a place named twice"),
        ("name: x\nmodel: {architecture: lstm, num_hidden_layers: 1}\n", "dropout acts between layers"),
        ("name: x\nevaluation: {tasks_every: milestone}\n", "'milestone' is not a duration"),
        (
            "name: x\nevaluation: {best: dev/bits_per_bite}\n",
            "evaluation: there is no metric 'dev/bits_per_bite' for best; did you mean dev/bits_per_byte?",
        ),
        (
            "name: x\nevaluation: {best: tasks/ewok/accuracy, tasks: [blimp]}\n",
            "did you mean tasks/blimp/accuracy",
        ),
        ("name: x\nevaluation: {best: tasks/mean/accuracy, tasks: [bear, blimp]}\n", "no metric 'tasks/mean/accuracy'"),
        ("name: x\nevaluation: {best: blimp}\n", "known: dev/bits_per_byte, dev/loss, pairs/accuracy, "),
        (
            "name: x\nevaluation: {best: pairs/accuracy, pairs_per_file: 3}\n",
            "but pairs_per_file is 3 and the end uses all",
        ),
        ("name: x\nevaluation: {best: dev/loss, dev_documents: 3}\n", "is 3 and the end uses all. Leave dev_documents"),
        ("name: x\nevaluation: {best: dev/loss, final_dev_documents: 3}\n", "is all and the end uses 3. Set both"),
    ],
)
def test_refusals(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(UserError, match=".*") as caught:
        load_recipe(write(tmp_path, text))
    assert part in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_survives_the_way_to_yaml(tmp_path: Path, architecture: str) -> None:
    recipe = load_recipe(write(tmp_path, f"name: x\nmodel: {{architecture: {architecture}}}\n"))
    assert isinstance(recipe, Recipe) and type(recipe.model) is ARCHITECTURES[architecture]
    assert recipe.model.architecture == architecture
    assert load_recipe(write(tmp_path, to_yaml(recipe))) == recipe


def test_a_model_without_architecture_is_an_hgrn2(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "name: x\nteacher: {architecture: mamba}\nstudent: {hidden_size: 64}\n"))
    assert isinstance(recipe, DistillRecipe)
    assert isinstance(recipe.teacher, MambaConfig) and recipe.student == HGRN2Config(hidden_size=64)
    other = load_recipe(write(tmp_path, "name: x\nstudent: {}\nteacher: {}\n"), ["student.architecture=transformer"])
    assert isinstance(other, DistillRecipe) and other.student == TransformerConfig()


OLD_SPREAD = ["teacher.initializer_range=0.02", "student.initializer_range=0.02"]


def test_runs_from_before_a_key_keep_their_names() -> None:
    """They would not be found any more, and trained again. Their initial weights were N(0, 0.02)."""
    demo = load_recipe("demo", OLD_SPREAD)
    assert isinstance(demo, DistillRecipe)
    assert run_name(demo.student_recipe(["t"]), "h") == "demo-student-4f51e16d"
    assert run_name(demo.twin_recipe(), "h") == "demo-twin-7a51a1ac"
    stored = load_recipe("demo", [*OLD_SPREAD, "distill.top_k=32"])
    assert isinstance(stored, DistillRecipe)
    assert run_name(stored.student_recipe(["t"]), "h") != run_name(demo.student_recipe(["t"]), "h")


def test_missing_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'demo'"):
        load_recipe("demmo")


def test_recipe_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8 text \\(byte 9\\)"):
        load_recipe(str(path))


def test_overrides_are_typed_and_do_not_touch_anchored_twins() -> None:
    recipe = load_recipe("demo", ["student.hidden_size=64", "training.learning_rate=1e-3", "distill.temperature=3"])
    assert isinstance(recipe, DistillRecipe) and recipe.teacher is not None
    assert (recipe.student.hidden_size, recipe.teacher.hidden_size) == (64, 128)
    assert recipe.training.learning_rate == 1e-3 and recipe.distill.temperature == 3


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine it is the machine
@given(
    st.builds(
        Recipe,
        name=st.just("x"),
        seed=st.integers(0, 2**31),
        data=st.builds(DataConfig, words=st.none() | st.integers(1, 10**9), vocab_size=st.integers(300, 10**6)),
        training=st.builds(
            TrainingConfig, learning_rate=st.floats(1e-9, 1), batch_size=st.just(8), weight_decay=st.floats(0, 1)
        ),
    )
)
def test_yaml_round_trip(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    assert load_recipe(write(tmp_path_factory.mktemp("r"), to_yaml(recipe))) == recipe


def test_flat_keys_are_override_keys(tmp_path: Path) -> None:
    recipe = Recipe(name="x")
    flat = flatten(recipe)
    assert flat["training.learning_rate"] == 1e-3 and flat["model.hidden_size"] == 256
    numbers = [f"{key}={value}" for key, value in flat.items() if isinstance(value, (int, float))]
    assert load_recipe(write(tmp_path, "name: x\n"), numbers) == recipe


def test_name_changes_with_what_decides_the_weights_and_only_with_that() -> None:
    recipe = Recipe(name="x")
    name = run_name(recipe, "data")
    other_seed = recipe.model_copy(update={"seed": 1})
    other_rate = recipe.model_copy(update={"training": TrainingConfig(learning_rate=2e-3)})
    assert len({name, run_name(other_seed, "data"), run_name(other_rate, "data"), run_name(recipe, "else")}) == 4
    launch = recipe.launch.model_copy(update={"num_workers": 2, "zero_stage": 3})
    assert run_name(recipe.model_copy(update={"launch": launch}), "data") == name
    moved = recipe.data.model_copy(update={"source": "/elsewhere"})
    assert run_name(recipe.model_copy(update={"data": moved}), "data") == name


def test_stages_of_a_distillation() -> None:
    recipe = DistillRecipe(name="x", seed=3, teacher=HGRN2Config(hidden_size=128))
    teacher, student, twin = recipe.teacher_recipe(), recipe.student_recipe(["t"]), recipe.twin_recipe()
    assert teacher is not None and teacher.model.hidden_size == 128 and teacher.seed != student.seed
    assert student.distill is not None and student.distill.teachers == ("t",)
    assert twin.distill is None and twin.seed == student.seed and twin.model == student.model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 epochs", (3, "epochs")),
        ("1 step", (1, "steps")),
        ("1.5M words", (1_500_000, "words")),
        ("5%", (5, "percent")),
        ("2k steps", (2000, "steps")),
    ],
)
def test_durations(text: str, expected: tuple[float, str]) -> None:
    assert parse_duration(text) == expected


@given(st.text(max_size=12))
def test_durations_parse_or_refuse(text: str) -> None:
    try:
        amount, unit = parse_duration(text)
    except ValueError:
        return
    assert amount > 0 and unit in {"steps", "epochs", "words", "percent"}


def test_word_milestones_are_babylms() -> None:
    """The revisions that BabyLM 2025's pipeline evaluates."""
    names = [durations.milestone_name(words) for words in durations.WORD_MILESTONES]
    wanted = [*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)]
    assert names == [f"chck_{millions}M" for millions in wanted]


def test_word_milestones_do_not_change_a_run() -> None:
    with_them = recipe_from_dict({"name": "x", "training": {"word_milestones": True}})
    without = recipe_from_dict({"name": "x"})
    assert isinstance(with_them, Recipe) and isinstance(without, Recipe)
    assert run_name(with_them, "data") == run_name(without, "data")
    with pytest.raises(UserError, match="training.word_milestones"):
        recipe_from_dict({"name": "x", "training": {"word_milestones": "words"}})


def test_what_is_measured_does_not_change_the_run() -> None:
    plain = Recipe(name="x")
    evaluation = {
        "tasks": ["blimp", "ewok"],
        "data": "/somewhere",
        "tasks_every": "milestones",
        "tasks_waiting": 7,
        "best": "tasks/mean/accuracy_ties_half",
    }
    scored = recipe_from_dict({"name": "x", "evaluation": evaluation})
    assert isinstance(scored, Recipe) and scored.evaluation != plain.evaluation
    assert run_name(scored, "h") == run_name(plain, "h")
    for best in ("pairs/island_effects/accuracy", "tasks/blimp/island_effects/accuracy"):  # checked with the data
        recipe_from_dict({"name": "x", "evaluation": {"tasks": ["blimp"], "best": best}})


def test_keys_added_later_leave_the_names_of_earlier_runs() -> None:
    """These names are those of finished runs, from before the keys were there."""
    demo, small = load_recipe("demo", OLD_SPREAD), load_recipe("strict-small-cpu", OLD_SPREAD)
    assert isinstance(demo, DistillRecipe) and isinstance(small, DistillRecipe)
    teacher = demo.teacher_recipe()
    assert teacher is not None and run_name(teacher, "0") == "demo-teacher-5dd26dd3"
    assert run_name(demo.student_recipe(["t"]), "0") == "demo-student-31fdad71"
    assert run_name(small.student_recipe(["t"]), "0") == "strict-small-cpu-student-2256f52e"
    paper = load_recipe("hgrn2-360m")
    assert isinstance(paper, Recipe) and run_name(paper, "0") == "hgrn2-360m-8f07a538"
    assert run_name(Recipe(name="x", model=MambaConfig()), "0") == "x-e4bf9e98"


LATER = [
    (section, key, value)
    for section, keys in {
        "model": {"use_short_conv": True, "conv_size": 3, "initializer_gain": 1.5},
        "training": {
            "seq_len_warmup": {"first": 32},
            "schedule": "wsd",
            "decay": "5%",
            "optimizer": "muon",
            "momentum": 0.9,
            "weight_average": {},
        },
        "distill": {
            "final_weight": 0.1,
            "final_temperature": 1.0,
            "reverse_kl": True,
            "hidden_weight": 0.5,
            "top_k": 8,
        },
    }.items()
    for key, value in keys.items()
]


@pytest.mark.parametrize(("section", "key", "value"), LATER)
def test_a_key_added_later_counts_where_it_is_used(section: str, key: str, value: object) -> None:
    values: dict[str, Any] = {"name": "x", "distill": {"teachers": ["t"], "weight": 0.5, "temperature": 2.0}}
    if key == "initializer_gain":
        values["model"] = {"architecture": "mamba"}
    changed = {**values, section: {**dict(values.get(section, {})), key: value}}
    before, after = recipe_from_dict(values), recipe_from_dict(changed)
    assert isinstance(before, Recipe) and isinstance(after, Recipe)
    assert run_name(before, "0") != run_name(after, "0")
    known = {(section, key) for section, keys in ADDED_LATER.items() for key in keys}
    assert known == {(section, key) for section, key, _ in LATER} | {("distill", "generations")}


def test_impossible_combinations_of_the_training_are_refused(tmp_path: Path) -> None:
    for change, message in (
        ("training.seq_len_warmup.first=96", "seq_len_warmup.first=96 must be training.seq_len=512 divided by 2, 4, 8"),
        ("training.seq_len_warmup.first=512", "first=512 must be"),
        ("distill.generations=2", "this recipe is a single run"),
    ):
        with pytest.raises(UserError, match=message):
            load_recipe(write(tmp_path, "name: x"), [change])
    muon = ["training.optimizer=muon", "launch.zero_stage=3"]
    with pytest.raises(UserError, match=r"training\.optimizer=muon does not go with launch\.zero_stage=3"):
        load_recipe(write(tmp_path, "name: x"), muon)
    load_recipe(write(tmp_path, "name: x"), [*muon, "launch.engine=torch"])


def test_each_generation_of_students_has_a_name_and_a_seed() -> None:
    recipe = load_recipe("demo", ["distill.generations=3", "seed=7"])
    assert isinstance(recipe, DistillRecipe)
    students = [recipe.student_recipe(["t"], generation) for generation in (1, 2, 3)]
    assert [student.name for student in students] == ["demo-student", "demo-student-2", "demo-student-3"]
    assert [student.seed for student in students] == [7, 2007, 3007]
    teacher = recipe.teacher_recipe()
    assert teacher is not None and teacher.seed == 1007
    alone = load_recipe("demo", ["seed=7"])
    assert isinstance(alone, DistillRecipe)
    assert students[0] == alone.student_recipe(["t"]), "a first generation is a student like any"
