"""Others' models of the size of ours, as far as their packages are installed and run here.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hgrnx.config import HGRN2Config, MambaConfig, ModelConfig, TransformerConfig
from hgrnx.models import build_model


class Peer(NamedTuple):
    """A model, and how it is trained."""

    name: str
    model: nn.Module
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    """The mean loss of inputs and targets [B, T]; targets are shifted already."""
    flops_per_token: float
    """Floating-point operations of forward and backward."""


def peers(config: ModelConfig, vocab_size: int, time: int, device: torch.device) -> Iterator[Peer]:
    """What a model of ``config`` is compared with: of HGRN2, a Transformer and, on a GPU, FLA's HGRN2.

    An architecture that nobody has here has no peers.
    """
    if find_spec("transformers") is None:
        return
    if isinstance(config, HGRN2Config):
        same_size = TransformerConfig(
            hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers, tie_word_embeddings=False
        )
        yield _llama(same_size, vocab_size, time)
        if device.type == "cuda" and find_spec("fla") is not None:
            yield fla_hgrn2(config, vocab_size, time)
    elif isinstance(config, TransformerConfig):
        yield _llama(config, vocab_size, time)
    elif isinstance(config, MambaConfig):
        yield _mamba(config, vocab_size, time)


def _llama(config: TransformerConfig, vocab_size: int, time: int) -> Peer:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=max(2048, time),
            tie_word_embeddings=config.tie_word_embeddings,
            use_cache=False,
        )
    )
    return Peer("transformers' Llama", model, _shifted_labels, build_model(config, vocab_size).flops_per_token(time))


def _mamba(config: MambaConfig, vocab_size: int, time: int) -> Peer:
    """Without mamba-ssm's kernels (which need a GPU) ``transformers`` goes through the tokens one by one."""
    from transformers import MambaConfig as PeerConfig
    from transformers import MambaForCausalLM

    keys = ("hidden_size", "num_hidden_layers", "state_size", "expand", "conv_kernel", "tie_word_embeddings")
    values = {key: getattr(config, key) for key in keys}
    model = MambaForCausalLM(PeerConfig(vocab_size=vocab_size, use_cache=False, **values))

    def loss(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        logits_BTV = model(input_ids=inputs_BT).logits
        return nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())

    return Peer("transformers' Mamba", model, loss, build_model(config, vocab_size).flops_per_token(time))


def fla_hgrn2(config: HGRN2Config, vocab_size: int, time: int) -> Peer:
    """FLA's own model with its fused norm, gated unit and head with cross-entropy."""
    from fla.models.hgrn2 import HGRN2Config as PeerConfig
    from fla.models.hgrn2 import HGRN2ForCausalLM

    model = HGRN2ForCausalLM(
        PeerConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            expand_ratio=config.expand_ratio,
            hidden_ratio=config.hidden_ratio,
            use_lower_bound=config.use_lower_bound,
            tie_word_embeddings=config.tie_word_embeddings,
            use_cache=False,
            fuse_norm=True,
            fuse_swiglu=True,
            fuse_cross_entropy=False,
            fuse_linear_cross_entropy=True,
        )
    )
    return Peer("FLA's HGRN2", model, _shifted_labels, build_model(config, vocab_size).flops_per_token(time))


def _shifted_labels(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    return model(input_ids=inputs_BT, labels=targets_BT, shift_labels=targets_BT).loss
