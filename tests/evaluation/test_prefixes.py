"""What is read once, what is predicted from it, and that every row gets its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrnx.config import HGRN2Config, LSTMConfig, TransformerConfig
from hgrnx.evaluation.prefixes import Batch, shared_batches
from hgrnx.evaluation.scoring import score_tokens
from hgrnx.models import LanguageModel, build_model

CONFIGS = {
    "hgrn2": HGRN2Config(hidden_size=16, num_hidden_layers=2, expand_ratio=8),
    "transformer": TransformerConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=False
    ),
    "lstm": LSTMConfig(embedding_size=12, hidden_size=16, num_hidden_layers=1, dropout=0.0),
}
VOCAB = 6


def arrays(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def plan(rows: list[list[int]], starts: list[int] | None = None, **options: object) -> list[Batch]:
    options = {"batch_tokens": 1000, **options}
    return list(shared_batches(arrays(rows), np.array(starts or [1] * len(rows)), **options))  # type: ignore[arg-type]


def what_is_read(batch: Batch) -> list[list[int]]:
    """The tokens up to each place of the batch, its own included."""
    bounds, tokens = batch.forest.cu_seqlens.tolist(), batch.tokens_T.tolist()
    texts: list[list[int]] = []
    for segment, parent in enumerate(batch.forest.parents_N.tolist()):
        before = texts[bounds[parent + 1] - 1] if parent >= 0 else []
        for place in range(bounds[segment], bounds[segment + 1]):
            before = [*before, tokens[place]]
            texts.append(before)
    return texts


def predictions(batches: list[Batch], count: int) -> list[list[tuple[list[int], int]]]:
    """For each row, what is predicted after what."""
    found: dict[int, list[tuple[list[int], int]]] = {}
    for batch in batches:
        read = what_is_read(batch)
        assert (np.diff(batch.sources_E) >= 0).all()
        for row, numbers in zip(batch.rows_n, batch.predictions_nL, strict=True):
            assert row not in found
            kept = numbers[numbers < len(batch.sources_E)]
            found[row] = [(read[batch.sources_E[e]], int(batch.targets_E[e])) for e in kept]
    return [found[row] for row in range(count)]


def wanted(rows: list[list[int]], starts: list[int]) -> list[list[tuple[list[int], int]]]:
    return [
        [(row[:place], row[place]) for place in range(start, len(row))] for row, start in zip(rows, starts, strict=True)
    ]


def tokens_read(batches: list[Batch]) -> int:
    return sum(len(batch.tokens_T) for batch in batches)


class TestWhatIsRead:
    def test_a_common_start_once_and_no_last_token(self) -> None:
        (batch,) = plan([[0, 1, 2, 3, 4], [0, 1, 2, 5, 4, 3]])
        assert batch.tokens_T.tolist() == [0, 1, 2, 3, 5, 4]
        assert batch.forest.parents_N.tolist() == [-1, 0, 0]

    def test_answers_after_one_context_need_it_alone(self) -> None:
        (batch,) = plan([[0, 1, 2, answer] for answer in (3, 4, 5)])
        assert batch.tokens_T.tolist() == [0, 1, 2]
        assert batch.sources_E.tolist() == [0, 1, 2, 2, 2] and batch.targets_E.tolist() == [1, 2, 3, 4, 5]

    def test_a_row_that_begins_another_adds_nothing(self) -> None:
        (batch,) = plan([[0, 1, 2], [0, 1], [0, 1, 2, 3], [0, 1, 2]])
        assert batch.tokens_T.tolist() == [0, 1, 2] and len(batch.sources_E) == 3

    def test_contexts_are_read_and_not_predicted(self) -> None:
        (batch,) = plan([[0, 1, 2, 3, 4], [0, 1, 2, 5]], [3, 3])
        assert sorted(zip(batch.sources_E, batch.targets_E)) == [(2, 3), (2, 5), (3, 4)]

    def test_short_segments_are_read_again_where_going_on_from_them_costs_more(self) -> None:
        rows = [[0, 1, 2, 2], [0, 1, 3, 3], [0, 4, 4, 4]]
        assert tokens_read(plan(rows)) == 6
        (batch,) = plan(rows, segment_cost=0.6)  # reading 1 twice is cheaper, reading 0 three times is not
        assert batch.forest.parents_N.tolist() == [-1, 0, 0, 0] and len(batch.tokens_T) == 7
        (batch,) = plan(rows, segment_cost=100)
        assert batch.forest.parents_N.tolist() == [-1, -1, -1] and len(batch.tokens_T) == 9

    def test_batches_and_trees_keep_to_their_sizes(self) -> None:
        generator = np.random.default_rng(0)
        rows = [[0, *generator.integers(1, 4, generator.integers(1, 12)).tolist()] for _ in range(300)]
        whole = tokens_read(plan(rows, batch_tokens=100_000))
        for tree in (None, 30):
            batches = plan(rows, batch_tokens=120, tree_tokens=tree)
            for batch in batches:
                trees = batch.forest.cu_seqlens[:-1][batch.forest.parents_N < 0].tolist()
                sizes = np.diff([*trees, len(batch.tokens_T)])
                assert len(sizes) * max(sizes) <= 120 and max(sizes) <= (tree or 120)
                assert tree or len(sizes) == 1
            assert whole < tokens_read(batches) < 1.5 * whole
        (long, *_) = plan([[0, *range(1, 40)]], batch_tokens=10)
        assert len(long.tokens_T) == 39


ROWS = st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=9).map(lambda row: [0, *row]), min_size=1)
COSTS = st.sampled_from([0.0, 1.0, 3.0, 1000.0])


@settings(max_examples=150, deadline=None)
@given(ROWS, st.data(), COSTS, st.integers(1, 40), st.sampled_from([None, 7]))
def test_every_token_is_predicted_after_its_row(
    rows: list[list[int]], data: st.DataObject, cost: float, batch_tokens: int, tree_tokens: int | None
) -> None:
    starts = [data.draw(st.integers(1, len(row) - 1)) for row in rows]
    batches = plan(rows, starts, batch_tokens=batch_tokens, tree_tokens=tree_tokens, segment_cost=cost)
    assert predictions(batches, len(rows)) == wanted(rows, starts)


@given(ROWS)
def test_no_token_is_read_twice(rows: list[list[int]]) -> None:
    (batch,) = plan(rows, batch_tokens=10_000)
    texts = {tuple(text) for text in what_is_read(batch)}
    assert len(texts) == len(batch.tokens_T)
    assert texts == {tuple(row[:end]) for row in rows for end in range(1, len(row))}


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest) -> LanguageModel:
    model = build_model(CONFIGS[request.param], VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


@settings(max_examples=15, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 9))
def test_scores_are_those_of_each_row_alone(model: LanguageModel, rows: list[list[int]], seed: int) -> None:
    rows = [*rows, [0], rows[0], rows[0][:2]]
    starts = np.random.default_rng(seed).integers(1, 6, len(rows))  # some beyond the end
    naive = []
    for row, start in zip(rows, starts):
        with torch.no_grad():
            log_probs = model(torch.tensor([row]))[0].double().log_softmax(-1)
        naive.append(sum(float(log_probs[place - 1, row[place]]) for place in range(start, len(row))))
    for batch_tokens in (1, 7, 256):
        scores = score_tokens(model, arrays(rows), starts, batch_tokens=batch_tokens)
        np.testing.assert_allclose(scores, naive, rtol=1e-5, atol=1e-5)
