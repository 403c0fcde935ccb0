from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrnx.data import sampling
from hgrnx.data.sampling import DomainSample, document_hash, first_words


def documents(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"d{n} " + "w " * draw.randrange(0, 40) + "é\n" for n in range(count)]


def offer(texts: list[str], budget: int, path: Path, seed: int = 0) -> DomainSample:
    sample = DomainSample(budget, path)
    for text in texts:
        sample.add(text, len(text.split()), document_hash(text, seed))
    return sample


def expected(texts: list[str], budget: int, seed: int = 0) -> list[tuple[str, int]]:
    """By definition: different documents in the order of their hashes until the budget is reached, and one more."""
    kept, total, complete = [], 0, budget == 0
    for text in sorted(set(texts), key=lambda text: document_hash(text, seed)):
        kept.append((text, len(text.split())))
        if complete:
            break
        total += kept[-1][1]
        complete = total >= budget
    return kept


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_order_and_sharding_do_not_matter(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sample")
    pool = documents(30)
    texts = data.draw(st.lists(st.sampled_from(pool), max_size=60))
    budget = data.draw(st.integers(0, 700))
    readers = data.draw(st.integers(1, 4))
    order = data.draw(st.permutations(texts))
    parts = [offer(list(order[index::readers]), budget, folder / str(index)) for index in range(readers)]
    while len(parts) > 1:  # in any shape of a tree
        other = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        other.close()
        parts[data.draw(st.integers(0, len(parts) - 1))].merge(other)
    (whole,) = parts
    assert list(whole.in_order()) == expected(texts, budget)
    assert whole.documents == len(texts)
    assert whole.available_words == sum(len(text.split()) for text in texts)
    kept = {text for text, _ in expected(texts, budget)}
    assert whole.duplicates == sum(texts.count(text) - 1 for text in kept)


def test_the_budget_is_reached_by_the_last_document_but_one(tmp_path: Path) -> None:
    texts = documents(500)
    sample = offer(texts, 1_000, tmp_path / "a")
    words = [count for _, count in sample.in_order()]
    assert sum(words[:-1]) >= 1_000 > sum(words[:-2])


def test_seeds_choose_differently(tmp_path: Path) -> None:
    texts = documents(500)
    chosen = [{text for text, _ in offer(texts, 2_000, tmp_path / str(seed), seed).in_order()} for seed in (0, 1)]
    share = len(chosen[0] & chosen[1]) / len(chosen[0])
    assert 0 < share < 0.5  # about a fifth of all words is taken


def test_every_document_has_the_same_chance(tmp_path: Path) -> None:
    """Over many seeds each of 20 equally long documents is chosen about as often."""
    texts = [f"one two d{n}\n" for n in range(20)]
    times = dict.fromkeys(texts, 0)
    for seed in range(400):
        for text, _ in offer(texts, 15, tmp_path / "a", seed).in_order():
            times[text] += 1
    assert sum(times.values()) == 400 * 6
    assert all(75 < count < 165 for count in times.values()), times  # 120 +- 5 standard deviations


def test_the_waiting_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_COMPACT_ABOVE", 2_000)
    texts = documents(3_000)
    sample = offer(texts, 500, tmp_path / "a")
    assert list(sample.in_order()) == expected(texts, 500)
    sample.close()
    assert (tmp_path / "a").stat().st_size < 8_000 < sum(len(text) for text in texts) // 10


@pytest.mark.parametrize(
    ("words", "kept"),
    [(1, "a\n"), (2, "a  b\n"), (3, "a  b\n\u3000c\n"), (4, "a  b\n\u3000c\x1cd\n"), (9, "a  b\n\u3000c\x1cd\n")],
)
def test_first_words(words: int, kept: str) -> None:
    document = "a  b\n\u3000c\x1cd\n"
    assert first_words(document, words) == kept
    assert len(kept.split()) == min(words, len(document.split()))
