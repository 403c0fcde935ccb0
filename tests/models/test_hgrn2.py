from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from architectures import VOCAB, lively, tokens
from torch import Tensor

from hgrnx.config import HGRN2Config
from hgrnx.models import LanguageModel, build_model, empty_model
from hgrnx.models.hgrn2 import HGRN2, HGRN2State

CONFIG = HGRN2Config(hidden_size=48, num_hidden_layers=3, expand_ratio=16)


def straightforward(model: LanguageModel, ids_T: Tensor) -> Tensor:
    """HGRN2 as FLA's code and the paper have it, one token at a time, in float64; hidden states [T, D]."""
    w = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    config = model.config
    size, eps = config.expand_ratio, config.norm_eps

    def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight

    def project(y_TD: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
        y_TD = y_TD @ p[f"attn.{name}_proj.weight"].T
        if config.use_short_conv:
            filters = p[f"attn.{name}_conv1d.weight"]
            padded = F.pad(y_TD.T, (config.conv_size - 1, 0))
            y_TD = F.conv1d(padded, filters, groups=len(filters)).T
        return y_TD

    x_TD = w["model.embeddings.weight"][ids_T]
    shares = w["model.lower_bounds"].softmax(0)
    bounds = shares.cumsum(0) - shares[0]
    for layer in range(config.num_hidden_layers):
        p = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in w.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        y = norm(x_TD, p["attn_norm.weight"], eps)
        q, f, v = (project(y, p, name) for name in "qfi")
        q = F.silu(q).unflatten(-1, (-1, size)) * size**-0.5
        g = F.logsigmoid(f)
        if layer > 0:
            g = torch.logaddexp(bounds[layer].log(), torch.log1p(-bounds[layer]) + g)
        f = g.exp().unflatten(-1, (-1, size))
        v = v.unflatten(-1, (-1, size))
        state = torch.zeros(q.shape[1], size, size, dtype=torch.float64)
        outputs = []
        for t in range(len(ids_T)):
            state = f[t, :, :, None] * state + (1 - f[t])[:, :, None] * v[t, :, None, :]
            outputs.append((state * q[t, :, :, None]).sum(1))
        o = norm(torch.stack(outputs).flatten(1), p["attn.g_norm.weight"], 1e-5)
        x_TD = x_TD + o @ p["attn.o_proj.weight"].T
        y = norm(x_TD, p["mlp_norm.weight"], eps)
        gated = F.silu(y @ p["mlp.gate_proj.weight"].T) * (y @ p["mlp.up_proj.weight"].T)
        x_TD = x_TD + gated @ p["mlp.down_proj.weight"].T
    return norm(x_TD, w["model.norm.weight"], eps)


@pytest.mark.parametrize("faint", [False, True])
@pytest.mark.parametrize("conv", [False, True])
def test_hidden_states_are_those_of_the_plain_recurrence(faint: bool, conv: bool) -> None:
    model = lively(CONFIG.model_copy(update={"use_short_conv": conv}))
    if faint:  # outputs of the recurrence so small that the scale of q and the norm's epsilon show
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "i_proj" in name:
                    parameter.mul_(1e-3)
    ids = tokens(2, 37)
    hidden, _ = model.hidden(ids)
    for row in range(2):
        torch.testing.assert_close(hidden[row].double(), straightforward(model, ids[row]), rtol=1e-4, atol=1e-4)


def test_text_in_pieces_equals_text_at_once() -> None:
    model = lively(CONFIG)
    ids = tokens(2, 33)
    whole, final = model.hidden(ids)
    pieces, state = [], model.init_state(2)
    for piece in ids.split([1, 16, 3, 13], dim=1):
        hidden, state = model.hidden(piece, state=state)
        pieces.append(hidden)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.layers, final.layers, rtol=1e-4, atol=1e-4)


def test_state_selects_rows() -> None:
    model = lively(CONFIG)
    ids = tokens(3, 9)
    _, state = model.hidden(ids)
    chosen = torch.tensor([2, 0, 2, 1])
    following = tokens(4, 5, seed=1)
    hidden, _ = model.hidden(following, state=state.select(chosen))
    for row, source in enumerate(chosen.tolist()):
        together, _ = model.hidden(torch.cat([ids[source], following[row]])[None])
        torch.testing.assert_close(hidden[row], together[0, 9:], rtol=1e-4, atol=1e-4)
    assert isinstance(state, HGRN2State)
    assert state.layers[0].shape == (3, 3, 16, 16)
    assert state.layers[0].dtype == torch.float32


def test_packed_documents_equal_separate_ones() -> None:
    model = lively(CONFIG)
    documents = [tokens(length, seed=length) for length in (1, 17, 5)]
    offsets = torch.tensor([0, 1, 18, 23])
    packed = torch.cat(documents)[None]
    hidden, state = model.hidden(packed, offsets)
    default, default_state = LanguageModel.hidden(model, packed, offsets)
    for n, document in enumerate(documents):
        alone, alone_state = model.hidden(document[None])
        part = slice(int(offsets[n]), int(offsets[n + 1]))
        for packed_hidden, packed_state in ((hidden, state), (default, default_state)):
            torch.testing.assert_close(packed_hidden[:, part], alone, rtol=1e-4, atol=1e-4)
            for layer, layer_alone in zip(packed_state.layers, alone_state.layers, strict=True):
                torch.testing.assert_close(layer[n : n + 1], layer_alone, rtol=1e-4, atol=1e-4)


def test_no_token_sees_a_later_one() -> None:
    model = lively(CONFIG)
    ids = tokens(1, 20)
    changed = ids.clone()
    changed[0, 12:] = tokens(8, seed=5)
    torch.testing.assert_close(model.hidden(ids)[0][:, :12], model.hidden(changed)[0][:, :12])


def test_every_parameter_gets_a_finite_gradient() -> None:
    for tie in (True, False):
        model = lively(CONFIG.model_copy(update={"tie_word_embeddings": tie}))
        model(tokens(2, 12)).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    model = lively(CONFIG)
    ids = tokens(2, 40)
    exact, _ = model.hidden(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, state = model.hidden(ids)
    error = (hidden.float() - exact).norm() / exact.norm()
    assert 0 < error < 0.03
    assert state.layers[0].dtype == torch.float32


def test_without_lower_bounds_there_are_none() -> None:
    config = CONFIG.model_copy(update={"use_lower_bound": False})
    model = build_model(config, VOCAB)
    assert not any("lower_bounds" in name for name, _ in model.named_parameters())
    with_bounds = build_model(CONFIG, VOCAB)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(with_bounds.get_parameter(name))
    ids = tokens(1, 30)
    assert not torch.allclose(model.hidden(ids)[0], with_bounds.hidden(ids)[0], atol=1e-3)


def test_initial_lower_bounds_rise_with_depth() -> None:
    model = build_model(CONFIG, VOCAB)
    assert isinstance(model, HGRN2)
    first, second, third = model.model.layer_lower_bounds()
    assert first is None
    torch.testing.assert_close(second, torch.full((3, 16), 1 / 3))
    torch.testing.assert_close(third, torch.full((3, 16), 2 / 3))


def test_size_of_the_papers_model() -> None:
    config = HGRN2Config(hidden_size=1024, num_hidden_layers=26, expand_ratio=128, tie_word_embeddings=False)
    model = empty_model(config, 16_000)
    counts = model.parameter_counts()
    assert round(counts["total"] / 1e6, 1) == 366.8
    assert counts["embedding"] == 2 * 16_000 * 1024
    assert counts["other"] == counts["total"] - counts["embedding"]
    # 6 operations per weight that multiplies, and the recurrence's, a little more
    weights = counts["other"] + 16_000 * 1024
    assert 6 * weights < model.flops_per_token(512) < 6.2 * weights
