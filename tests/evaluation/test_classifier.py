"""The head reads each text's last token, whatever shares its batch; texts are cut as the tokenizers library cuts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from architectures import CONFIGS, VOCAB, lively
from hypothesis import given
from hypothesis import strategies as st

from hgrnx.errors import UserError
from hgrnx.evaluation.classifier import Classifier, class_logits, encode_texts, length_buckets, longest_first

CPU = torch.device("cpu")


def texts_of(count: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCAB, generator.integers(1, 14)) for _ in range(count)]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_logits_are_those_of_each_text_alone(architecture: str) -> None:
    model = lively(CONFIGS[architecture])
    classifier = Classifier(model, 3, torch.Generator().manual_seed(0))
    rows = texts_of(9)
    alone = np.stack(
        [
            (model.rows(torch.from_numpy(row)[None], None, None)[0][0, -1] @ classifier.score.weight.T).detach().numpy()
            for row in rows
        ]
    )
    for batch_tokens in (1, 20, 1000):
        logits = class_logits(classifier, rows, batch_tokens=batch_tokens)
        np.testing.assert_allclose(logits, alone, atol=2e-5, rtol=1e-4)
    assert np.ptp(alone, axis=0).min() > 1e-3  # the texts differ


def test_bf16_keeps_the_head_in_float32() -> None:
    classifier = Classifier(lively(CONFIGS["hgrn2"]), 2, torch.Generator().manual_seed(0))
    rows = texts_of(64)
    exact, fast = class_logits(classifier, rows), class_logits(classifier, rows, precision="bf16")
    np.testing.assert_allclose(fast, exact, atol=0.1 * np.abs(exact).max())
    assert not (torch.from_numpy(fast).bfloat16().float().numpy() == fast).all()


def test_the_head_is_decided_by_its_generator_and_mode_is_restored() -> None:
    model = lively(CONFIGS["hgrn2"])
    heads = [Classifier(model, 2, torch.Generator().manual_seed(seed)).score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert 0.005 < heads[0].std().item() < 0.05
    classifier = Classifier(model, 2, torch.Generator())
    for training in (True, False):
        class_logits(classifier.train(training), texts_of(3))
        assert classifier.training is classifier.model.training is training


def test_rows_are_bos_then_spaced_texts(tokenizer: Any) -> None:
    rows = encode_texts(tokenizer, 0, [("the dog", None), ("the dog", "cats run"), ("a", None)], max_length=50)
    assert [row[0] for row in rows] == [0, 0, 0]
    decoded = [tokenizer.decode(row[1:].tolist()).replace(" ", "") for row in rows]
    assert decoded == ["ĠtheĠdog", "ĠtheĠdogĊĠcatsĠrun", "Ġa"]


def test_long_rows_are_cut_and_keep_both_texts(tokenizer: Any) -> None:
    long = " ".join(["dog"] * 40)
    alone, both = encode_texts(tokenizer, 0, [(long, None), (long, "cats run")], max_length=16, separator="\n")
    assert len(alone) == len(both) == 16
    cats = tokenizer.encode(" cats run").ids
    assert both[-len(cats) :].tolist() == cats  # the short text is whole
    assert set(both[1 : -len(cats) - 1]) == set(tokenizer.encode(" dog").ids)


def test_a_separator_that_fills_the_row_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="6 tokens long, too many for max_length=8"):
        encode_texts(tokenizer, 0, [("the dog", "cats")], max_length=8, separator="######")


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_texts_are_cut_longest_first(first: int, second: int, room: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.enable_truncation(room, strategy="longest_first")
    ids = words.encode("a " * first, "b " * second).ids
    assert longest_first(first, second, room) == (ids.count(0), ids.count(1))


def test_buckets_hold_every_row_once_within_the_limit() -> None:
    lengths = [5, 1, 9, 5, 30, 2, 5]
    buckets = list(length_buckets(lengths, 12))
    assert sorted(np.concatenate(buckets).tolist()) == list(range(7))
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * max(lengths[i] for i in bucket) <= 12
    assert [4] in [bucket.tolist() for bucket in buckets], "a row over the limit goes alone"
