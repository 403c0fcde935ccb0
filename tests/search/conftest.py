"""The demo's search, with changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hgrnx.config.spaces import SearchPlan, load_space, plan_search


@pytest.fixture
def make_plan() -> Callable[..., SearchPlan]:
    return lambda **changes: plan_search(load_space("demo", changes))
