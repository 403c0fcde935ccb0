from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import VOCAB, lively, tokens

from hgrnx.config import TransformerConfig
from hgrnx.models.folders import load_folder, save_folder
from hgrnx.models.transformer import TransformerState

CONFIG = TransformerConfig(
    hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, rms_norm_eps=1e-3, rope_theta=50.0
)


@pytest.mark.parametrize("tie", [True, False])
def test_it_is_transformers_llama(tmp_path: Path, tie: bool) -> None:
    """Weights both ways, logits and gradients."""
    transformers = pytest.importorskip("transformers")
    model = lively(CONFIG.model_copy(update={"tie_word_embeddings": tie}))
    save_folder(model, tmp_path / "ours")
    llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    ids = tokens(2, 37)
    logits, wanted = model(ids), llama(ids).logits[..., :VOCAB]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    logits.square().mean().backward()
    wanted.square().mean().backward()
    theirs = dict(llama.named_parameters())
    assert theirs.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        wanted = theirs[name].grad  # its vocabulary has no padding
        error = (parameter.grad[: len(wanted)] - wanted).norm() / wanted.norm()
        assert error < 1e-4, (name, error)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.mul_(1.1)
    llama.save_pretrained(tmp_path / "theirs")
    back = load_folder(tmp_path / "theirs")
    torch.testing.assert_close(back(ids)[..., :VOCAB], llama(ids).logits[..., :VOCAB], rtol=1e-4, atol=1e-4)


def test_the_cache_has_no_gaps_and_grows_with_the_longest_row() -> None:
    model = lively(CONFIG)
    _, state = model.rows(tokens(3, 9), torch.tensor([9, 1, 4]), None)
    _, state = model.rows(tokens(3, 5), torch.tensor([1, 5, 2]), state)
    assert isinstance(state, TransformerState)
    assert state.lengths_B.tolist() == [10, 6, 6]
    _, state = model.hidden(tokens(2, 1), state=state.select(torch.tensor([1, 2])))
    assert state.keys[0].shape == (2, 3, 7, 16), "what only the dropped row needed is gone"
