from __future__ import annotations

import torch
from architectures import VOCAB, lively, tokens

from hgrnx.config import LSTMConfig
from hgrnx.models import build_model


def test_dropout_is_between_the_layers_and_in_training_only() -> None:
    model = lively(LSTMConfig(embedding_size=16, hidden_size=16, dropout=0.5, tie_word_embeddings=False))
    ids = tokens(2, 9)
    exact, after = model.hidden(ids)
    assert torch.equal(model.hidden(ids)[0], exact)
    model.train()
    torch.manual_seed(0)
    dropped, state = model.hidden(ids)
    assert not torch.allclose(dropped, exact, atol=1e-2)
    assert not torch.allclose(model.hidden(ids)[0], dropped, atol=1e-2)
    # Neither the first layer's own memory nor the output of the last one has gaps.
    torch.testing.assert_close(state.output_BLH[:, 0], after.output_BLH[:, 0])
    assert (dropped != 0).all()


def test_the_gates_feel_the_token_from_the_start() -> None:
    model = build_model(LSTMConfig(embedding_size=64, hidden_size=128), VOCAB, 0).eval()
    output_BTH, _ = model.lstm(model.embedding(tokens(64, 1)))
    # How much of the last layer's output the token decides: a third, and 0.0002 with an embedding of N(0, 0.02).
    assert output_BTH.std(0).square().mean() > 0.1 * output_BTH.square().mean()
