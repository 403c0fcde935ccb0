"""Next-token prediction.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hgrnx.models import LanguageModel
from hgrnx.objectives.base import IGNORE_INDEX, ObjectiveOutput
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
) -> ObjectiveOutput:
    """Run the model and sum (1 - weight) CE + weight T^2 KL over the valid tokens."""
    hidden_BTD, _ = model.hidden(inputs_BT, cu_seqlens)
    losses = head_loss(
        hidden_BTD.flatten(0, 1),
        model.head_weight,
        targets_BT.flatten(),
        teacher=teacher,
        weight=weight,
        temperature=temperature,
        ignore_index=IGNORE_INDEX,
        vocab_size=model.vocab_size,
    )
    metrics = {"cross_entropy": losses.cross_entropy}
    if losses.kl is not None:
        metrics["kl"] = losses.kl
    return ObjectiveOutput(losses.loss, (targets_BT != IGNORE_INDEX).sum(), metrics)
