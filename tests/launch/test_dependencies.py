from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrnx.errors import Terminated, UserError
from hgrnx.launch.dependencies import do_in_order


@st.composite
def plans(draw: st.DrawFn) -> dict[str, list[str]]:
    """Up to eight things, each of which needs some of those before it."""
    count = draw(st.integers(0, 8))
    return {
        str(i): draw(st.lists(st.sampled_from([str(j) for j in range(i)] or [""]), unique=True)) if i else []
        for i in range(count)
    }


@given(plans(), st.integers(1, 3))
def test_everything_is_done_once_and_after_what_it_needs(needs: Mapping[str, Sequence[str]], at_once: int) -> None:
    lock, done = threading.Lock(), list[str]()
    going = most = 0

    def do(name: str) -> None:
        nonlocal going, most
        with lock:
            assert set(needs[name]) <= set(done)
            going += 1
            most = max(most, going)
        with lock:
            going -= 1
            done.append(name)

    do_in_order(needs, at_once, do)
    assert sorted(done) == sorted(needs) and most <= at_once


def test_one_begins_when_what_it_needs_is_done_whatever_else_is_going_on() -> None:
    """A student must not wait for teachers of other students."""
    student = threading.Event()

    def do(name: str) -> None:
        if name == "slow teacher":
            assert student.wait(20), "the student of the other teacher was not begun"
        if name == "student":
            student.set()

    do_in_order({"teacher": [], "slow teacher": [], "student": ["teacher"]}, 2, do)


def test_an_error_begins_nothing_new() -> None:
    begun = []

    def do(name: str) -> None:
        begun.append(name)
        raise UserError(name)

    with pytest.raises(UserError, match="a"):
        do_in_order({"a": [], "b": ["a"]}, 2, do)
    assert begun == ["a"]


def test_what_has_begun_ends_before_it_is_terminated() -> None:
    told, ended = threading.Event(), list[str]()

    def do(name: str) -> None:
        if name == "told":
            told.set()
            raise Terminated
        assert told.wait(20)
        ended.append(name)

    with pytest.raises(Terminated):
        do_in_order({"going on": [], "told": [], "later": ["told"]}, 2, do)
    assert ended == ["going on"]
