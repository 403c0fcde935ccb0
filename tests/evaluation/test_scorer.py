from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from hgrnx.config import HGRN2Config, TransformerConfig
from hgrnx.evaluation.scorer import Scorer
from hgrnx.models import LanguageModel, build_model


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
    scores = Scorer(model, tokenizer, 0).strings(sentences)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted) > 10, "the sentences must differ for this to mean anything"


@pytest.fixture(params=["hgrn2", "transformer"])
def either(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> LanguageModel:
    config = {
        "hgrn2": HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16),
        "transformer": TransformerConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
        ),
    }[request.param]
    return build_model(config, tokenizer.get_vocab_size(), seed=0).eval()


@pytest.fixture(scope="module")
def pairs() -> list[str]:
    """A sentence and the same in another order, 128 times."""
    generator = np.random.default_rng(0)
    found: dict[str, str] = {}
    while len(found) < 128:
        words = generator.choice(
            ["the", "a", "dog", "cats", "bark", "sees", "run", "and", "big"], size=generator.integers(3, 12)
        ).tolist()
        found[" ".join(words)] = " ".join(generator.permutation(words))
    return [sentence for pair in found.items() for sentence in pair]


def test_score_is_the_same_for_batches_of_1_of_7_and_of_256(
    either: LanguageModel, tokenizer: Tokenizer, pairs: list[str]
) -> None:
    scorer = Scorer(either, tokenizer, 0)
    found = {
        size: np.concatenate([scorer.strings(pairs[i : i + size]) for i in range(0, len(pairs), size)])
        for size in (1, 7, 256)
    }
    assert np.ptp(found[256]) > 50, "they must differ for this to mean anything"
    exact = one_by_one(copy.deepcopy(either).double(), tokenizer, pairs)
    for scores in found.values():
        np.testing.assert_allclose(scores, found[256], rtol=1e-6)
        np.testing.assert_allclose(scores, exact, rtol=1e-6)
        answers, wanted = (np.argmax(given.reshape(-1, 2), 1) for given in (scores, exact))
        np.testing.assert_array_equal(answers, wanted)
    assert 0.3 < wanted.mean() < 0.7, "the answers differ too"


@pytest.mark.parametrize("batch_tokens", [1, 16, 64, 100_000])
def test_score_does_not_depend_on_the_order_nor_on_tokens_read_at_once(
    either: LanguageModel, tokenizer: Tokenizer, pairs: list[str], batch_tokens: int
) -> None:
    wanted = Scorer(either, tokenizer, 0).strings(pairs)
    order = np.random.default_rng(1).permutation(len(pairs))
    shuffled = Scorer(either, tokenizer, 0, batch_tokens=batch_tokens).strings([pairs[i] for i in order])
    np.testing.assert_allclose(shuffled, wanted[order], rtol=1e-6)


def test_prefix_comes_before_every_string(model: LanguageModel, tokenizer: Tokenizer) -> None:
    strings = ["dogs bark.", "the cat runs."]
    for prefix in ("", " ", "the big"):
        np.testing.assert_allclose(
            Scorer(model, tokenizer, 0).strings(strings, prefix=prefix),
            one_by_one(model, tokenizer, strings, prefix),
            rtol=1e-5,
        )


def test_equal_strings_and_empty_ones(model: LanguageModel, tokenizer: Tokenizer) -> None:
    scores = Scorer(model, tokenizer, 0).strings(["", "dogs", "", "dogs"], prefix="")
    assert scores[0] == scores[2] == 0.0
    assert scores[1] == scores[3] < 0
    assert Scorer(model, tokenizer, 0).strings([]).shape == (0,)


def test_bfloat16_is_close_and_only_when_asked(
    model: LanguageModel, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    exact = Scorer(model, tokenizer, 0).strings(sentences)
    rough = Scorer(model, tokenizer, 0, precision="bf16").strings(sentences)
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()
    assert len(np.unique(rough)) == len(np.unique(exact)), "float32 log-softmax makes no ties"


def test_faster_products_allowed_elsewhere_do_not_reach_the_scores(
    model: LanguageModel, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    exact = Scorer(model, tokenizer, 0).strings(sentences)
    torch.set_float32_matmul_precision("medium")
    try:
        np.testing.assert_array_equal(Scorer(model, tokenizer, 0).strings(sentences), exact)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_progress_reaches_the_end(model: LanguageModel, tokenizer: Tokenizer, sentences: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    Scorer(model, tokenizer, 0, batch_tokens=64, on_progress=lambda *at: seen.append(at)).strings(sentences)
    assert seen[-1][0] == seen[-1][1] == len(set(sentences))
    assert len(seen) > 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_continuations_are_what_a_text_adds_to_its_context(model: LanguageModel, tokenizer: Tokenizer) -> None:
    scorer = Scorer(model, tokenizer, 0)
    pairs = [
        ("the dog runs.", " the cat sees"),
        ("the dog runs.", " a cat"),
        ("a dog ", "runs"),
        ("", "dogs"),
        ("a", ""),
    ]
    wholes = one_by_one(model, tokenizer, [context + continuation for context, continuation in pairs], prefix="")
    contexts = np.array([one_by_one(model, tokenizer, [c.rstrip()], "")[0] if c else 0.0 for c, _ in pairs])
    scores = scorer.continuations([*pairs, pairs[1]])
    np.testing.assert_allclose(scores[:-1], wholes - contexts, rtol=1e-5, atol=1e-5)
    assert scores[-1] == scores[1]
    assert scores[-2] == 0, "nothing to score"


def test_tokens_that_span_the_seam_follow_the_rule_of_lm_eval(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """ " cat" + "s" is one token, as " cat" is: nothing is left for the continuation "s"."""
    assert len(tokenizer.encode(" the cats").ids) == len(tokenizer.encode(" the cat").ids) == 2
    np.testing.assert_array_equal(Scorer(model, tokenizer, 0).continuations([(" the cat", "s")]), [0.0])


def test_bfloat16_answers_as_float32_does_without_ties(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Summed in bfloat16, as elsewhere, one pair in eight of a random model ties."""
    generator = np.random.default_rng(3)
    words = ["the", "a", "dog", "cats", "bark", "sees", "run", "and", "big"]
    pairs = [generator.choice(words, 8) for _ in range(300)]
    swapped = [np.concatenate([words[:3], words[3:5][::-1], words[5:]]) for words in pairs]
    texts = [" ".join(words) for both in zip(pairs, swapped) for words in both if (both[0] != both[1]).any()]
    exact, rough = (
        Scorer(model, tokenizer, 0, precision).strings(texts).reshape(-1, 2) for precision in ("fp32", "bf16")
    )
    assert len(exact) > 200
    assert (rough[:, 0] != rough[:, 1]).all()
    right, right_rough = ((scores[:, 0] > scores[:, 1]).mean() for scores in (exact, rough))
    assert abs(right - right_rough) <= np.sqrt(right * (1 - right) / len(exact))
    margins = np.abs(exact[:, 0] - exact[:, 1])
    changed = (exact[:, 0] > exact[:, 1]) != (rough[:, 0] > rough[:, 1])
    assert margins[changed].max(initial=0) <= 2 * np.abs(rough - exact).max(), "only where rounding decides"
