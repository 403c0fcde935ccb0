from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from hgrnx.evaluation.scoring import length_buckets, score_strings, score_tokens
from hgrnx.models import LanguageModel


def one_by_one(model: LanguageModel, tokenizer: Tokenizer, strings: list[str], prefix: str = " ") -> np.ndarray:
    """Each string alone, whole logits, float64."""
    scores = []
    for string in strings:
        ids = torch.tensor([0, *tokenizer.encode(prefix + string).ids])
        with torch.no_grad():
            log_probs = model(ids[None, :-1])[0].double().log_softmax(-1)
        scores.append(float(log_probs.gather(1, ids[1:, None]).sum()))
    return np.array(scores)


def test_scores_are_the_sums_of_log_probabilities(
    model: LanguageModel, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    wanted = one_by_one(model, tokenizer, sentences)
    scores = score_strings(model, tokenizer, 0, sentences)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted) > 10, "the sentences must differ for this to mean anything"


@pytest.mark.parametrize("batch_tokens", [1, 16, 64, 100_000])
def test_score_does_not_depend_on_batch_size_or_order(
    model: LanguageModel, tokenizer: Tokenizer, sentences: list[str], batch_tokens: int
) -> None:
    wanted = score_strings(model, tokenizer, 0, sentences)
    order = np.random.default_rng(1).permutation(len(sentences))
    shuffled = score_strings(model, tokenizer, 0, [sentences[i] for i in order], batch_tokens=batch_tokens)
    np.testing.assert_allclose(shuffled, wanted[order], rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_prefix_comes_before_every_string(model: LanguageModel, tokenizer: Tokenizer) -> None:
    strings = ["dogs bark.", "the cat runs."]
    for prefix in ("", " ", "the big"):
        np.testing.assert_allclose(
            score_strings(model, tokenizer, 0, strings, prefix=prefix),
            one_by_one(model, tokenizer, strings, prefix),
            rtol=1e-5,
        )


def test_equal_strings_and_empty_ones(model: LanguageModel, tokenizer: Tokenizer) -> None:
    scores = score_strings(model, tokenizer, 0, ["", "dogs", "", "dogs"], prefix="")
    assert scores[0] == scores[2] == 0.0
    assert scores[1] == scores[3] < 0
    assert score_strings(model, tokenizer, 0, []).shape == (0,)


def test_long_rows_are_scored_in_parts_of_the_head(model: LanguageModel) -> None:
    row = np.random.default_rng(0).integers(0, model.vocab_size, 1500)
    with torch.no_grad():
        log_probs = model(torch.tensor(row[None, :-1]))[0].double().log_softmax(-1)
    wanted = float(log_probs.gather(1, torch.tensor(row[1:, None])).sum())
    np.testing.assert_allclose(score_tokens(model, [row], batch_tokens=64), [wanted], rtol=1e-5)


def test_bfloat16_is_close_and_only_when_asked(
    model: LanguageModel, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    exact = score_strings(model, tokenizer, 0, sentences)
    rough = score_strings(model, tokenizer, 0, sentences, precision="bf16")
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()
    assert len(np.unique(rough)) == len(np.unique(exact)), "float32 log-softmax makes no ties"


def test_faster_products_allowed_elsewhere_do_not_reach_the_scores(
    model: LanguageModel, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    exact = score_strings(model, tokenizer, 0, sentences)
    torch.set_float32_matmul_precision("medium")
    try:
        np.testing.assert_array_equal(score_strings(model, tokenizer, 0, sentences), exact)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_progress_reaches_the_end(model: LanguageModel, tokenizer: Tokenizer, sentences: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    score_strings(model, tokenizer, 0, sentences, batch_tokens=64, on_progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] == len(set(sentences))
    assert len(seen) > 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_buckets_hold_every_row_once_within_the_limit() -> None:
    lengths = [5, 1, 9, 5, 30, 2, 5]
    buckets = list(length_buckets(lengths, 12))
    assert sorted(np.concatenate(buckets).tolist()) == list(range(7))
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * max(lengths[i] for i in bucket) <= 12
    assert [4] in [bucket.tolist() for bucket in buckets], "a row over the limit goes alone"
