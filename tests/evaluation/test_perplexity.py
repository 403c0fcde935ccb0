from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch

from hgrnx.errors import UserError
from hgrnx.evaluation.perplexity import Counts, bits_per_byte, spaced_sample
from hgrnx.models import LanguageModel


def test_counts_are_those_of_separate_documents(model: LanguageModel, dataset: Any) -> None:
    split = dataset.split("dev")
    nats = tokens = 0.0
    for start, stop in zip(split.doc_offsets[:-1], split.doc_offsets[1:], strict=True):
        ids = torch.tensor(split.tokens[start:stop].astype(np.int64))
        with torch.no_grad():
            log_probs = model(ids[None, :-1])[0].double().log_softmax(-1)
        nats -= float(log_probs.gather(1, ids[1:, None]).sum())
        tokens += len(ids) - 1
    counts = bits_per_byte(model, split)
    assert counts.nats == pytest.approx(nats, rel=1e-5)
    assert (counts.tokens, counts.bytes) == (tokens, split.doc_bytes.sum())
    assert counts.bits_per_byte == pytest.approx(nats / math.log(2) / split.doc_bytes.sum(), rel=1e-5)
    assert counts.nats_per_token == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.parametrize("world", [2, 3, 30])
def test_ranks_add_up(model: LanguageModel, dataset: Any, world: int) -> None:
    split = dataset.split("dev")
    whole = bits_per_byte(model, split, documents=13)
    parts = [bits_per_byte(model, split, documents=13, rank=rank, world_size=world) for rank in range(world)]
    total = reduce(Counts.merge, parts)
    assert total.nats == pytest.approx(whole.nats, rel=1e-6)
    assert (total.bytes, total.tokens) == (whole.bytes, whole.tokens)


def test_uniform_model_needs_log_vocabulary_nats(model: LanguageModel, dataset: Any) -> None:
    with torch.no_grad():
        model.head_weight[: model.vocab_size] = 0.0
    counts = bits_per_byte(model, dataset.split("dev"))
    assert counts.nats_per_token == pytest.approx(math.log(model.vocab_size), rel=1e-6)


def test_broken_weights_are_refused(model: LanguageModel, dataset: Any) -> None:
    with torch.no_grad():
        model.head_weight[5, 0] = math.nan
    with pytest.raises(UserError, match="not numbers on document 0"):
        bits_per_byte(model, dataset.split("dev"))


def test_sample_is_even_and_fixed() -> None:
    assert spaced_sample(10, 4).tolist() == [0, 2, 5, 7]
    assert spaced_sample(3, 5).tolist() == spaced_sample(3, None).tolist() == [0, 1, 2]
    assert len(np.unique(spaced_sample(1000, 999))) == 999
