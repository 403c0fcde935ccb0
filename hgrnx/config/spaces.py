"""What a search may change of a recipe: a space as a typed value, from YAML, checked against the recipe at once."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from hgrnx.config.files import load_recipe, parse_yaml, read_shipped, recipe_with, shipped_files, validated
from hgrnx.config.recipes import AnyRecipe, Recipe, flatten
from hgrnx.config.sections import Section
from hgrnx.errors import UserError

Value = bool | int | float | str


class Condition(Section):
    """When a parameter takes part: the value of another key, a parameter's or the recipe's."""

    above: float | None = None
    """The other value is a number greater than this."""
    one_of: tuple[Value, ...] | None = None
    """The other value is one of these."""

    @model_validator(mode="after")
    def _one_test(self) -> Condition:
        if (self.above is None) == (self.one_of is None):
            raise ValueError("a condition is either 'above: NUMBER' or 'one_of: [VALUES]'")
        return self

    def holds(self, value: Any) -> bool:
        """Whether ``value`` fulfils the condition."""
        if self.one_of is not None:
            return value in self.one_of
        assert self.above is not None
        return isinstance(value, int | float) and value > self.above


class _Parameter(Section):
    when: dict[str, Condition] = Field(default_factory=dict)
    """By dotted key, what has to hold; the recipe's own value stays where it does not."""


class _Range(_Parameter):
    low: float
    high: float
    """Both ends belong to the range."""
    grid_points: int = Field(default=3, ge=2)
    """Values, evenly spaced, that a grid search takes of it."""

    @model_validator(mode="after")
    def _ordered(self) -> _Range:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g})")
        return self

    def ends(self) -> tuple[Value, ...]:
        """The values at which a range is tried out before a search."""
        return self.low, self.high

    def contains(self, value: Any) -> bool:
        """Whether a recipe's value lies inside."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def rounded(self, value: float) -> Value:
        """``value`` with 4 digits, so that a recipe says in full what was tried."""
        return min(max(float(f"{value:.4g}"), self.low), self.high)


class Uniform(_Range):
    """Any number between ``low`` and ``high``."""

    kind: Literal["uniform"]

    def grid(self) -> tuple[Value, ...]:
        """Evenly spaced values."""
        share = [index / (self.grid_points - 1) for index in range(self.grid_points)]
        return tuple(self.rounded(self.low + part * (self.high - self.low)) for part in share)


class LogUniform(_Range):
    """Any positive number, its logarithm evenly spread."""

    kind: Literal["loguniform"]

    @model_validator(mode="after")
    def _positive(self) -> LogUniform:
        if self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be more than zero on a logarithmic scale")
        return self

    def grid(self) -> tuple[Value, ...]:
        """Values whose logarithms are evenly spaced."""
        share = [index / (self.grid_points - 1) for index in range(self.grid_points)]
        return tuple(self.rounded(self.low * (self.high / self.low) ** part) for part in share)


class Quantized(_Range):
    """``low``, ``low + step`` and so on to ``high``."""

    kind: Literal["quantized"]
    step: float = Field(gt=0)

    @model_validator(mode="after")
    def _whole_steps(self) -> Quantized:
        steps = (self.high - self.low) / self.step
        if abs(steps - round(steps)) > 1e-6:
            raise ValueError(f"high ({self.high:g}) must be low ({self.low:g}) and a number of steps ({self.step:g})")
        return self

    def grid(self) -> tuple[Value, ...]:
        """Every value."""
        return tuple(
            self.rounded(self.low + n * self.step) for n in range(round((self.high - self.low) / self.step) + 1)
        )

    def contains(self, value: Any) -> bool:
        """Whether a recipe's value is one of the steps."""
        return super().contains(value) and any(math.isclose(value, float(step)) for step in self.grid())


class IntRange(_Parameter):
    """Whole numbers ``low``, ``low + step`` ... ``high``; with ``log`` (step 1) their logarithms evenly spread."""

    kind: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, gt=0)
    log: bool = False

    @model_validator(mode="after")
    def _possible(self) -> IntRange:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be less than high ({self.high})")
        if (self.high - self.low) % self.step:
            raise ValueError(f"high ({self.high}) must be low ({self.low}) and a number of steps ({self.step})")
        if self.log and (self.step != 1 or self.low < 1):
            raise ValueError("a logarithmic scale needs step 1 and low of at least 1")
        return self

    def ends(self) -> tuple[Value, ...]:
        """The values at which a range is tried out before a search."""
        return self.low, self.high

    def grid(self) -> tuple[Value, ...]:
        """Every value."""
        return tuple(range(self.low, self.high + 1, self.step))

    def contains(self, value: Any) -> bool:
        """Whether a recipe's value is one of the steps."""
        return type(value) is int and self.low <= value <= self.high and (value - self.low) % self.step == 0


class Choice(_Parameter):
    """One of ``options``."""

    kind: Literal["choice"]
    options: tuple[Value, ...] = Field(min_length=2)

    def ends(self) -> tuple[Value, ...]:
        """All options."""
        return self.options

    def grid(self) -> tuple[Value, ...]:
        """All options."""
        return self.options

    def contains(self, value: Any) -> bool:
        """Whether a recipe's value is an option."""
        return value in self.options


Parameter = Annotated[Uniform | LogUniform | Quantized | IntRange | Choice, Field(discriminator="kind")]


class Objective(Section):
    """A metric of a finished run: of its last evaluation, or ``seconds`` (of training), ``parameters``."""

    metric: str = "dev/bits_per_byte"
    mode: Literal["min", "max"] = "min"

    def better(self, one: float, other: float) -> bool:
        """Whether ``one`` is strictly better than ``other``."""
        return one < other if self.mode == "min" else one > other


class BudgetConfig(Section):
    """When no further trial is begun, whichever comes first; trials that were begun are finished."""

    trials: int | None = Field(default=None, gt=0)
    hours: float | None = Field(default=None, gt=0)
    words: int | None = Field(default=None, gt=0)
    """Words seen by all trials together."""

    @model_validator(mode="after")
    def _some_end(self) -> BudgetConfig:
        if self.trials is None and self.hours is None and self.words is None:
            raise ValueError("a search needs an end: budget.trials, budget.hours or budget.words")
        return self


class SpaceConfig(Section):
    """A search: from which recipe, over what, judged by what, and for how long."""

    recipe: str
    """The recipe that it starts from: a shipped one, or a YAML file."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Values of the recipe, by dotted key, that hold for the teacher and every trial; of its section ``distill`` only
    where it distils."""
    trials: dict[str, Any] = Field(default_factory=dict)
    """Values of the recipe's ``launch`` section that trials have instead, so that several run at once; the teacher
    keeps the recipe's. They hold for the space's own recipe only."""
    parameters: dict[str, Parameter] = Field(min_length=1)
    """What is searched, by dotted key of the recipe."""
    objectives: tuple[Objective, ...] = Field(default=(Objective(),), min_length=1)
    """The first decides about the best trial and about early stops; all together make the Pareto front."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """``tpe``: Optuna's Tree-structured Parzen Estimator (Bergstra et al., 2011)."""
    scheduler: Literal["asha", "none"] = "asha"
    """``asha`` stops trials that are behind the others after as many words (Li et al., arXiv 1810.05934)."""
    words: int | None = Field(default=None, gt=0)
    """Words that a trial sees; the recipe's ``training.duration`` when absent."""
    grace_period: float = Field(default=0.125, gt=0, lt=1)
    """Share of a trial's words after which ASHA may stop it for the first time; also the period of its evaluation."""
    reduction_factor: int = Field(default=3, ge=2)
    """ASHA goes on with the best of so many, at the grace period and again whenever the words have grown so often."""
    budget: BudgetConfig
    seed: int = Field(default=0, ge=0)
    """Fixes what the search proposes. Every trial has the recipe's own seed."""

    @model_validator(mode="after")
    def _trials_change_only_launch(self) -> SpaceConfig:
        for key in self.trials:
            if not key.startswith("launch."):
                raise ValueError(f"trials: {key} is no key of the recipe's launch section; give it under fixed")
        return self


@dataclass(frozen=True)
class SearchPlan:
    """A space on its recipe, checked: every end of every range makes a valid recipe."""

    recipe: AnyRecipe
    """With everything that is fixed; a trial's recipe is this one with its parameters."""
    space: SpaceConfig
    """Only with the parameters that are searched; what it fixes is in ``recipe``."""
    left_out: tuple[str, ...]
    """Parameters of the space that don't take part, as sentences that say why."""

    def trial_recipe(self, parameters: Mapping[str, Any]) -> AnyRecipe:
        """The recipe of a trial. Raises :class:`UserError` where the values do not go together."""
        return recipe_with(self.recipe, {**self.space.trials, **parameters}, "recipe of the trial")

    def own_values(self) -> dict[str, Value] | None:
        """The recipe's own values of the parameters that take part; None where one lies outside of the space."""
        own = flatten(self.recipe)
        values = {key: own.get(key) for key, _ in self.active(own)}
        known = {key: value for key, value in values.items() if value is not None}
        if known.keys() < values.keys():
            return None
        return known if all(self.space.parameters[key].contains(value) for key, value in known.items()) else None

    def active(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Parameters, in order, whose conditions hold; ``values`` may grow on the way."""
        own = flatten(self.recipe)
        for key, parameter in self.space.parameters.items():
            if all(condition.holds(values.get(other, own.get(other))) for other, condition in parameter.when.items()):
                yield key, parameter

    def grid(self) -> list[dict[str, Value]]:
        """Every point of the grid, once: parameters whose conditions don't hold are no part of a point."""
        points: dict[str, dict[str, Value]] = {}
        keys = list(self.space.parameters)
        for combination in product(*(parameter.grid() for parameter in self.space.parameters.values())):
            values = dict(zip(keys, combination))
            chosen: dict[str, Value] = {}
            for key, _ in self.active(chosen):
                chosen[key] = values[key]
            points.setdefault(json.dumps(chosen, sort_keys=True), chosen)
        return list(points.values())


def shipped_spaces() -> list[str]:
    """Names of the spaces that come with the package; one for each track."""
    return shipped_files("spaces")


def load_space(name_or_path: str, changes: Mapping[str, Any] | None = None) -> SpaceConfig:
    """Read a shipped space or a YAML file; ``changes`` replaces values at dotted keys (``budget.trials``).

    Raises:
        UserError: no such space, not YAML, or wrong keys or values; all of them are named.
    """
    where, text = read_shipped(name_or_path, "spaces", "space")
    values = parse_yaml(text, where, "space")
    for key, value in (changes or {}).items():
        section, dot, inner = key.partition(".")
        if dot:
            values[section] = {**(values.get(section) or {}), inner: value}
        else:
            values[section] = value
    return validated(SpaceConfig, values, f"space {where}")


def plan_search(
    space: SpaceConfig, *, recipe: str | None = None, track: str | None = None, overrides: Sequence[str] = ()
) -> SearchPlan:
    """A space on its recipe, or on another one.

    Args:
        recipe: instead of the space's own.
        track: ``data.track`` of all trials; the recipe's own when None.
        overrides: ``key=value``; a key that is fixed so is not searched.

    Raises:
        UserError: keys that the recipe does not have, values that it cannot have at an end of a range, conditions
            on unknown keys; all are named. Or nothing is left to search.
    """
    plain = load_recipe(recipe or space.recipe, overrides)
    distils = not isinstance(plain, Recipe) or plain.distill is not None
    no_distillation = f"the recipe {plain.name} does not distil"
    fixed = {key: value for key, value in space.fixed.items() if distils or not key.startswith("distill.")}
    left_out = [f"{key}: {no_distillation}" for key in space.fixed if key not in fixed]
    if space.words is not None:
        fixed["training.duration"] = f"{space.words} words"
    if track is not None:
        fixed["data.track"] = track
    base = load_recipe(recipe or space.recipe, [*(f"{key}={json.dumps(v)}" for key, v in fixed.items()), *overrides])
    given = {override.partition("=")[0].strip() for override in overrides}
    parameters = {}
    for key, parameter in space.parameters.items():
        if key in given:
            left_out.append(f"{key} is fixed")
        elif key.startswith("distill.") and not distils:
            left_out.append(f"{key}: {no_distillation}")
        else:
            parameters[key] = parameter
    if not parameters:
        raise UserError(f"Nothing is left to search: {'; '.join(left_out)}.")
    trials = {key: value for key, value in space.trials.items() if recipe is None and key not in given}
    searched = space.model_copy(update={"parameters": parameters, "fixed": {}, "words": None, "trials": trials})
    plan = SearchPlan(base, searched, tuple(left_out))
    problems = _problems(plan)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"The space does not fit the recipe {base.name}; it has {count}:\n{lines}")
    return plan


def space_yaml(space: SpaceConfig) -> str:
    """The complete space as YAML that :func:`load_space` reads back."""
    return yaml.safe_dump(space.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _problems(plan: SearchPlan) -> list[str]:
    """What is wrong with keys, ends of ranges and conditions."""
    problems: dict[str, None] = {}
    known = [*flatten(plan.recipe), *plan.space.parameters]
    earlier: set[str] = set()
    for key, parameter in plan.space.parameters.items():
        for value in parameter.ends():
            try:
                plan.trial_recipe({key: value})
            except UserError as error:
                problems |= dict.fromkeys(line[4:] for line in str(error).splitlines() if line.startswith("  - "))
        for other in parameter.when:
            if other not in known:
                near = difflib.get_close_matches(other, known, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else ""
                problems[f"{key}: it depends on {other}, which there is not{hint}"] = None
            elif other in plan.space.parameters and other not in earlier:
                problems[f"{key}: it depends on {other}, which must stand before it"] = None
        earlier.add(key)
    return list(problems)
