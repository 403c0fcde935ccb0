"""Distillation: (1 - weight) CE + weight T^2 KL(teacher || student), both softened by T (arXiv 1503.02531).

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from hgrnx.errors import UserError
from hgrnx.models import LanguageModel
from hgrnx.objectives.base import ObjectiveOutput
from hgrnx.objectives.next_token import token_losses
from hgrnx.ops import TeacherSignal


class Teacher(Protocol):
    """Where the soft targets come from."""

    vocab_size: int

    def signal(
        self,
        inputs_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        chunks: Sequence[int] = (),
        temperature: float = 1.0,
    ) -> TeacherSignal:
        """What the teacher says about the token after each input token, rows flattened; without gradient.

        ``chunks`` are the numbers of the inputs' pieces of the training text, ``temperature`` is the loss's.
        """
        ...


class Distillation:
    """Learn from text and teacher. With weight 0 the teacher never runs and this is next-token prediction."""

    def __init__(self, teacher: Teacher, weight: float, temperature: float = 1.0) -> None:
        self.teacher = teacher
        self.weight = weight
        self.temperature = temperature

    def __call__(
        self,
        model: LanguageModel,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        chunks: Sequence[int] = (),
    ) -> ObjectiveOutput:
        if self.weight == 0:
            return token_losses(model, inputs_BT, targets_BT, cu_seqlens)
        if self.teacher.vocab_size != model.vocab_size:
            raise UserError(
                f"The teacher knows {self.teacher.vocab_size} tokens, the student {model.vocab_size}. "
                "Both must use one tokenizer."
            )
        signal = self.teacher.signal(inputs_BT, cu_seqlens, chunks, self.temperature)
        return token_losses(model, inputs_BT, targets_BT, cu_seqlens, signal, self.weight, self.temperature)
