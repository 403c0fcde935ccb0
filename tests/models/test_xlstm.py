"""The blocks written out as in the authors' package ``xlstm``, on our memories, which have tests of their own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from architectures import CONFIGS, VOCAB, lively, tokens
from torch import Tensor

from hgrnx.config import XLSTMConfig
from hgrnx.models import build_model
from hgrnx.models.xlstm import XLSTM, MLSTMBlock, SLSTMBlock
from hgrnx.ops import mlstm, slstm

CONFIG = CONFIGS["xlstm"]
assert isinstance(CONFIG, XLSTMConfig)
HEADS = CONFIG.num_heads


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.conv1d(F.pad(x.mT, (weight.shape[-1] - 1, 0)), weight, bias, groups=x.shape[-1]).mT)


def by_heads(x_BTD: Tensor) -> Tensor:
    return x_BTD.unflatten(-1, (HEADS, -1))


def head_norm(y_BTHK: Tensor, weight: Tensor) -> Tensor:
    B, T, H, K = y_BTHK.shape
    return F.group_norm(y_BTHK.reshape(B * T, H * K), H, weight, eps=1e-5).view(B, T, H * K)


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, eps=1e-5)


def mlstm_block(p: dict[str, Tensor], x: Tensor) -> Tensor:
    inner, z = (layer_norm(x, p["norm.weight"]) @ p["layer.proj_up.weight"].T).chunk(2, -1)
    act = convolved(inner, p["layer.conv1d.weight"], p["layer.conv1d.bias"])
    q, k, v = (
        source @ torch.block_diag(*p[f"layer.{name}_proj.weight"]).T
        for name, source in (("q", act), ("k", act), ("v", inner))
    )
    i, f = (
        (torch.cat((q, k, v), -1) @ p[f"layer.{gate}.weight"].T + p[f"layer.{gate}.bias"]).mT
        for gate in ("igate", "fgate")
    )
    h, _ = mlstm(*(by_heads(part).transpose(1, 2) for part in (q, k, v)), i, f)
    h = head_norm(h.transpose(1, 2), p["layer.outnorm.weight"]) + p["layer.learnable_skip"] * act
    return x + (h * F.silu(z)) @ p["layer.proj_down.weight"].T


def slstm_block(p: dict[str, Tensor], x: Tensor) -> Tensor:
    inner = layer_norm(x, p["norm.weight"])
    act = convolved(inner, p["layer.conv1d.weight"], p["layer.conv1d.bias"])
    gates = [
        by_heads(source @ torch.block_diag(*p[f"layer.{gate}gate.weight"]).T)
        for gate, source in (("i", act), ("f", act), ("z", inner), ("o", inner))
    ]
    bias = p["layer.gate_bias"].view(HEADS, 4, -1)
    y, _ = slstm(torch.stack([part + bias[:, n] for n, part in enumerate(gates)], 3), p["layer.recurrent"])
    x = x + head_norm(y, p["layer.outnorm.weight"])
    gate, up = (layer_norm(x, p["mlp_norm.weight"]) @ p["mlp.proj_up.weight"].T).chunk(2, -1)
    return x + (F.gelu(gate) * up) @ p["mlp.proj_down.weight"].T


def test_it_is_the_authors_stack() -> None:
    model = lively(CONFIG)
    assert isinstance(model, XLSTM)
    ids = tokens(2, 21)
    x = model.embedding.weight[ids]
    for block in model.blocks:
        written_out = slstm_block if isinstance(block, SLSTMBlock) else mlstm_block
        x = written_out(dict(block.named_parameters()), x)
    torch.testing.assert_close(model.hidden(ids)[0], layer_norm(x, model.norm.weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("place", "power"), [(0, 0.3), (2, 0.95), (4, 1.6)])
def test_initial_gates_and_spreads_are_the_authors(place: int, power: float) -> None:
    size, layers = 64, 5
    config = XLSTMConfig(hidden_size=size, num_hidden_layers=layers, num_heads=2, slstm_at=(place,))
    model = build_model(config, VOCAB, seed=0)
    assert isinstance(model, XLSTM)
    for number, block in enumerate(model.blocks):
        if isinstance(block, MLSTMBlock):
            layer = block.layer
            assert torch.equal(layer.fgate.bias, torch.tensor([3.0, 6.0]))
            assert not layer.fgate.weight.any() and not layer.igate.weight.any()
            opening, closing = (layer.proj_up.weight, layer.q_proj.weight), layer.proj_down.weight
        else:
            assert isinstance(block, SLSTMBlock) and number == place
            bias = block.layer.gate_bias.view(2, 4, 32)
            torch.testing.assert_close(bias[:, 1], (5 - 12 * (torch.arange(32) / 31) ** power).expand(2, -1))
            assert not bias[:, [0, 2, 3]].any() and not block.layer.recurrent.any()
            opening, closing = (block.mlp.proj_up.weight, block.layer.zgate.weight), block.mlp.proj_down.weight
        for weight in opening:
            assert weight.std().item() == pytest.approx(math.sqrt(2 / 5 / size), rel=0.1)
        assert closing.std().item() == pytest.approx(2 / layers / math.sqrt(size), rel=0.1)
