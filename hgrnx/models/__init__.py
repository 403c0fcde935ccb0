"""Language models. :func:`build_model` makes one from a recipe's ``model`` section."""

from __future__ import annotations

import torch

from hgrnx.config import ModelConfig
from hgrnx.models.base import LanguageModel, State
from hgrnx.models.hgrn2 import HGRN2

__all__ = ["LanguageModel", "State", "build_model", "empty_model"]


def empty_model(config: ModelConfig, vocab_size: int) -> LanguageModel:
    """The model on torch's meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return HGRN2(config, vocab_size)


def build_model(config: ModelConfig, vocab_size: int, seed: int = 0) -> LanguageModel:
    """A freshly initialised float32 model on the CPU. ``seed`` alone decides the weights.

    Linear and embedding weights are drawn from N(0, ``initializer_range``), norms are 1, lower bounds 0 (FLA's
    initialisation). Rows of the vocabulary's padding are 0; being masked, they stay so.
    """
    model = empty_model(config, vocab_size).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm." in name:
                parameter.fill_(1.0)
            elif name.endswith("lower_bounds"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
        for rows in model._vocabulary_parameters():
            rows[vocab_size:].zero_()
    return model
