"""Next-token prediction.

Shapes: B rows, T tokens, N = B * T, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hgrnx.models import LanguageModel
from hgrnx.objectives.base import IGNORE_INDEX, ObjectiveOutput
from hgrnx.objectives.hidden_states import hidden_distance
from hgrnx.ops import TeacherSignal, head_loss


class NextToken:
    """Cross-entropy of the next token."""

    def __call__(
        self,
        model: LanguageModel,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        chunks: Sequence[int] = (),
    ) -> ObjectiveOutput:
        return token_losses(model, inputs_BT, targets_BT, cu_seqlens)


def token_losses(
    model: LanguageModel,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    cu_seqlens: Tensor | None,
    teacher: TeacherSignal | None = None,
    weight: float = 0.0,
    temperature: float = 1.0,
    reverse_kl: bool = False,
    hidden_weight: float = 0.0,
) -> ObjectiveOutput:
    """Run the model and sum (1 - weight) CE + weight T^2 KL + hidden_weight (1 - cosine) over the valid tokens."""
    hidden_BTD, _ = model.hidden(inputs_BT, cu_seqlens)
    hidden_ND = hidden_BTD.flatten(0, 1)
    losses = head_loss(
        hidden_ND,
        model.head_weight,
        targets_BT.flatten(),
        teacher=teacher,
        weight=weight,
        temperature=temperature,
        reverse_kl=reverse_kl,
        ignore_index=IGNORE_INDEX,
        vocab_size=model.vocab_size,
    )
    metrics = {"cross_entropy": losses.cross_entropy}
    if losses.kl is not None:
        metrics["kl"] = losses.kl
    loss = losses.loss
    if hidden_weight:
        assert teacher is not None
        distance = hidden_distance(hidden_ND, targets_BT.flatten() != IGNORE_INDEX, teacher)
        metrics["hidden_distance"] = distance.detach()
        loss = loss + hidden_weight * distance
    return ObjectiveOutput(loss, (targets_BT != IGNORE_INDEX).sum(), metrics)
