"""The compute core: the recurrence, the forget gate, and the output head with its losses."""

from hgrnx.ops.gate import forget_gate
from hgrnx.ops.head_loss import HeadLoss, TeacherSignal, head_loss
from hgrnx.ops.recurrence import (
    IMPLEMENTATIONS,
    available_implementations,
    gated_linear_recurrence,
    implementation_notes,
)

__all__ = [
    "IMPLEMENTATIONS",
    "HeadLoss",
    "TeacherSignal",
    "available_implementations",
    "forget_gate",
    "gated_linear_recurrence",
    "head_loss",
    "implementation_notes",
]
