from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_engine import BATCH, VOCABULARY, assert_equal, take_step
from torch import Tensor, nn

from hgrnx.config import HGRN2Config, LaunchConfig, TrainingConfig
from hgrnx.errors import UserError
from hgrnx.models import build_model
from hgrnx.objectives import NextToken, ObjectiveModule
from hgrnx.training.checkpoint import load_checkpoint, save_checkpoint
from hgrnx.training.engine import TorchEngine, build_engine
from hgrnx.training.muon import MuonAdamW, Shards
from hgrnx.training.optim import make_optimizer, parameter_groups

CONFIG = HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16)
OPTIONS = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "fused": True}


def gradients(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


def by_hand(weight: Tensor, steps: list[Tensor], momentum: float, decay: float) -> Tensor:
    """Muon in float64, as arXiv 2502.16982 and the original's Nesterov momentum have it."""
    weight, average = weight.double(), torch.zeros_like(weight).double()
    for gradient in steps:
        average = momentum * average + (1 - momentum) * gradient.double()
        x = momentum * average + (1 - momentum) * gradient.double()
        tall = x.shape[0] > x.shape[1]
        x = (x.T if tall else x) / x.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        x = x.T if tall else x
        weight = weight - 1e-2 * decay * weight - 1e-2 * 0.2 * max(x.shape) ** 0.5 * x
    return weight


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_matrices_take_muon_s_step(shape: tuple[int, int]) -> None:
    weight = nn.Parameter(torch.ones(shape))
    optimizer = MuonAdamW([{"params": [weight], "weight_decay": 0.3, "muon": True}], momentum=0.9, **OPTIONS)
    rounded = nn.Parameter(torch.ones(shape))
    group = {"params": [rounded], "weight_decay": 0.3, "muon": True}
    in_bf16 = MuonAdamW([group], momentum=0.9, dtype=torch.bfloat16, **OPTIONS)
    torch_s = nn.Parameter(torch.ones(shape))
    theirs = torch.optim.Muon([torch_s], 1e-2, 0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients(*shape):
        weight.grad, torch_s.grad, rounded.grad = (gradient.clone() for _ in range(3))
        for one in (optimizer, in_bf16, theirs):
            one.step()
    expected = by_hand(torch.ones(shape), gradients(*shape), 0.9, 0.3)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-5)
    # torch's iterates in bfloat16: a few per cent of what four steps moved
    assert (weight - torch_s).norm() < 0.05 * (expected - 1).norm()
    assert (rounded - torch_s).norm() < 0.02 * (expected - 1).norm()
    assert not torch.equal(rounded, weight)
    moved = (weight - 1).detach().square().mean().sqrt() / 1e-2
    assert 0.1 < moved < 2.0, "four steps of about 0.2 learning rates"


def test_the_rest_takes_adamw_s_step() -> None:
    ours, theirs = ([nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(5, 4))] for _ in range(2))
    square = nn.Parameter(torch.ones(4, 4))
    groups = [
        {"params": [square], "weight_decay": 0.1, "muon": True},
        {"params": ours[1:], "weight_decay": 0.1},
        {"params": ours[:1], "weight_decay": 0.0},
    ]
    optimizer = MuonAdamW(groups, momentum=0.9, **OPTIONS)
    adamw = torch.optim.AdamW(
        [{"params": theirs[1:], "weight_decay": 0.1}, {"params": theirs[:1], "weight_decay": 0.0}], **OPTIONS
    )
    for vector, matrix in zip(gradients(7), gradients(5, 4), strict=True):
        for parameters in (ours, theirs):
            parameters[0].grad, parameters[1].grad = vector.clone(), matrix.clone()
        optimizer.step()
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(square, torch.ones(4, 4)), "no gradient, no step"
    assert {key for state in optimizer.state.values() for key in state} == {"step", "exp_avg", "exp_avg_sq"}


def test_shards_of_a_flat_group_are_parts_of_the_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ZeRO lays them out: padded at the end, cut in the middle of a matrix."""
    shapes = [torch.Size((6, 5)), torch.Size((4, 9))]
    places, world = [(0, shapes[0]), (32, shapes[1])], 3  # with a gap before the second
    length = 24
    whole_steps = []
    for first, second in zip(gradients(6, 5), gradients(4, 9), strict=True):
        flat = torch.zeros(world * length)
        flat[:30], flat[32:68] = first.flatten(), second.flatten()
        whole_steps.append(flat)
    found = []
    for rank in range(world):
        shard = nn.Parameter(torch.ones(length))
        group = {"params": [shard], "weight_decay": 0.3, "muon": True, "shards": Shards(rank, world, places)}
        optimizer = MuonAdamW([group], momentum=0.0, **OPTIONS)
        for flat in whole_steps:
            monkeypatch.setattr(torch.distributed, "all_gather_into_tensor", lambda out, _, flat=flat: out.copy_(flat))
            shard.grad = flat.view(world, length)[rank].clone()
            optimizer.step()
        found.append(shard.detach())
    whole = torch.cat(found)
    for (begin, shape), steps in zip(places, (gradients(6, 5), gradients(4, 9)), strict=True):
        expected = by_hand(torch.ones(shape), steps, 0.0, 0.3)
        part = whole[begin : begin + shape.numel()].view(shape)
        torch.testing.assert_close(part.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tie", [True, False])
def test_hidden_matrices_are_muon_s_and_embedding_and_head_are_not(tie: bool) -> None:
    model = build_model(CONFIG.model_copy(update={"tie_word_embeddings": tie, "use_short_conv": True}), VOCABULARY)
    groups = parameter_groups(model, 0.0, muon=True)
    names = {id(p): name for name, p in model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    hidden = {names[id(p)] for group in groups if group.get("muon") for p in group["params"]}
    assert hidden == {name for name in names.values() if "proj" in name}
    assert len(hidden) == 14
    assert not any(group.get("muon") for group in parameter_groups(model, 0.1))
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        made = make_optimizer(model, TrainingConfig(optimizer="muon", precision=precision))
        assert isinstance(made, MuonAdamW) and made._dtype == dtype


def make_engine(seed: int = 1) -> TorchEngine:
    training = TrainingConfig(batch_size=BATCH, precision="fp32", optimizer="muon")
    module = ObjectiveModule(build_model(CONFIG, VOCABULARY, seed=seed), NextToken())
    engine = build_engine(module, training, LaunchConfig(engine="torch", micro_batch_size=3))
    assert isinstance(engine, TorchEngine)
    return engine


def test_six_steps_are_three_a_checkpoint_and_three_bit_for_bit(tmp_path: Path) -> None:
    through, first, second = make_engine(), make_engine(), make_engine(77)
    for step in range(6):
        take_step(through, step)
    for step in range(3):
        take_step(first, step)
    second.load_state(load_checkpoint(save_checkpoint(tmp_path, 3, first.state(), {}, keep=1))[0])
    for step in range(3, 6):
        take_step(second, step)
    assert_equal(second.state(), through.state())
    moments = second.state().optimizer
    names = dict(build_model(CONFIG, VOCABULARY).named_parameters()).keys()
    assert moments["exp_avg"].keys() == moments["exp_avg_sq"].keys()
    assert moments["exp_avg"].keys() | moments["momentum_buffer"].keys() == names
    assert not moments["exp_avg"].keys() & moments["momentum_buffer"].keys()
    assert all(moments["momentum_buffer"][name].any() for name in moments["momentum_buffer"])


def test_a_checkpoint_of_adamw_is_refused() -> None:
    adamw = TorchEngine(
        ObjectiveModule(build_model(CONFIG, VOCABULARY), NextToken()),
        TrainingConfig(batch_size=BATCH, precision="fp32"),
        LaunchConfig(engine="torch"),
    )
    with pytest.raises(UserError, match="lacks the optimizer's momentum_buffer"):
        make_engine().load_state(adamw.state())
