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
    """Learn from text and teacher. Where nothing is to be learnt from the teacher, it does not run.

    Args:
        weight, temperature: as above, at the first step.
        final_weight, final_temperature: at the last step, with a line between; as at the first when None.
        reverse_kl: KL(student || teacher) instead (MiniLLM, arXiv 2306.08543).
        hidden_weight: adds this times the sum of 1 - cosine of student's and teacher's last hidden states.
    """

    def __init__(
        self,
        teacher: Teacher,
        weight: float,
        temperature: float = 1.0,
        *,
        final_weight: float | None = None,
        final_temperature: float | None = None,
        reverse_kl: bool = False,
        hidden_weight: float = 0.0,
    ) -> None:
        self.teacher = teacher
        self.weight = weight
        self.temperature = temperature
        self.reverse_kl = reverse_kl
        self.hidden_weight = hidden_weight
        self._weights = weight, weight if final_weight is None else final_weight
        self._temperatures = temperature, temperature if final_temperature is None else final_temperature

    def at(self, step: int, total_steps: int) -> None:
        """Take the weight and the temperature of ``step``, counted from 0."""
        way = step / max(total_steps - 1, 1)
        self.weight, self.temperature = (a + way * (b - a) for a, b in (self._weights, self._temperatures))

    def __call__(
        self,
        model: LanguageModel,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        chunks: Sequence[int] = (),
    ) -> ObjectiveOutput:
        if self.weight == 0 and self.hidden_weight == 0:
            return token_losses(model, inputs_BT, targets_BT, cu_seqlens)
        if self.teacher.vocab_size != model.vocab_size:
            raise UserError(
                f"The teacher knows {self.teacher.vocab_size} tokens, the student {model.vocab_size}. "
                "Both must use one tokenizer."
            )
        signal = self.teacher.signal(inputs_BT, cu_seqlens, chunks, self.temperature)
        return token_losses(
            model,
            inputs_BT,
            targets_BT,
            cu_seqlens,
            signal,
            self.weight,
            self.temperature,
            reverse_kl=self.reverse_kl,
            hidden_weight=self.hidden_weight,
        )
