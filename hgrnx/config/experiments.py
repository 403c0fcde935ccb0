"""Experiments: named sets of recipes (arms times seeds), at several scales, as YAML in ``hgrnx/experiments/``.

Everything is checked when an experiment is planned, before anything is run, and all problems are raised together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from pydantic import Field, model_validator

from hgrnx.config.files import parse_yaml, recipe_from_layers, validated
from hgrnx.config.recipes import Recipe
from hgrnx.config.sections import Section
from hgrnx.errors import UserError, joined


class ArmConfig(Section):
    """One side of an experiment: a recipe, to be run with every seed."""

    title: str
    """What tables and figures call it."""
    recipe: str | None = None
    """A shipped recipe to begin with; the defaults when absent."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe, dotted or as sections, laid over ``recipe`` and the scale's ``common``."""
    teachers: tuple[str, ...] = ()
    """Arms whose runs with the same seed it is distilled from."""
    seed_offset: int = Field(default=0, ge=0)
    """Added to the experiment's seeds, for an arm that must not start with another's weights."""
    vary: dict[str, tuple[Any, ...]] = Field(default={}, max_length=1)
    """A dotted key and values for it: an arm for each, called ``ARM-VALUE``."""


class ScaleConfig(Section):
    """An experiment at one size."""

    seeds: tuple[int, ...] = Field(min_length=1)
    """Every arm is run once with each."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    """By short name."""
    common: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe that all arms have in common."""
    tasks: tuple[str, ...] = ()
    """Benchmark tasks that the finished runs are scored on, and the kept weights of their word milestones."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs of arms; the first one's score minus the second one's is tested."""
    parameters_within: float | None = Field(default=None, gt=0, lt=1)
    """The arms' parameters besides the embeddings may differ by this share; any sizes are allowed when absent."""

    @model_validator(mode="after")
    def _names_exist(self) -> ScaleConfig:
        names = [name for name, _, _, _ in expanded(self.arms)]
        problems = []
        for first, second in self.comparisons:
            problems += [f"comparisons: {_unknown(name, names)}" for name in (first, second) if name not in names]
        earlier: list[str] = []
        for name, arm in self.arms.items():
            for teacher in arm.teachers:
                if teacher not in self.arms or self.arms[teacher].vary:
                    problems.append(f"arms.{name}.teachers: {_unknown(teacher, self.arms)}")
                elif teacher not in earlier:
                    problems.append(f"arms.{name}.teachers: the arm {teacher} must stand before {name}")
            earlier.append(name)
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("seeds: one is named twice")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ExperimentConfig(Section):
    """A file of ``hgrnx/experiments/``."""

    title: str
    question: str
    """What the experiment is to answer."""
    paper: Literal["architectures", "data", "distillation"] | None = None
    """Which of the paper's tables its report shows beside the results."""
    scales: dict[Literal["demo", "cpu", "gpu", "paper"], ScaleConfig] = Field(min_length=1)


@dataclass(frozen=True)
class Arm:
    """One side of a planned experiment."""

    title: str
    family: str
    """The arm's name in the file, without a varied value."""
    key: str | None
    """The key that ``vary`` names, and its value here."""
    value: Any
    teachers: tuple[str, ...]
    recipes: dict[int, Recipe]
    """By the experiment's seed. The teachers are not named in them yet: that needs the hash of the data."""


@dataclass(frozen=True)
class ExperimentPlan:
    """What an experiment is going to run."""

    name: str
    scale: str
    config: ExperimentConfig
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    arms: dict[str, Arm]
    """In an order in which teachers come first."""
    comparisons: tuple[tuple[str, str], ...]
    parameters_within: float | None

    @property
    def title(self) -> str:
        """The experiment with its scale, as runs and folders are called."""
        return f"{self.name}-{self.scale}"


def expanded(arms: Mapping[str, ArmConfig]) -> Iterator[tuple[str, ArmConfig, str | None, Any]]:
    """Name, arm, varied key and value of every arm, those that vary once for each value."""
    for name, arm in arms.items():
        if not arm.vary:
            yield name, arm, None, None
        for key, values in arm.vary.items():
            for value in values:
                yield f"{name}-{value:g}" if isinstance(value, int | float) else f"{name}-{value}", arm, key, value


def shipped_experiments() -> list[str]:
    """Names of the experiments that come with the package."""
    folder = resources.files("hgrnx") / "experiments"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_experiment(name: str) -> ExperimentConfig:
    """Read a shipped experiment. Raises :class:`UserError` where there is none, or naming all that is wrong in it."""
    names = shipped_experiments()
    if name not in names:
        raise UserError(f"{_unknown(name, names, 'experiment')} The experiments are {', '.join(names)}.")
    text = (resources.files("hgrnx") / "experiments" / f"{name}.yaml").read_text(encoding="utf-8")
    return validated(ExperimentConfig, parse_yaml(text, name, "experiment"), f"experiment {name}")


def plan_experiment(
    name: str,
    scale: str,
    *,
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> ExperimentPlan:
    """The recipes of an experiment.

    Args:
        scale: ``demo``, ``cpu``, ``gpu`` or ``paper``.
        seeds: instead of those of the scale.
        arms: only these, and their teachers; names in the file, or with a varied value.
        overrides: ``key=value`` for the recipes of all arms, ``arms.NAME.key=value`` for those of one.

    Raises:
        UserError: with everything that is wrong with the experiment, the recipes and the arguments.
    """
    config = load_experiment(name)
    found = {str(key): value for key, value in config.scales.items()}.get(scale)
    if found is None:
        raise UserError(f"{_unknown(scale, config.scales, 'scale')} {name} has {', '.join(config.scales)}.")
    problems: list[str] = []
    all_arms = {arm_name: rest for arm_name, *rest in expanded(found.arms)}
    wanted = list(all_arms)
    if arms is not None:
        known = {*found.arms, *all_arms}
        problems += [_unknown(arm, sorted(known)) for arm in arms if arm not in known]
        chosen = {arm for arm, (section, *_) in all_arms.items() if arm in arms or section in _sections(found, arms)}
        teachers = {teacher for arm in chosen for teacher in all_arms[arm][0].teachers}
        wanted = [arm for arm in wanted if arm in chosen | teachers]
    run_seeds = tuple(dict.fromkeys(seeds)) if seeds else found.seeds
    own, shared = _split(overrides, [*found.arms, *all_arms], problems)
    planned: dict[str, Arm] = {}
    for arm_name in wanted:
        section, key, value = all_arms[arm_name]
        family = next(label for label, item in found.arms.items() if item is section)
        layers = [found.common, section.set, *([{key: value}] if key is not None else [])]
        mine = [*shared, *own.get(family, ()), *(own.get(arm_name, ()) if arm_name != family else ())]
        recipes: dict[int, Recipe] = {}
        for seed in run_seeds:
            facts = {"name": f"{name}-{scale}-{arm_name}-s{seed}".lower(), "seed": seed + section.seed_offset}
            try:
                recipe = recipe_from_layers(section.recipe, [*layers, facts], mine, f"arm {arm_name} of {name}")
            except UserError as error:
                problems.append(str(error))
                break  # the other seeds have the same problem
            if not isinstance(recipe, Recipe):
                problems.append(f"arm {arm_name}: its recipe makes several runs; an arm is one training.")
                break
            if bool(section.teachers) != (recipe.distill is not None):
                problems.append(f"arm {arm_name}: 'teachers' and the recipe's section 'distill' go together.")
                break
            recipes[seed] = recipe
        title = (
            section.title if key is None else f"{section.title}, {key.rpartition('.')[2].replace('_', ' ')} {value:g}"
        )
        planned[arm_name] = Arm(title, family, key, value, section.teachers, recipes)
    if problems:
        raise UserError(joined(problems))
    pairs = tuple(pair for pair in found.comparisons if pair[0] in planned and pair[1] in planned)
    return ExperimentPlan(name, scale, config, run_seeds, found.tasks, planned, pairs, found.parameters_within)


def _sections(scale: ScaleConfig, names: Sequence[str]) -> list[ArmConfig]:
    return [arm for name, arm in scale.arms.items() if name in names]


def _split(
    overrides: Sequence[str], arms: Sequence[str], problems: list[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Overrides of single arms (``arms.NAME.key=value``) by arm, and those of all."""
    own: dict[str, list[str]] = {}
    shared = []
    for override in overrides:
        if not override.startswith("arms."):
            shared.append(override)
            continue
        rest = override.removeprefix("arms.")
        name = next((arm for arm in sorted(arms, key=len, reverse=True) if rest.startswith(f"{arm}.")), None)
        if name is None:
            problems.append(f"{override}: {_unknown(rest.partition('.')[0], arms)}")
        else:
            own.setdefault(name, []).append(rest.removeprefix(f"{name}."))
    return own, shared


def _unknown(name: str, known: Sequence[str] | Mapping[Any, Any], what: str = "arm") -> str:
    near = difflib.get_close_matches(name, [str(item) for item in known], n=1, cutoff=0.4)
    return f"There is no {what} '{name}'." + (f" Did you mean '{near[0]}'?" if near else "")
