from __future__ import annotations

import pytest
import torch

from hgrnx.config import HGRN2Config, LSTMConfig, MambaConfig, ModelConfig, TransformerConfig, XLSTMConfig
from hgrnx.models import LanguageModel, build_model, empty_model

CONFIG = HGRN2Config(hidden_size=128, num_hidden_layers=2, expand_ratio=64, tie_word_embeddings=False)


def test_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = build_model(CONFIG, 300, seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = build_model(CONFIG, 300, seed=7)
    assert torch.equal(torch.get_rng_state(), before), "the global random state must not be touched"
    third = build_model(CONFIG, 300, seed=8)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name
    assert not torch.equal(first.head_weight, third.head_weight)


@pytest.mark.parametrize("config", [CONFIG, TransformerConfig(hidden_size=128, intermediate_size=256)])
@pytest.mark.parametrize(("given", "spread"), [(0.05, 0.05), (None, 128**-0.5)])
def test_initial_distribution(config: ModelConfig, given: float | None, spread: float) -> None:
    model = build_model(config.model_copy(update={"initializer_range": given}), 300)
    for name, parameter in model.named_parameters():
        if "norm." in name:
            assert (parameter == 1).all(), name
        elif "lower_bounds" in name:
            assert (parameter == 0).all(), name
        else:
            valid = parameter[:300] if parameter.shape[0] == model.padded_vocab_size else parameter
            assert 0.9 * spread < valid.std() < 1.1 * spread, name
            assert abs(valid.mean()) < 0.1 * spread, name


@pytest.mark.parametrize("config", [LSTMConfig(), MambaConfig(num_hidden_layers=2), XLSTMConfig(num_hidden_layers=2)])
def test_the_gain_widens_the_matrices_of_the_layers_alone(config: ModelConfig) -> None:
    usual = build_model(config, 300)
    wide = build_model(config.model_copy(update={"initializer_gain": 1.5}), 300)
    widened = set()
    for name, parameter in usual.named_parameters():
        other = wide.get_parameter(name)
        if not torch.equal(parameter, other):
            torch.testing.assert_close(other, 1.5 * parameter)
            widened.add(name)
    matrices = {name for name, p in usual.named_parameters() if p.ndim > 1 and p.any()}
    apart = ("embed", "projection", "conv1d", "A_log")
    assert widened == {name for name in matrices if not any(part in name for part in apart)}


def test_vocabulary_is_padded_with_zeros() -> None:
    model = build_model(CONFIG, 300)
    assert (model.vocab_size, model.padded_vocab_size) == (300, 320)
    assert model.head_weight.shape == (320, 128)
    assert (model.head_weight[300:] == 0).all()
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 300)
    assert empty_model(CONFIG, 320).padded_vocab_size == 320


@pytest.mark.parametrize(
    ("rows", "offsets"), [(2, [0, 4]), (1, [0, 3]), (1, [1, 4]), (1, [0, 2, 2, 4]), (1, [0, 3, 2, 4]), (1, [0])]
)
def test_wrong_offsets_are_refused(rows: int, offsets: list[int]) -> None:
    model = build_model(CONFIG, 300)
    with pytest.raises(ValueError, match=r"packed documents|cu_seqlens"):
        LanguageModel.hidden(model, torch.zeros(rows, 4, dtype=torch.long), torch.tensor(offsets))
