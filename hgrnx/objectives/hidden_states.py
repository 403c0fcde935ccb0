"""How far a student's last hidden states are from its teachers'.

Shapes: N tokens, D model width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hgrnx.errors import UserError
from hgrnx.ops import TeacherSignal


def hidden_distance(hidden_ND: Tensor, valid_N: Tensor, signal: TeacherSignal) -> Tensor:
    """Sum over the valid tokens of 1 - cosine of student's and teacher's hidden states (as DistilBERT, 1910.01108).

    The states are those that the output heads see, in float32. Of several teachers, the mean by their shares.

    Raises:
        UserError: a teacher's states have another width than the student's, or there is no teacher beside it.
    """
    if signal.models is None:
        raise UserError("distill.hidden_weight needs the teacher beside the student: what is stored has no states.")
    total = hidden_ND.new_zeros((), dtype=hidden_ND.float().dtype)
    for teacher_ND, _, share in signal.models:
        if teacher_ND.shape != hidden_ND.shape:
            raise UserError(
                f"distill.hidden_weight compares hidden states, but the student's are {hidden_ND.shape[1]} wide and "
                f"the teacher's {teacher_ND.shape[1]}. Choose models of one width, or hidden_weight=0."
            )
        similarity_N = F.cosine_similarity(hidden_ND.float(), teacher_ND.detach().float(), dim=-1)
        total = total + share * (1 - similarity_N).masked_fill(~valid_N, 0.0).sum()
    return total
