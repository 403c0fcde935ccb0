"""The gated linear recurrence on a GPU: flash-linear-attention's chunked GLA kernels.

Shapes: B batch, T time, H heads, K keys and V values per head. This is the only import of ``fla``, and it
happens when the function is called.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fla_recurrence(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_f_BTHK: Tensor,
    initial_state_BHKV: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results are those of :func:`hgrnx.ops.gated_linear_recurrence`.

    The kernels take q, k and v in one type: v's, or autocast's. Gates and states stay in float32.

    Raises:
        ValueError: the tensors are not on a GPU, or flash-linear-attention is not installed.
    """
    if not q_BTHK.is_cuda:
        raise ValueError(f"impl='fla' needs tensors on a GPU, and q is on {q_BTHK.device}; impl=None fits all")
    try:
        from fla.ops.gla import chunk_gla
    except ImportError as error:
        raise ValueError(f"impl='fla' needs the package flash-linear-attention ({error})") from error

    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else v_BTHV.dtype
    if dtype == torch.float64:
        dtype = torch.float32
    packed = {}
    if cu_seqlens is not None:
        packed["cu_seqlens"] = cu_seqlens.to(q_BTHK.device, torch.int64)
        if not cu_seqlens.is_cuda:  # spares the kernels' planning a wait for the device
            packed["cu_seqlens_cpu"] = cu_seqlens.to(torch.int64)
    o_BTHV, final_state = chunk_gla(
        q=q_BTHK.to(dtype),
        k=k_BTHK.to(dtype),
        v=v_BTHV.to(dtype),
        g=log_f_BTHK.float(),
        scale=1.0,  # by default the kernels would scale by K^-0.5
        initial_state=None if initial_state_BHKV is None else initial_state_BHKV.float(),
        output_final_state=True,
        state_v_first=False,
        **packed,
    )
    return o_BTHV.to(v_BTHV.dtype), final_state
