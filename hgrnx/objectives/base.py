"""An objective turns a model and a batch into a token sum to minimise.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from hgrnx.models import LanguageModel

IGNORE_INDEX = -100
"""Target of places that count for nothing."""


class ObjectiveOutput(NamedTuple):
    """Sums over the batch's valid tokens; the caller divides by the count of the global batch."""

    loss_sum: Tensor
    """What is minimised, a float32 scalar with gradient."""
    count: Tensor  # type: ignore[assignment]  # a tuple's own method of that name is of no use here
    """Valid tokens, an int64 scalar."""
    metrics: dict[str, Tensor]
    """Detached float32 sums: ``cross_entropy``, and when distilling ``kl`` and ``hidden_distance``, if they count."""


class Objective(Protocol):
    """Called inside the engine's forward, so that its hooks see every use of a weight, the head's included."""

    def __call__(
        self,
        model: LanguageModel,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        chunks: Sequence[int] = (),
    ) -> ObjectiveOutput:
        """``chunks`` are the numbers of the B pieces of the training text, where somebody has something stored."""
        ...


class ObjectiveModule(nn.Module):
    """A model and its objective as the one module an engine wraps. Its parameters are those of ``model``."""

    def __init__(self, model: LanguageModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(
        self, inputs_BT: Tensor, targets_BT: Tensor, cu_seqlens: Tensor | None = None, chunks: Sequence[int] = ()
    ) -> ObjectiveOutput:
        return self.objective(self.model, inputs_BT, targets_BT, cu_seqlens, chunks)
