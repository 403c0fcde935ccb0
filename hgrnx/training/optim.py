"""AdamW over two groups of parameters, and the learning rate as a function of the step alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hgrnx.config import TrainingConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups over ``model``'s trainable parameters: with ``weight_decay`` and without.

    Matrices decay, the embedding among them (it is also the output head when the two are tied, and one rule
    for both keeps tied and untied models comparable). Vectors (norms, biases) do not, and neither do matrices
    that a LanguageModel names in ``undecayed``, such as the lower bounds of HGRN2's forget gates. A tied weight
    comes once; an empty group is left out.
    """
    undecayed = getattr(model, "undecayed", ())
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and name.rpartition(".")[2] not in undecayed
            (decayed if matrix else free).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, in one fused kernel where torch has one (CPU and GPU). Its learning rate is set every step."""
    groups = parameter_groups(model, training.weight_decay)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        fused=devices <= {"cpu", "cuda"},
    )


def learning_rate(step: int, total_steps: int, warmup_steps: int, training: TrainingConfig) -> float:
    """Learning rate of the ``step``-th update, counted from 0: linear warm-up, then a straight line down.

    It rises as ``peak * (step + 1) / warmup_steps``, so the first update already moves the weights and the
    last one of the warm-up has the peak, then falls to ``peak * training.final_learning_rate``, which the
    update ``total_steps - 1`` has. Beyond the last step it stays there.
    """
    peak = training.learning_rate
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    # The peak's step is the last of the warm-up, or step 0 without one.
    top = max(warmup_steps - 1, 0)
    way = min((step - top) / max(total_steps - 1 - top, 1), 1.0)
    return peak * (1.0 - way * (1.0 - training.final_learning_rate))
