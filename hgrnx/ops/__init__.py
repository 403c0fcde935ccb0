"""The compute core: the recurrences, the forget gate, the short convolution, and the output head with its losses."""

from hgrnx.ops.causal_conv import causal_conv
from hgrnx.ops.forest import Forest, forest_recurrence
from hgrnx.ops.gate import forget_gate
from hgrnx.ops.gated_unit import gated_unit
from hgrnx.ops.head_loss import HeadLoss, TeacherSignal, head_loss
from hgrnx.ops.mlstm import MLSTMMemory, empty_mlstm_memory, mlstm
from hgrnx.ops.recurrence import (
    IMPLEMENTATIONS,
    available_implementations,
    gated_linear_recurrence,
    implementation_note,
)
from hgrnx.ops.selective_scan import SCAN_IMPLEMENTATIONS, selective_scan
from hgrnx.ops.slstm import SLSTMMemory, empty_slstm_memory, slstm

__all__ = [
    "IMPLEMENTATIONS",
    "SCAN_IMPLEMENTATIONS",
    "Forest",
    "HeadLoss",
    "MLSTMMemory",
    "SLSTMMemory",
    "TeacherSignal",
    "available_implementations",
    "causal_conv",
    "empty_mlstm_memory",
    "empty_slstm_memory",
    "forest_recurrence",
    "forget_gate",
    "gated_linear_recurrence",
    "gated_unit",
    "head_loss",
    "implementation_note",
    "mlstm",
    "selective_scan",
    "slstm",
]
