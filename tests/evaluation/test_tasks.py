"""BLiMP, EWoK and BEAR as tasks, and their tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_data import Told, write_bear, write_eval_data
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hgrnx.data.benchmark_items import EwokItem, MinimalPair
from hgrnx.data.benchmarks import read_bear, read_ewok, read_minimal_pairs
from hgrnx.errors import UserError
from hgrnx.evaluation.bear import Bear
from hgrnx.evaluation.choices import Choices, accuracy, mean_accuracy
from hgrnx.evaluation.ewok import Ewok
from hgrnx.evaluation.minimal_pairs import MinimalPairs
from hgrnx.evaluation.scorer import Scorer
from hgrnx.models import LanguageModel


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=20), st.data())
def test_accuracy_is_that_of_each_item_by_hand(rows: list[list[int]], data: st.DataObject) -> None:
    right = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    official = [row.index(max(row)) == answer for row, answer in zip(rows, right)]
    shared = [(row[answer] == max(row)) / row.count(max(row)) for row, answer in zip(rows, right)]
    row = accuracy("a", "g", Choices(np.array(right), np.array(rows, dtype=float)[None]))
    assert row.accuracy == pytest.approx(np.mean(official))
    assert row.accuracy_ties_half == pytest.approx(np.mean(shared))
    assert row.ties == sum(row.count(max(row)) > 1 for row in rows)
    assert row.stderr == pytest.approx(math.sqrt(row.accuracy * (1 - row.accuracy) / len(rows)))
    assert row.items == len(rows)


def test_means_are_weighted_only_when_asked() -> None:
    one = accuracy("a", "g", Choices(np.zeros(4, int), np.array([[[1.0, 0.0]] * 3 + [[0.0, 1.0]]])))
    two = accuracy("b", "g", Choices(np.zeros(1, int), np.array([[[0.0, 1.0]]])))
    assert mean_accuracy("m", "g", [one, two]).accuracy == pytest.approx(0.375)
    weighted = mean_accuracy("m", "g", [one, two], [4, 1])
    assert weighted.accuracy == pytest.approx(0.6) and weighted.items == 5
    assert weighted.stderr == pytest.approx(4 * one.stderr / 5)


def test_pairs_are_asked_with_a_space_and_grouped_by_phenomenon() -> None:
    files = {
        "one": [MinimalPair("right", "no", "x", ""), MinimalPair("no", "no", "x", "")],
        "two": [MinimalPair("no", "right", "x", "")],
        "three": [MinimalPair("right", "no", "y", "")],
    }
    task, scorer = MinimalPairs("blimp", files), Told(lambda text: float(text == "right"))
    score = task.summarise({name: task.score(name, scorer) for name in task.subtasks})
    assert scorer.asked[:2] == [" right", " no"]
    assert {row.name: row.accuracy for row in score.subtasks} == {"one": 1.0, "two": 0.0, "three": 1.0}
    assert {row.name: row.accuracy for row in score.groups} == {"x": 0.5, "y": 1.0}
    assert score.overall is not None and score.overall.accuracy == pytest.approx(2 / 3)
    assert score.overall.accuracy_ties_half == pytest.approx(1.75 / 3) and score.overall.ties == 1
    assert len({task.data_hash(name) for name in task.subtasks}) == 3


def test_a_model_without_an_opinion_gets_half(model: LanguageModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with torch.no_grad():
        model.head_weight[: model.vocab_size] = 0.0  # constant logits
    folder = write_eval_data(tmp_path / "eval")
    task = MinimalPairs("blimp", read_minimal_pairs(folder / "blimp_filtered"))
    scorer = Scorer(model, tokenizer, 0)
    some = task.subtasks[:5]
    counts = scorer.token_counts([text for name in some for pair in task.texts(name) for text in pair])
    assert (counts[::2] == counts[1::2]).all()
    for row in [accuracy(name, "g", task.score(name, scorer)) for name in some]:
        assert (row.accuracy_ties_half, row.accuracy, row.ties) == (0.5, 1.0, 2)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused_by_name(broken: float, tmp_path: Path) -> None:
    write_bear(tmp_path / "BEAR")
    pairs = [MinimalPair("fine", "fine too", "x", ""), MinimalPair("fine", "BROKEN", "x", "")]
    item = EwokItem("d", ("a", "b"), "", "", "", ("c1", "c2"), ("t1", "t2 BROKEN"))
    scorer = Told(lambda text: broken if "BROKEN" in text or "The big cats see a cat" in text else -1.0)
    with pytest.raises(UserError, match=r"blimp/f, item 1 \(from 0\).*for 1 of 2 items"):
        MinimalPairs("blimp", {"f": pairs}).score("f", scorer)
    with pytest.raises(UserError, match=r"ewok/social, item 0 \(from 0\)") as caught:
        Ewok("ewok", {"social": [item]}).score("social", scorer)
    assert "t2" not in str(caught.value), "EWoK's texts stay out of messages"
    with pytest.raises(UserError, match=r"bear/P1, item 3 \(from 0\)"):
        Bear(read_bear(tmp_path / "BEAR")).score("P1", scorer)


def test_ewok_asks_for_targets_after_the_first_context(tmp_path: Path) -> None:
    task = Ewok("ewok", read_ewok(write_eval_data(tmp_path / "eval") / "ewok"))
    scorer = Told(lambda text: float(text.startswith(" big")))
    name = task.subtasks[0]
    choices = task.score(name, scorer)
    assert scorer.asked[:2] == [
        ("the dog and secret dogs run.", " the see big"),
        ("the dog and secret dogs run.", " big see the"),
    ]
    assert choices.chosen().tolist() == [[1, 1]] and choices.right_N.tolist() == [0, 0]
    assert len(task.subtasks) == 11 and task.texts(name)[0] == ("the see big", "big see the")


class TestBear:
    @pytest.fixture
    def relations(self, tmp_path: Path) -> list[Any]:
        write_bear(tmp_path / "bear" / "BEAR")
        return read_bear(tmp_path / "bear")

    def test_statements_are_whole_and_begin_with_a_capital(self, relations: list[Any]) -> None:
        task, scorer = Bear(relations), Told(lambda text: 0.0)
        assert task.score("P1", scorer).scores_VNK.shape == (3, 4, 2)
        assert scorer.asked[:3] == ["The dog see the dog.", "The dog see a cat.", "A cat see the dog."]
        assert scorer.asked[8] == "The dog see the dog." and scorer.asked[9] == "A cat see the dog."
        assert scorer.asked[16] == "The the dog and the dog."

    def test_instances_count_not_relations(self, relations: list[Any]) -> None:
        task = Bear(relations)
        # P1: "the dog" is preferred, which is right for subjects 0 and 2 of 4; P2: the answer that never is.
        scorer = Told(lambda text: 2.0 * (text.lower().count("the dog")) + 3 * text.lower().count("the cats see"))
        results = {name: task.score(name, scorer) for name in task.subtasks}
        score = task.summarise(results)
        by_hand = {name: (choices.chosen() == choices.right_N) for name, choices in results.items()}
        assert score.overall is not None
        assert score.overall.accuracy == pytest.approx(
            np.concatenate([rows.ravel() for rows in by_hand.values()]).mean()
        )
        assert score.overall.items == 6
        for place, row in enumerate(score.templates):
            rows = np.concatenate([rows[place] for rows in by_hand.values()])
            assert (row.name, row.accuracy) == (f"template {place}", pytest.approx(rows.mean()))
        domains = {row.name: row.accuracy for row in score.groups}
        one, two = by_hand["P1"].mean(), by_hand["P2"].mean()
        assert abs(one - two) > 0.1, "or weights would not matter"
        assert domains == {
            "Arts": pytest.approx((one * 4 / 2 + two * 2) / (4 / 2 + 2)),
            "Geographic": pytest.approx(one),
        }

    def test_templates_and_reduction(self, relations: list[Any]) -> None:
        scorer = Told(lambda text: -float(len(text)))
        task = Bear(relations, templates=[2], reduction="mean")
        choices = task.score("P2", scorer)
        texts = [f"{subject} {answer}." for subject in ("The dog", "A cat") for answer in relations[1].answers]
        wanted = [-len(text) / len(text.split()) for text in texts]
        np.testing.assert_allclose(choices.scores_VNK.ravel(), wanted)
        assert task.summarise({"P2": choices}).templates == []
        hashes = {Bear(relations, *args).data_hash("P1") for args in [(), ([2],), ([2], "mean")]}
        assert len(hashes) == 3

    def test_a_real_model_gives_sums_of_log_probabilities(
        self, relations: list[Any], model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        choices = Bear(relations).score("P1", Scorer(model, tokenizer, 0))
        ids = torch.tensor([0, *tokenizer.encode("A cat see the dog.").ids])
        with torch.no_grad():
            log_probs = model(ids[None, :-1])[0].double().log_softmax(-1)
        alone = float(log_probs.gather(1, ids[1:, None]).sum())
        assert choices.scores_VNK[0, 1, 0] == pytest.approx(alone, rel=1e-5)
