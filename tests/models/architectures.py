"""A small config of every architecture, and models whose every parameter matters."""

from __future__ import annotations

import torch
from torch import Tensor

from hgrnx.config import (
    ARCHITECTURES,
    HGRN2Config,
    LSTMConfig,
    MambaConfig,
    ModelConfig,
    TransformerConfig,
    XLSTMConfig,
)
from hgrnx.models import LanguageModel, build_model

VOCAB = 100
CONFIGS: dict[str, ModelConfig] = {
    "hgrn2": HGRN2Config(hidden_size=48, num_hidden_layers=3, expand_ratio=16, initializer_range=0.02),
    "transformer": TransformerConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=3,
        tie_word_embeddings=False,
        initializer_range=0.02,
    ),
    "lstm": LSTMConfig(embedding_size=24, hidden_size=40, num_hidden_layers=2),
    "mamba": MambaConfig(hidden_size=32, num_hidden_layers=3, state_size=8),
    "xlstm": XLSTMConfig(hidden_size=32, num_hidden_layers=3, num_heads=2, slstm_at=(1,)),
}
assert CONFIGS.keys() == ARCHITECTURES.keys()
CONFIGS["hgrn2-conv"] = CONFIGS["hgrn2"].model_copy(update={"use_short_conv": True, "conv_size": 3})


def lively(config: ModelConfig, seed: int = 0, vocab_size: int = VOCAB) -> LanguageModel:
    """A model in evaluation mode, far from its initial weights, some of which are constants."""
    model = build_model(config, vocab_size, seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "lower_bounds" in name else 0.2
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random tokens."""
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))
