"""The compute core: the recurrence, the forget gate, and the output head with its losses."""

from hgrnx.ops.compiled import CompiledStatus, compiled_status
from hgrnx.ops.gate import forget_gate
from hgrnx.ops.head_loss import HeadLoss, TeacherSignal, head_loss
from hgrnx.ops.recurrence import IMPLEMENTATIONS, gated_linear_recurrence

__all__ = [
    "IMPLEMENTATIONS",
    "CompiledStatus",
    "HeadLoss",
    "TeacherSignal",
    "compiled_status",
    "forget_gate",
    "gated_linear_recurrence",
    "head_loss",
]
