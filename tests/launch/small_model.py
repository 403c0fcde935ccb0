"""A small model with a tokenizer, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch

from hgrnx.config import HGRN2Config
from hgrnx.data.tokenizer import save_tokenizer, train_tokenizer
from hgrnx.models import build_model
from hgrnx.models.folders import save_folder


def write_model(place: Path) -> Path:
    """Write it to ``place/model``; its weights are large enough for answers that are far from uniform."""
    text = "the dog sees a cat. dogs run and the big cats see.\n" * 50
    save_tokenizer(train_tokenizer([text], 300), place / "tokenizer")
    model = build_model(HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16), 300, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    save_folder(model, place / "model", place / "tokenizer")
    return place / "model"
