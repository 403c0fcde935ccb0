"""Rows that share their beginnings are read as if each stood alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_cases import make_inputs, skip_without
from torch import Tensor

from hgrnx.ops import Forest, forest_recurrence, gated_linear_recurrence

IMPLS = ("compiled", "chunked", "reference")
#        0 ─┬─ 1 ── 2 ─┬─ 3
#           │          └─ 4
#           └─ 5              6 stands alone
FOREST = Forest.of([0, 2, 5, 6, 15, 16, 20, 23], [-1, 0, 1, 2, 2, 0, -1])


def rows(forest: Forest) -> list[list[int]]:
    """The places of the tokens that each segment's last token stands behind, itself included."""
    bounds, parents = forest.cu_seqlens.tolist(), forest.parents_N.tolist()
    paths: list[list[int]] = []
    for segment, parent in enumerate(parents):
        before = paths[parent] if parent >= 0 else []
        paths.append(before + list(range(bounds[segment], bounds[segment + 1])))
    return paths


def assert_as_alone(inputs: list[Tensor], forest: Forest, impl: str, tolerance: float = 1e-5) -> None:
    o_BTHV = forest_recurrence(*inputs, forest, impl=impl)
    assert o_BTHV.dtype == inputs[2].dtype
    for path in rows(forest):
        alone, _ = gated_linear_recurrence(*(x[:, path].double() for x in inputs), impl="reference")
        torch.testing.assert_close(o_BTHV[:, path].double(), alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sizes", [(2, 16, 16), (3, 20, 24), (1, 8, 70)])
def test_every_row_is_read_as_if_alone(impl: str, sizes: tuple[int, int, int]) -> None:
    skip_without(impl)
    inputs = [x.float() for x in make_inputs((1, 23, *sizes), "mixed")[:4]]
    assert_as_alone(inputs, FOREST, impl)
    assert_as_alone([x.bfloat16() for x in inputs[:3]] + inputs[3:], FOREST, impl, tolerance=2e-2)


def test_several_threads_share_a_head() -> None:
    skip_without("compiled")
    inputs = [x.float() for x in make_inputs((1, 23, 1, 256, 256))[:4]]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert_as_alone(inputs, FOREST, "compiled", tolerance=1e-4)
    finally:
        torch.set_num_threads(before)


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    """Any forest: a new segment goes on from the last one or from one of its ancestors, or from nothing."""
    bounds, parents, path = [0], [], [-1]
    for number in range(draw(st.integers(1, 12))):
        path = path[: draw(st.integers(1, len(path)))]
        parents.append(path[-1])
        path.append(number)
        bounds.append(bounds[-1] + draw(st.sampled_from([1, 2, 3, 4, 5, 40])))
    return Forest.of(bounds, parents)


@settings(max_examples=40, deadline=None)
@given(forests(), st.sampled_from(IMPLS))
def test_any_forest(forest: Forest, impl: str) -> None:
    skip_without(impl)
    inputs = [x.float() for x in make_inputs((1, int(forest.cu_seqlens[-1]), 2, 8, 8))[:4]]
    assert_as_alone(inputs, forest, impl)


@given(forests())
def test_positions_and_what_is_seen_agree_with_the_rows(forest: Forest) -> None:
    positions, ends = forest.positions(), forest.ends()
    order = torch.arange(len(ends))
    seen = (order <= order[:, None]) & (order[:, None] < ends)
    for path in rows(forest):
        assert positions[path].tolist() == list(range(len(path)))
        assert seen[path[-1]].nonzero()[:, 0].tolist() == path
