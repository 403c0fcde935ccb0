from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from hgrnx.config import HGRN2Config, TrainingConfig
from hgrnx.models import build_model
from hgrnx.training.optim import learning_rate, make_optimizer, parameter_groups

TRAINING = TrainingConfig(learning_rate=2e-3, final_learning_rate=0.1, weight_decay=0.3)


def test_matrices_decay_and_norms_and_lower_bounds_do_not() -> None:
    model = build_model(HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16), 300)
    groups = parameter_groups(model, 0.3)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert decay.keys() == {id(p) for p in named.values()}, "every parameter once"
    assert sum(len(group["params"]) for group in groups) == len(named)
    for name, parameter in named.items():
        free = parameter.ndim == 1 or "lower_bound" in name
        assert decay[id(parameter)] == (0.0 if free else 0.3), name
    assert any("lower_bound" in name and p.ndim == 2 for name, p in named.items())
    assert any("norm" in name for name in named)


def test_a_frozen_parameter_and_an_empty_group_are_left_out() -> None:
    module = nn.Linear(3, 4, bias=False)
    assert len(parameter_groups(module, 0.1)) == 1
    module.requires_grad_(False)
    assert parameter_groups(module, 0.1) == []


def test_make_optimizer_is_torch_adamw_fused_with_the_recipe_s_numbers() -> None:
    training = TrainingConfig(learning_rate=2e-3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    optimizer = make_optimizer(nn.Linear(3, 4), training)
    assert type(optimizer) is torch.optim.AdamW
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (2e-3, (0.8, 0.9), 1e-6, True)


def test_learning_rate_rises_to_the_peak_and_falls_to_the_final_share() -> None:
    rates = [learning_rate(step, 100, 10, TRAINING) for step in range(100)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[4] == pytest.approx(1e-3)
    assert rates[9] == max(rates) == 2e-3
    assert rates[99] == pytest.approx(2e-4)
    falls = [a - b for a, b in itertools.pairwise(rates[9:])]
    assert falls == pytest.approx([(2e-3 - 2e-4) / 90] * 90)


def test_learning_rate_at_the_edges() -> None:
    assert learning_rate(0, 100, 0, TRAINING) == 2e-3
    assert learning_rate(0, 1, 1, TRAINING) == 2e-3
    assert learning_rate(0, 1, 0, TRAINING) == 2e-3
    assert learning_rate(4, 5, 5, TRAINING) == 2e-3, "a run that is all warm-up"
    assert learning_rate(0, 5, 10, TRAINING) == pytest.approx(2e-4), "a warm-up longer than the run"
    assert learning_rate(500, 100, 10, TRAINING) == pytest.approx(2e-4), "beyond the end"


def test_a_cosine_and_a_late_decay() -> None:
    cosine = TRAINING.model_copy(update={"schedule": "cosine"})
    rates = [learning_rate(step, 101, 11, cosine) for step in range(101)]
    assert rates[:11] == [learning_rate(step, 101, 11, TRAINING) for step in range(11)]
    for step in range(10, 101):
        half = (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert rates[step] == pytest.approx(2e-3 * (0.1 + 0.9 * half))
    wsd = TRAINING.model_copy(update={"schedule": "wsd"})
    rates = [learning_rate(step, 100, 10, wsd, decay_steps=20) for step in range(101)]
    assert rates[:10] == [learning_rate(step, 100, 10, TRAINING) for step in range(10)]
    assert rates[9:80] == [2e-3] * 71
    falls = [a - b for a, b in itertools.pairwise(rates[79:100])]
    assert falls == pytest.approx([(2e-3 - 2e-4) / 20] * 20)
    assert rates[99] == pytest.approx(2e-4) and rates[100] == pytest.approx(2e-4)
    # A decay longer than what the warm-up leaves is the linear schedule.
    assert [learning_rate(step, 100, 10, wsd, 95) for step in range(100)] == [
        learning_rate(step, 100, 10, TRAINING) for step in range(100)
    ]
