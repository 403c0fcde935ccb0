"""Steps whose loss or gradient is not finite, or whose loss is above a limit: stop, skip, or roll back.

Every decision rests on values that are equal on all ranks, and on nothing but the step itself, so a run that
is killed and resumed decides the same again.
"""

from __future__ import annotations

import math

import torch

from hgrnx.config import TrainingConfig
from hgrnx.errors import UserError
from hgrnx.training.distributed import sum_over_ranks


class RollBack(Exception):
    """Go back to the last checkpoint, and from there on to what follows ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step} was bad")
        self.step = step


class BadSteps:
    """The policy ``training.on_bad_step`` and how often it was used.

    Attributes:
        skipped: Steps that changed nothing, since the run began.
        rolled_back: Returns to a checkpoint, since the run began.
    """

    def __init__(self, training: TrainingConfig, device: torch.device) -> None:
        self.policy, self._limit, self._most = training.on_bad_step, training.max_loss, training.max_bad_steps
        self._device = device
        self.skipped = 0
        self.rolled_back = 0

    def counts(self) -> dict[str, int]:
        """For the checkpoint; see :meth:`restore`."""
        return {"skipped": self.skipped, "rolled_back": self.rolled_back}

    def restore(self, counts: dict[str, int]) -> None:
        """Go on counting from what :meth:`counts` gave."""
        self.skipped, self.rolled_back = counts["skipped"], counts["rolled_back"]

    def refuses(self, loss_sum: float, tokens: int) -> bool:
        """Whether the step must not be taken, from this rank's sum of the loss. Collective where it is in use."""
        if self.policy == "stop" and self._limit is None:
            return False  # a loss that is not finite gives such a gradient
        loss = sum_over_ranks({"loss": loss_sum}, self._device)["loss"] / tokens
        return not math.isfinite(loss) or (self._limit is not None and loss > self._limit)

    def judge(self, step: int, loss_sum: float, tokens: int, grad_norm: float) -> bool:
        """Whether ``step`` was skipped, its gradient (norm before clipping, the same on all ranks) not being finite.

        Raises:
            UserError: the policy is to stop, or it was used too often.
            RollBack: the policy is to roll back.
        """
        if math.isfinite(grad_norm):
            return False
        loss = sum_over_ranks({"loss": loss_sum}, self._device)["loss"] / tokens
        what = f"The training loss is {loss:.6g} at step {step}"
        what += f", above training.max_loss={self._limit:g}" if self._above(loss) else ", the gradient is not finite"
        if self.policy == "stop":
            raise UserError(
                f"{what}. Lower training.learning_rate or lengthen training.warmup; checkpoints before this step "
                "are kept. training.on_bad_step=skip (or roll_back) goes on without such steps."
            )
        if self.skipped + self.rolled_back >= self._most:
            raise UserError(
                f"{what}, and training.on_bad_step={self.policy} was used {self._most} times before "
                "(training.max_bad_steps). Lower training.learning_rate or lengthen training.warmup."
            )
        if self.policy == "roll_back":
            self.rolled_back += 1
            raise RollBack(step)
        self.skipped += 1
        return True

    def _above(self, loss: float) -> bool:
        return self._limit is not None and math.isfinite(loss) and loss > self._limit
