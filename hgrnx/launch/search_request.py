"""What `hgrnx tune` was asked for, as a plan: from the command line, or from the folder of the last search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hgrnx.config.spaces import SearchPlan, load_space, plan_search, shipped_spaces
from hgrnx.data.tracks import HUB
from hgrnx.errors import UserError
from hgrnx.paths import Places

SPACE, RECIPE = "space.yaml", "recipe.yaml"
"""In the folder of a search: all that makes it."""


def read_plan(
    track: str | None,
    space: str | None,
    recipe: str | None,
    source: str | None,
    overrides: Sequence[str],
    budget: Mapping[str, float | None],
    words: int | None,
    search: str | None,
    objectives: Sequence[str],
) -> SearchPlan:
    """The plan of a command. What is None, or empty, is as the space has it; a budget replaces the space's.

    Raises:
        UserError: no such space, or the settings don't fit the recipe; all problems at once.
    """
    if space is None:
        space = track or "demo"
        if space not in shipped_spaces():
            raise UserError(
                f"There is no space for the track '{space}': name one with --space "
                f"({', '.join(shipped_spaces())}, or a .yaml file)."
            )
        track = None  # the space's recipe is on it already, unless another recipe is named
        if recipe is not None:
            track = space
    changes: dict[str, Any] = {}
    if any(value is not None for value in budget.values()):
        changes["budget"] = {key: value for key, value in budget.items() if value is not None}
    if words is not None:
        changes["words"] = words
    if search is not None:
        changes["search"] = search
    if objectives:
        changes["objectives"] = [_objective(text) for text in objectives]
    if source is not None and source != HUB:
        source = str(Path(source).expanduser().resolve())
    sources = [f"data.source={source}"] if source is not None else []
    return plan_search(load_space(space, changes), recipe=recipe, track=track, overrides=[*sources, *overrides])


def last_plan(places: Places) -> SearchPlan:
    """The plan of the search that ran last. Raises :class:`UserError` where there was none."""
    folders = [path.parent for path in places.runs.glob(f"*-search-*/{SPACE}")]
    if not folders:
        raise UserError(f"There is no search in {places.runs} to go on with. Start one: hgrnx tune --track demo")
    folder = max(folders, key=lambda folder: (folder / SPACE).stat().st_mtime)
    space = load_space(str(folder / SPACE))
    plan = plan_search(space.model_copy(update={"recipe": str(folder / RECIPE)}))
    return replace(plan, space=plan.space.model_copy(update={"recipe": space.recipe}))


def _objective(text: str) -> dict[str, str]:
    metric, colon, mode = text.rpartition(":")
    if not colon or mode not in ("min", "max"):
        raise UserError(f"--objective {text}: write METRIC:min or METRIC:max, as dev/bits_per_byte:min.")
    return {"metric": metric, "mode": mode}
