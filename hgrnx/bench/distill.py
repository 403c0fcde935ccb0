"""A distillation step against a plain one, and against distillation written down naively.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hgrnx.bench.measure import Case
from hgrnx.bench.model import SMALL, VOCAB_SIZE, training_case
from hgrnx.models import LanguageModel, build_model
from hgrnx.objectives import Distillation, LiveTeacher, ObjectiveOutput

_WEIGHT, _TEMPERATURE = 0.5, 2.0


def distill_cases(batch: int, time: int, device: torch.device, precision: str) -> list[Case]:
    """A plain step, one with a teacher of the student's size, and the same with whole logits."""

    def teacher() -> LiveTeacher:
        return LiveTeacher([build_model(SMALL, VOCAB_SIZE, seed=1)], device, precision)

    ours = Distillation(teacher(), _WEIGHT, _TEMPERATURE)
    arguments = (SMALL, batch, time, device, precision)
    return [
        training_case("plain", *arguments),
        training_case("distillation", *arguments, objective=ours),
        training_case("distillation, naive", *arguments, objective=NaiveDistillation(teacher())),
    ]


class NaiveDistillation:
    """(1 - a) CE + a T^2 KL(teacher || student) as one would write it: all logits of both models at once."""

    def __init__(self, teacher: LiveTeacher) -> None:
        self.teacher = teacher

    def __call__(
        self, model: LanguageModel, inputs_BT: Tensor, targets_BT: Tensor, cu_seqlens: Tensor | None = None
    ) -> ObjectiveOutput:
        with torch.no_grad():
            teacher_BTV = self.teacher.models[0](inputs_BT)
        logits_BTV = model(inputs_BT)
        cross_entropy = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum")
        kl = F.kl_div(
            (logits_BTV / _TEMPERATURE).log_softmax(-1),
            (teacher_BTV / _TEMPERATURE).log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        loss = (1 - _WEIGHT) * cross_entropy + _WEIGHT * _TEMPERATURE**2 * kl
        count = torch.tensor(targets_BT.numel())
        return ObjectiveOutput(loss, count, {"cross_entropy": cross_entropy.detach(), "kl": kl.detach()})
