"""What is asked together, what is kept of it, and that the whole is the same however it is cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_data import Told, write_bear
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hgrnx.data.benchmark_items import EwokItem, MinimalPair
from hgrnx.data.benchmarks import read_bear
from hgrnx.errors import UserError
from hgrnx.evaluation import shares
from hgrnx.evaluation.bear import Bear
from hgrnx.evaluation.choices import Choices
from hgrnx.evaluation.ewok import Ewok
from hgrnx.evaluation.minimal_pairs import MinimalPairs
from hgrnx.evaluation.scorer import Scorer
from hgrnx.evaluation.shares import Share, ask_here, cut, run_shares
from hgrnx.evaluation.task import Task
from hgrnx.models import LanguageModel

VERBS = ("see", "sees", "run", "runs", "bark", "barks")


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    write_bear(tmp_path / "BEAR")
    pairs = [MinimalPair(f"the dog {verb} {i}.", f"the {verb} dog {i}.", "x", "") for i in range(7) for verb in VERBS]
    items = [
        EwokItem("d", ("a", "b"), "", "", "", ("the cats run.", "dogs see."), (f"a {verb} {i}", f"{i} {verb} a"))
        for i in range(5)
        for verb in VERBS
    ]
    return [
        MinimalPairs("blimp", {"one": pairs, "two": pairs[:3]}),
        Ewok("ewok", {"social": items}),
        Bear(read_bear(tmp_path / "BEAR")),
    ]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares.cut, "__defaults__", (10,))


def told(text: str) -> float:
    return -float(len(text) * 31 % 17) - len(text) / 7


def run(tasks: Sequence[Task], scorer: Any, kept: Path, **options: Any) -> dict[str, Any]:
    return {task.name: predictions for task, predictions in run_shares(tasks, ask_here(tasks, scorer), kept, **options)}


@given(st.integers(0, 50), st.integers(1, 30), st.integers(1, 40))
def test_every_item_is_in_one_share(items: int, per_item: int, limit: int) -> None:
    class Sized:
        name = "sized"

        def size(self, subtask: str) -> tuple[int, int]:
            return items, per_item

        def data_hash(self, subtask: str) -> str:
            return "d"

    parts = cut(Sized(), "s", limit)  # type: ignore[arg-type]
    assert [item for part in parts for item in range(part.start, part.stop)] == list(range(items))
    for part in parts:
        assert part.texts == (part.stop - part.start) * per_item
        assert part.texts <= limit or part.stop - part.start == 1
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1, "none is left with a small rest"


def test_the_whole_is_what_asking_at_once_gives(tasks: list[Task], small: None, tmp_path: Path) -> None:
    assert [len(cut(task, task.subtasks[0])) for task in tasks] == [9, 6, 4]
    results = run(tasks, Told(told), tmp_path / "kept")
    for task in tasks:
        for subtask in task.subtasks:
            whole = task.score(subtask, Told(told))
            joined = shares.choices_of(results[task.name][subtask])
            np.testing.assert_array_equal(joined.scores_VNK, whole.scores_VNK)
            np.testing.assert_array_equal(joined.right_N, whole.right_N)
    names = {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert names == {"one.json.gz", "two.json.gz", "social.json.gz", "P1.json.gz", "P2.json.gz"}


def test_a_models_scores_do_not_depend_on_the_cut(
    tasks: list[Task], model: LanguageModel, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(model, tokenizer, 0)
    whole = run(tasks, scorer, tmp_path / "whole")
    monkeypatch.setattr(shares.cut, "__defaults__", (10,))
    parts = run(tasks, scorer, tmp_path / "parts")
    for name, subtasks in whole.items():
        for subtask, content in subtasks.items():
            np.testing.assert_allclose(parts[name][subtask]["scores"], content["scores"], rtol=1e-6)
            assert parts[name][subtask]["chosen"] == content["chosen"]


@pytest.mark.parametrize("after", [1, 4, 9, 12])
def test_a_kill_loses_what_was_being_asked(tasks: list[Task], small: None, tmp_path: Path, after: int) -> None:
    wanted = run(tasks, Told(told), tmp_path / "undisturbed")
    here = ask_here(tasks, Told(told))
    asked: list[Share] = []

    def killed(wanted: Sequence[Share]) -> Iterator[tuple[Share, Choices]]:
        for share, choices in here(wanted):
            if len(asked) == after:
                raise KeyboardInterrupt
            asked.append(share)
            yield share, choices

    with pytest.raises(KeyboardInterrupt):
        list(run_shares(tasks, killed, tmp_path / "kept"))
    again: list[Share] = []

    def counted(wanted: Sequence[Share]) -> Iterator[tuple[Share, Choices]]:
        again.extend(wanted)
        return iter(list(here(wanted))[::-1])  # in any order

    seen: list[tuple[Share, bool]] = []
    results = dict(run_shares_by_name(tasks, counted, tmp_path / "kept", seen))
    assert results == wanted
    every = [share for task in tasks for name in task.subtasks for share in cut(task, name)]
    assert [share for share in every if share not in asked] == again
    assert sorted(seen, key=lambda at: every.index(at[0])) == [(share, share in asked) for share in every]


def run_shares_by_name(tasks: Any, ask: Any, kept: Path, seen: list[tuple[Share, bool]]) -> Iterator[tuple[str, Any]]:
    for task, predictions in run_shares(tasks, ask, kept, lambda *at: seen.append(at)):
        yield task.name, predictions


def test_what_is_damaged_or_of_other_items_is_asked_again(tasks: list[Task], small: None, tmp_path: Path) -> None:
    (pairs, _, bear) = tasks
    run([pairs], Told(told), tmp_path)
    content = (tmp_path / "blimp" / "one.json.gz").read_bytes()
    (tmp_path / "blimp" / "one.json.gz").write_bytes(content[:-9])
    scorer = Told(told)
    run([pairs], scorer, tmp_path)
    assert len(scorer.asked) == 2 * 42 and (tmp_path / "blimp" / "one.json.gz").read_bytes() == content
    (tmp_path / "bear").mkdir()
    (tmp_path / "bear" / "P1.0-1.json.gz").write_bytes(content)
    assert run([bear], scorer, tmp_path)["bear"]["P1"]["right"] == [0, 1, 0, 1]


def test_the_tasks_come_when_they_are_finished(tasks: list[Task], small: None, tmp_path: Path) -> None:
    def backwards(wanted: Sequence[Share]) -> Iterator[tuple[Share, Choices]]:
        return iter(ask_here(tasks, Told(told))(wanted[::-1]))

    names = [task.name for task, _ in run_shares(tasks, backwards, tmp_path)]
    assert names == ["bear", "ewok", "blimp"]
    assert [task.name for task, _ in run_shares(tasks, backwards, tmp_path)] == ["blimp", "ewok", "bear"], "all kept"


def test_an_item_is_named_by_its_place_in_the_file(tasks: list[Task], small: None, tmp_path: Path) -> None:
    broken = Told(lambda text: math.nan if text == "the dog sees 6." else -1.0)
    with pytest.raises(UserError, match=r"blimp/one, item 37 \(from 0\)"):
        run(tasks, broken, tmp_path)
    assert not (tmp_path / "blimp" / "one.json.gz").exists()
    run(tasks, Told(told), tmp_path)


def test_other_items_than_those_shared_out_are_refused(tasks: list[Task]) -> None:
    share = cut(tasks[0], "one")[0]
    other = MinimalPairs("blimp", {"one": [MinimalPair("a", "b", "x", "")]})
    with pytest.raises(UserError, match="blimp/one: the items are not the same on all machines"):
        share.ask(other, Told(told))
