from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import VOCAB, lively, tokens

from hgrnx.config import MambaConfig
from hgrnx.models import build_model
from hgrnx.models.folders import load_folder, save_folder
from hgrnx.models.mamba import Mamba, MambaState

CONFIG = MambaConfig(
    hidden_size=24, num_hidden_layers=3, state_size=6, expand=3, conv_kernel=3, layer_norm_epsilon=1e-3
)


@pytest.mark.parametrize("tie", [True, False])
def test_it_is_transformers_mamba(tmp_path: Path, tie: bool) -> None:
    """Weights both ways, logits and gradients."""
    transformers = pytest.importorskip("transformers")
    model = lively(CONFIG.model_copy(update={"tie_word_embeddings": tie}))
    save_folder(model, tmp_path / "ours")
    theirs = transformers.MambaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    ids = tokens(2, 37)
    logits, wanted = model(ids), theirs(ids).logits[..., :VOCAB]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    logits.square().mean().backward()
    wanted.square().mean().backward()
    parameters = dict(theirs.named_parameters())
    assert parameters.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        wanted = parameters[name].grad  # its vocabulary has no padding
        error = (parameter.grad[: len(wanted)] - wanted).norm() / wanted.norm()
        assert error < 1e-4, (name, error)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(1.1)
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_folder(tmp_path / "theirs")
    torch.testing.assert_close(back(ids), theirs(ids).logits[..., : back.vocab_size], rtol=1e-4, atol=1e-4)


def test_initial_steps_and_decays_are_the_authors() -> None:
    model = build_model(CONFIG.model_copy(update={"hidden_size": 256}), VOCAB)
    assert isinstance(model, Mamba)
    mixer = model.backbone.layers[1].mixer
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert 0.001 <= steps.min() < 0.0015 and 0.07 < steps.max() <= 0.1001
    assert 0.008 < steps.log().mean().exp() < 0.0125, "evenly spread in the logarithm"
    torch.testing.assert_close(mixer.A_log.exp()[5], torch.arange(1.0, 7.0))
    assert (mixer.D == 1).all()
    assert mixer.out_proj.weight.abs().max() <= (768 * 3) ** -0.5
    assert mixer.in_proj.weight.abs().max() > 0.99 * 256**-0.5


def test_the_state_is_of_constant_size() -> None:
    model = lively(CONFIG)
    for length in (1, 2, 9):
        _, state = model.hidden(tokens(2, length))
        assert isinstance(state, MambaState)
        assert state.inputs[0].shape == (2, 2, 72) and state.states[0].shape == (2, 72, 6)
        assert state.states[0].dtype == torch.float32
