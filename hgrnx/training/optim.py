"""The optimizer over its groups of parameters, and the learning rate as a function of the step alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from hgrnx.config import TrainingConfig
from hgrnx.models.base import LanguageModel
from hgrnx.training.muon import MuonAdamW

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running averages of the gradient and of its square, as torch names them."""


def parameter_groups(model: nn.Module, weight_decay: float, muon: bool = False) -> list[dict[str, Any]]:
    """Optimizer groups over ``model``'s trainable parameters: with ``weight_decay`` and without.

    Matrices decay, the embedding among them (it is also the output head when the two are tied, and one rule
    for both keeps tied and untied models comparable). Vectors (norms, biases) do not, and neither do matrices
    that a LanguageModel names in ``undecayed``, such as the lower bounds of HGRN2's forget gates. A tied weight
    comes once; an empty group is left out. With ``muon`` the matrices that decay, but for embedding and head, are
    a group of their own, marked ``muon``.
    """
    undecayed = getattr(model, "undecayed", ())
    vocabulary = {id(rows) for rows in model._vocabulary_parameters()} if isinstance(model, LanguageModel) else set()
    hidden: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and name.rpartition(".")[2] not in undecayed
            if muon and matrix and parameter.ndim == 2 and id(parameter) not in vocabulary:
                hidden.append(parameter)
            else:
                (decayed if matrix else free).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": hidden, "weight_decay": weight_decay, "muon": True},
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, in one fused kernel where torch has one (CPU and GPU), or Muon beside it.

    Its learning rate is set every step.
    """
    groups = parameter_groups(model, training.weight_decay, muon=training.optimizer == "muon")
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    options: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": training.betas,
        "eps": training.eps,
        "fused": devices <= {"cpu", "cuda"},
    }
    if training.optimizer == "muon":
        # Its authors' choice is bfloat16; where float32 is asked for, the step is exact to float32.
        dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
        return MuonAdamW(groups, momentum=training.momentum, dtype=dtype, **options)
    return torch.optim.AdamW(groups, **options)


def moments_of(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, tuple[str, ...]]:
    """Names of the running averages that ``optimizer`` keeps for each of its parameters."""
    return {
        parameter: ("momentum_buffer",) if group.get("muon") else MOMENTS
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def learning_rate(
    step: int, total_steps: int, warmup_steps: int, training: TrainingConfig, decay_steps: int | None = None
) -> float:
    """Learning rate of the ``step``-th update, counted from 0: linear warm-up, then ``training.schedule``.

    It rises as ``peak * (step + 1) / warmup_steps``, so the first update already moves the weights and the
    last one of the warm-up has the peak, then falls to ``peak * training.final_learning_rate``, which the
    update ``total_steps - 1`` has: in a line, as half a cosine, or with ``wsd`` in a line over the last
    ``decay_steps`` steps. Beyond the last step it stays there.
    """
    peak = training.learning_rate
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    # The peak's last step is that of the warm-up, or step 0 without one; with wsd that before the decay.
    top = max(warmup_steps - 1, 0)
    if training.schedule == "wsd":
        assert decay_steps is not None
        top = max(top, total_steps - 1 - decay_steps)
    way = min(max(step - top, 0) / max(total_steps - 1 - top, 1), 1.0)
    if training.schedule == "cosine":
        way = (1.0 - math.cos(math.pi * way)) / 2
    return peak * (1.0 - way * (1.0 - training.final_learning_rate))
