"""Layers computed again give the same gradients and keep less."""

from __future__ import annotations

import pytest
import torch

from hgrnx.config import HGRN2Config, LSTMConfig, MambaConfig, ModelConfig, TransformerConfig, XLSTMConfig
from hgrnx.errors import UserError
from hgrnx.models import build_model
from hgrnx.objectives import NextToken, ObjectiveModule
from hgrnx.training.recompute import recompute_layers

CONFIGS: list[ModelConfig] = [
    HGRN2Config(hidden_size=32, num_hidden_layers=3, expand_ratio=16),
    TransformerConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2),
    MambaConfig(hidden_size=16, num_hidden_layers=3, state_size=4),
    XLSTMConfig(hidden_size=32, num_hidden_layers=3, num_heads=2, slstm_at=(1,)),
]


def step(config: ModelConfig, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients, and elements that autograd keeps between forward and backward."""
    model = build_model(config, 100, seed=0)
    if recompute:
        recompute_layers(model)
    tokens = torch.randint(0, 100, (2, 33), generator=torch.Generator().manual_seed(0))
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = ObjectiveModule(model, NextToken())(tokens[:, :-1], tokens[:, 1:]).loss_sum
    elements = sum(kept.values())
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(grads) == len(list(model.parameters()))
    return grads, elements


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_same_gradients_from_less_memory(config: ModelConfig) -> None:
    plain, kept_plain = step(config, recompute=False)
    again, kept_again = step(config, recompute=True)
    for name, grad in plain.items():
        assert torch.equal(grad, again[name]), name
    assert kept_again < kept_plain / 2


def test_an_architecture_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match="lstm is one kernel"):
        recompute_layers(build_model(LSTMConfig(embedding_size=16, hidden_size=16), 100))
