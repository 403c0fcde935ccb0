"""The compute core: the recurrences, the forget gate, the short convolution, and the output head with its losses."""

from hgrnx.ops.causal_conv import causal_conv
from hgrnx.ops.gate import forget_gate
from hgrnx.ops.head_loss import HeadLoss, TeacherSignal, head_loss
from hgrnx.ops.recurrence import IMPLEMENTATIONS, gated_linear_recurrence
from hgrnx.ops.selective_scan import SCAN_IMPLEMENTATIONS, selective_scan

__all__ = [
    "IMPLEMENTATIONS",
    "SCAN_IMPLEMENTATIONS",
    "HeadLoss",
    "TeacherSignal",
    "causal_conv",
    "forget_gate",
    "gated_linear_recurrence",
    "head_loss",
    "selective_scan",
]
