"""A distillation step against a plain one, and against distillation written down naively.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hgrnx.bench.measure import Case
from hgrnx.bench.model import SMALL, VOCAB_SIZE, random_tokens, training_case
from hgrnx.data.signals import SignalStore, StoredSignal
from hgrnx.models import LanguageModel, build_model
from hgrnx.objectives import Distillation, LiveTeacher, ObjectiveOutput, StoredTeacher
from hgrnx.objectives.base import Objective
from hgrnx.objectives.stored import top_k_of

_WEIGHT, _TEMPERATURE, _TOP_K = 0.5, 2.0, 64


def distill_cases(batch: int, time: int, device: torch.device, precision: str, folder: Path) -> list[Case]:
    """A plain step, and steps with a teacher of the student's size: live, its stored top-k, and with whole logits.

    ``folder`` must last while they are measured: the stored signal is there.
    """

    def teacher() -> LiveTeacher:
        return LiveTeacher([build_model(SMALL, VOCAB_SIZE, seed=1)], device, precision)

    objectives: dict[str, Objective | None] = {
        "plain": None,
        "distillation": Distillation(teacher(), _WEIGHT, _TEMPERATURE),
        f"distillation, stored top-{_TOP_K}": Distillation(
            stored(teacher(), batch, time, _TOP_K, folder), _WEIGHT, _TEMPERATURE
        ),
        "distillation, naive": NaiveDistillation(teacher()),
    }
    if device.type == "cuda" and find_spec("fla") is not None:
        objectives["distillation at T 1, FLA's losses"] = FLADistillation(teacher())
    return [
        training_case(name, SMALL, batch, time, device, precision, objective=objective)
        for name, objective in objectives.items()
    ]


def stored(teacher: LiveTeacher, batch: int, time: int, k: int, folder: Path) -> StoredTeacher:
    """What ``teacher`` says about the benchmark's tokens, in a store on disk."""
    inputs_BT, _ = random_tokens(batch, time, teacher.vocab_size, teacher.device)
    store = SignalStore(
        folder,
        {"seq_len": time, "k": k, "vocab_size": teacher.vocab_size, "values": "float16", "teacher": "a fresh one"},
    )
    signal = store.layout.empty(batch)
    models = teacher.signal(inputs_BT).models
    assert models is not None
    ((hidden_ND, head_VD, _),) = models
    for to, numbers in zip(signal, top_k_of(hidden_ND, head_VD, teacher.vocab_size, k), strict=True):
        to[:] = numbers.cpu().numpy().reshape(to.shape)
    store.write(range(batch), StoredSignal(*signal))
    store.open()
    return StoredTeacher(store, teacher.vocab_size, teacher.device)


class FLADistillation:
    """(1 - a) CE + a KL with FLA's two fused losses, which know no temperature; on a GPU only."""

    def __init__(self, teacher: LiveTeacher) -> None:
        self.teacher = teacher

    def __call__(
        self,
        model: LanguageModel,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        chunks: Sequence[int] = (),
    ) -> ObjectiveOutput:
        from fla.modules import FusedKLDivLoss, FusedLinearCrossEntropyLoss

        signal = self.teacher.signal(inputs_BT)
        assert signal.models is not None
        ((teacher_ND, teacher_head_VD, _),) = signal.models
        hidden_ND = model.hidden(inputs_BT)[0].flatten(0, 1)
        targets_N = targets_BT.flatten()
        head_VD = model.head_weight.to(hidden_ND.dtype)
        cross_entropy = FusedLinearCrossEntropyLoss(reduction="sum")(hidden_ND, targets_N, head_VD)
        kl = FusedKLDivLoss()(hidden_ND, teacher_ND, head_VD, teacher_head_VD.to(hidden_ND.dtype)) * len(targets_N)
        loss = (1 - _WEIGHT) * cross_entropy + _WEIGHT * kl
        count = torch.tensor(len(targets_N))
        return ObjectiveOutput(loss, count, {"cross_entropy": cross_entropy.detach(), "kl": kl.detach()})


class NaiveDistillation:
    """(1 - a) CE + a T^2 KL(teacher || student) as one would write it: all logits of both models at once."""

    def __init__(self, teacher: LiveTeacher) -> None:
        self.teacher = teacher

    def __call__(
        self,
        model: LanguageModel,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        chunks: Sequence[int] = (),
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
