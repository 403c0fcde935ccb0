"""Activation checkpointing (arXiv 1604.06174): layers are computed again in the backward instead of kept."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from hgrnx.errors import UserError
from hgrnx.models import LanguageModel


def recompute_layers(model: LanguageModel) -> None:
    """Have every layer of ``model`` keep its inputs only. Names, weights and results stay as they are.

    Raises:
        UserError: the architecture has no separate layers.
    """
    layers = [layer for part in model.modules() if isinstance(part, nn.ModuleList) for layer in part]
    if not layers:
        raise UserError(
            f"launch.activation_checkpointing: the architecture {model.config.architecture} is one kernel and has no "
            "layers to compute again. Leave it out, or make launch.micro_batch_size smaller."
        )
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
