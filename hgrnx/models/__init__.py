"""Language models. :func:`build_model` makes one from a recipe's ``model`` section."""

from __future__ import annotations

import torch

from hgrnx.config import ModelConfig
from hgrnx.models.base import LanguageModel, State
from hgrnx.models.hgrn2 import HGRN2
from hgrnx.models.lstm import LSTM
from hgrnx.models.mamba import Mamba
from hgrnx.models.transformer import Transformer
from hgrnx.models.xlstm import XLSTM

__all__ = ["LanguageModel", "State", "build_model", "empty_model", "model_class"]

_CLASSES: dict[str, type[LanguageModel]] = {
    "hgrn2": HGRN2,
    "transformer": Transformer,
    "lstm": LSTM,
    "mamba": Mamba,
    "xlstm": XLSTM,
}


def model_class(config: ModelConfig) -> type[LanguageModel]:
    """The class of ``config``'s architecture."""
    return _CLASSES[config.architecture]


def empty_model(config: ModelConfig, vocab_size: int) -> LanguageModel:
    """The model on torch's meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return model_class(config)(config, vocab_size)


def build_model(config: ModelConfig, vocab_size: int, seed: int = 0) -> LanguageModel:
    """A freshly initialised float32 model on the CPU. ``seed`` alone decides the weights.

    The architecture says how (``LanguageModel.initialize``). Rows of the vocabulary's padding are 0; being masked,
    they stay so.
    """
    model = empty_model(config, vocab_size).to_empty(device="cpu")
    with torch.no_grad():
        model.initialize(torch.Generator().manual_seed(seed))
        for rows in model._vocabulary_parameters():
            rows[vocab_size:].zero_()
    return model
