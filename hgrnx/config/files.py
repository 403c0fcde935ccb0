"""Recipes, and other YAML files, as typed values; all problems are raised together, with the nearest right key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hgrnx.config.models import ARCHITECTURES
from hgrnx.config.recipes import AnyRecipe, DistillRecipe, Recipe
from hgrnx.config.secrets import find_secrets, redact
from hgrnx.errors import UserError

_M = TypeVar("_M", bound=BaseModel)
_MODEL_SECTIONS = ("model", "teacher", "student")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return shipped_files("recipes")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a shipped recipe or a YAML file and apply ``key=value`` overrides with dotted keys.

    Raises:
        UserError: no such recipe, not YAML, or one or more wrong keys or values; all of them are named.
    """
    where, text = read_shipped(name_or_path, "recipes", "recipe")
    values = parse_yaml(text, where)
    problems = _apply(overrides, values, "training.learning_rate=1e-3")
    return validated(_kind(values), values, f"recipe {where}", problems)


def recipe_from_layers(
    base: str | None, layers: Sequence[Mapping[str, Any]], overrides: Sequence[str], where: str
) -> AnyRecipe:
    """A recipe made of others: a shipped one, mappings laid over it one after the other, and ``key=value`` overrides.

    Args:
        base: name or path of the recipe to begin with; None for the defaults.
        layers: keys may be dotted (``training.learning_rate``); a section is merged key by key, except that a model
            of another architecture replaces the one before it.

    Raises:
        UserError: no such recipe, or wrong keys or values; all of them are named.
    """
    values = parse_yaml(read_shipped(base, "recipes", "recipe")[1], base) if base is not None else {}
    problems: list[str] = []
    for layer in layers:
        for key, value in layer.items():
            _lay_over(values, str(key), value, problems)
    problems += _apply(overrides, values, "training.learning_rate=1e-3")
    return validated(_kind(values), values, where, problems)


def _kind(values: Mapping[str, Any]) -> type[Recipe] | type[DistillRecipe]:
    return DistillRecipe if {"student", "teacher", "twin"} & values.keys() else Recipe


def _lay_over(values: dict[str, Any], key: str, value: Any, problems: list[str]) -> None:
    before = values.get(key)
    if "." in key or not isinstance(value, dict) or not isinstance(before, dict):
        _set_dotted(values, key, dict(value) if isinstance(value, dict) else value, problems)
    elif key in _MODEL_SECTIONS and value.get("architecture", "hgrn2") != before.get("architecture", "hgrn2"):
        values[key] = dict(value)
    else:
        values[key] = inner = dict(before)
        for name, item in value.items():
            _lay_over(inner, name, item, problems)


def section_from(kind: type[_M], overrides: Sequence[str], where: str, example: str) -> _M:
    """A ``kind`` with its defaults and ``key=value`` overrides. Raises :class:`UserError` naming every wrong one."""
    values: dict[str, Any] = {}
    problems = _apply(overrides, values, example)
    return validated(kind, values, where, problems)


def recipe_from_dict(values: dict[str, Any], where: str = "recipe") -> AnyRecipe:
    """The inverse of ``model_dump(mode="json")``. Raises :class:`UserError` naming every wrong key."""
    kind: type[Recipe] | type[DistillRecipe] = DistillRecipe if "student" in values else Recipe
    return validated(kind, values, f"recipe {where}")


def recipe_with(recipe: AnyRecipe, values: Mapping[str, Any], where: str) -> AnyRecipe:
    """``recipe`` with other values at dotted keys. Raises :class:`UserError` naming every wrong key and value."""
    content = recipe.model_dump(mode="json")
    problems: list[str] = []
    for key, value in values.items():
        _set_dotted(content, key, value, problems)
    return validated(type(recipe), content, where, problems)


def shipped_files(folder: str) -> list[str]:
    """Names (without ``.yaml``) of the files that come with the package in ``recipes`` or ``spaces``."""
    entries = (resources.files("hgrnx") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def read_shipped(name_or_path: str, folder: str, what: str) -> tuple[str, str]:
    """Where a YAML file is and its text: a path, or the name of one that comes with the package.

    Raises:
        UserError: there is none; names the nearest.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
        except OSError as error:
            raise UserError(f"Cannot read the {what} {path}: {error.strerror}.") from None
    names = shipped_files(folder)
    if name_or_path not in names:
        near = difflib.get_close_matches(name_or_path, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(
            f"There is no {what} '{name_or_path}'.{hint} Shipped {what}s: {', '.join(names)}. "
            "Or give the path of a .yaml file."
        )
    return name_or_path, (resources.files("hgrnx") / folder / f"{name_or_path}.yaml").read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """YAML with 1e-3 as a number (YAML 1.2) and without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' is written twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str, what: str = "recipe") -> dict[str, Any]:
    """The mapping in ``text``. Raises :class:`UserError` naming the line that is not YAML."""
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} is {'empty' if values is None else 'not a mapping'}: a {what} is 'key: value' lines.")
    return values


def _parse_yaml_value(raw: str) -> Any:
    try:
        return yaml.load(raw, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        return raw


def _apply(overrides: Sequence[str], values: dict[str, Any], example: str) -> list[str]:
    """Put ``key=value`` overrides with dotted keys into ``values``; returns what is wrong with them."""
    problems: list[str] = []
    for override in overrides:
        key, equals, raw = override.partition("=")
        if not equals or not key:
            problems.append(f"'{redact(override)}': write overrides as key=value, for example {example}")
            continue
        _set_dotted(values, key.strip(), _parse_yaml_value(raw), problems)
    return problems


def _set_dotted(values: dict[str, Any], key: str, value: Any, problems: list[str]) -> None:
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        inner = values.get(parent)
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            problems.append(f"{key}: '{'.'.join(parents[: depth + 1])}' is a value, not a section")
            return
        values[parent] = values = dict(inner)
    values[last] = value


def validated(kind: type[_M], values: dict[str, Any], where: str, problems: Sequence[str] = ()) -> _M:
    """``values`` as a ``kind``. Raises :class:`UserError` with every wrong key and value, after ``problems``.

    A token or password among the values is refused first and not shown: recipes are stored and sent to MLflow.
    """
    secret = sorted(set(find_secrets(values)))
    if secret:
        raise UserError(
            f"The {redact(where)} has what looks like a token or password in {', '.join(secret)}. It would be kept "
            "with the run and shown in MLflow: take it out, and give it in the environment (HF_TOKEN, "
            "MLFLOW_TRACKING_PASSWORD, AWS_SECRET_ACCESS_KEY)."
        )
    problems = list(problems)
    try:
        # Through JSON, so that strict mode takes lists for tuples but still refuses "512" and true for numbers.
        result = kind.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        problems += [line for item in error.errors() for line in _explain(kind, item).split("\n")]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"The {where} has {count}:\n{lines}")
    return result


def _explain(kind: type[BaseModel], item: Any) -> str:
    section, architecture, rest = _without_tag(item["loc"])
    key = ".".join([*section, *rest])
    if item["type"] == "union_tag_invalid":
        wanted = item["ctx"]["tag"]
        near = difflib.get_close_matches(wanted, ARCHITECTURES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}.architecture: there is no architecture '{wanted}'{hint} (known: {', '.join(ARCHITECTURES)})"
    if item["type"] == "extra_forbidden" and architecture is not None:
        return _explain_model_key(".".join(section), architecture, ".".join(rest))
    if item["type"] == "extra_forbidden":
        known = list(_known_keys(kind, ""))
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        if not near:  # the right name in another section, perhaps
            near = [name for name in known if name.rsplit(".", 1)[-1] == rest[-1]][:1]
        return f"{key}: there is no such key" + (f"; did you mean {near[0]}?" if near else "")
    message = item["msg"].removeprefix("Value error, ")
    given = "" if isinstance(item["input"], dict) else f" (given: {json.dumps(item['input'], default=str)})"
    if item["type"] == "missing":
        given = ""
    return f"{key}: {message}{given}" if key else message


def _without_tag(loc: tuple[int | str, ...]) -> tuple[list[str], str | None, list[str]]:
    """Where a problem is: a model's section, its architecture, and the place inside; or no section and the place."""
    parts = [str(part) for part in loc]
    if len(parts) > 1 and parts[0] in _MODEL_SECTIONS and parts[1] in ARCHITECTURES:
        return parts[:1], parts[1], parts[2:]
    return [], None, parts


def _explain_model_key(section: str, architecture: str, key: str) -> str:
    """A key that the architecture does not have, but perhaps another."""
    near = difflib.get_close_matches(key, ARCHITECTURES[architecture].model_fields, n=1, cutoff=0.5)
    others = [name for name, config in ARCHITECTURES.items() if key in config.model_fields]
    hint = f"; did you mean {section}.{near[0]}?" if near else ""
    if others:
        hint += f" (a key of {', '.join(others)})"
    return f"{section}.{key}: architecture {architecture} has no such key{hint}"


def _known_keys(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from _known_keys(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)
