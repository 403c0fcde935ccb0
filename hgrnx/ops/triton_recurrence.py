"""The gated linear recurrence on a GPU by our own Triton kernels: what launches them, and the torch operators.

Shapes: B batch, T time, H heads, K keys and V values per head, N documents or rows of the batch, M chunks in all,
C tokens of a chunk. B and T are one axis of tokens to the kernels; a chunk never crosses the end of a row.

Nothing but the inputs is kept for the backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hgrnx.ops.triton_common import check_device
from hgrnx.ops.triton_recurrence_kernels import gradients_kernel, outputs_kernel, prepare_kernel, states_kernel

_CHUNK_BITS = 6
_CHUNK = 2**_CHUNK_BITS


def triton_recurrence(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_f_BTHK: Tensor,
    initial_state_BHKV: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results are those of :func:`hgrnx.ops.gated_linear_recurrence`.

    Matrix products take bfloat16 if v is of that type or autocast's, else float32, and add up in float32; states
    stay in float32.

    Raises:
        ValueError: the tensors are not on a GPU.
    """
    check_device("gated_linear_recurrence", q_BTHK)
    device_type = q_BTHK.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else v_BTHV.dtype
    if dtype != torch.bfloat16:  # float16 has no room for states
        dtype = torch.float32
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.to(q_BTHK.device)
    o_BTHV, final_BHKV = _recurrence(q_BTHK, k_BTHK, v_BTHV.to(dtype), log_f_BTHK, initial_state_BHKV, cu_seqlens)
    return o_BTHV.to(v_BTHV.dtype), final_BHKV


class _Chunks(NamedTuple):
    """The cut of the tokens into chunks. The three tensors are None unless documents are packed."""

    M: int  # chunks; with packed documents the most that there can be, for their number is only known to the device
    N: int
    per_row: int
    begins_M: Tensor | None  # first token; chunks beyond the real ones have none
    ends_M: Tensor | None
    firsts: Tensor | None  # [N + 1], each document's first chunk


def _cut(q_BTHK: Tensor, cu_seqlens: Tensor | None) -> _Chunks:
    B, T = q_BTHK.shape[:2]
    if cu_seqlens is None:
        per_row = triton.cdiv(T, _CHUNK)
        return _Chunks(B * per_row, B, per_row, None, None, None)
    bounds = cu_seqlens.to(torch.int64)
    N = bounds.numel() - 1
    M = T // _CHUNK + N
    counts_N = (bounds.diff() + (_CHUNK - 1)) // _CHUNK
    firsts = torch.nn.functional.pad(counts_N.cumsum(0), (1, 0))
    chunk_M = torch.arange(M, device=bounds.device)
    document_M = torch.searchsorted(firsts, chunk_M, right=True).sub_(1)
    real_M = document_M < N
    document_M.clamp_(max=N - 1)
    begins_M = bounds[document_M] + (chunk_M - firsts[document_M]) * _CHUNK
    ends_M = torch.minimum(begins_M + _CHUNK, bounds[document_M + 1])
    return _Chunks(M, N, 0, begins_M, torch.where(real_M, ends_M, begins_M), firsts)


class _Run:
    """The kernels on the tensors of one call."""

    def __init__(
        self, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_f_BTHK: Tensor, cu_seqlens: Tensor | None
    ) -> None:
        self.q, self.k, self.v, self.log_f = (x.contiguous() for x in (q_BTHK, k_BTHK, v_BTHV, log_f_BTHK))
        self.H, self.K = q_BTHK.shape[2:]
        self.V = v_BTHV.shape[-1]
        self.chunks = _cut(q_BTHK, cu_seqlens)
        self.places = {"begins_ptr": self.chunks.begins_M, "ends_ptr": self.chunks.ends_M, "T": q_BTHK.shape[1]}
        self.places |= {"chunks_per_row": self.chunks.per_row, "PACKED": cu_seqlens is not None, "C": _CHUNK}

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.v.new_empty(shape, dtype=dtype)

    def prepare(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decayed queries and keys, decays of the chunks, and scores inside them."""
        M, H, K = self.chunks.M, self.H, self.K
        q_decayed, k_decayed = self.new(*self.q.shape), self.new(*self.q.shape)
        decay_MHK, scores_MHCC = self.new(M, H, K, dtype=torch.float32), self.new(M, H, _CHUNK, _CHUNK)
        prepare_kernel[(M, H)](
            self.q,
            self.k,
            self.log_f,
            q_decayed,
            k_decayed,
            decay_MHK,
            scores_MHCC,
            H=H,
            K=K,
            BITS=_CHUNK_BITS,
            **self.places,
        )
        return q_decayed, k_decayed, decay_MHK, scores_MHCC

    def states(
        self, x: Tensor, y: Tensor, decay_MHK: Tensor, initial_NHKV: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """States between the chunks, and the last one."""
        H, K, V, N = self.H, self.K, self.V, self.chunks.N
        states_MHKV, final_NHKV = self.new(self.chunks.M, H, K, V), self.new(N, H, K, V, dtype=torch.float32)
        states_kernel[lambda meta: (N * H, triton.cdiv(K, meta["BK"]), triton.cdiv(V, meta["BV"]))](
            x,
            y,
            decay_MHK,
            None if initial_NHKV is None else initial_NHKV.contiguous(),
            states_MHKV,
            final_NHKV,
            firsts_ptr=self.chunks.firsts,
            H=H,
            K=K,
            V=V,
            REVERSED=reverse,
            **self.places,
        )
        return states_MHKV, final_NHKV

    def outputs(self, x: Tensor, states_MHKV: Tensor, scores_MHCC: Tensor, y: Tensor, transpose: bool) -> Tensor:
        out = torch.empty_like(self.v)
        outputs_kernel[lambda meta: (self.chunks.M, triton.cdiv(self.V, meta["BV"]), self.H)](
            x,
            states_MHKV,
            scores_MHCC,
            y,
            out,
            H=self.H,
            K=self.K,
            V=self.V,
            TRANSPOSED=transpose,
            **self.places,
        )
        return out

    def gradients(self, states_MHKV: Tensor, do: Tensor, d_states_MHKV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, d_log_f = (torch.empty_like(x) for x in (self.q, self.k, self.log_f))
        gradients_kernel[lambda meta: (self.chunks.M, triton.cdiv(self.K, meta["BK"]), self.H)](
            self.q,
            self.k,
            self.v,
            self.log_f,
            states_MHKV,
            do,
            d_states_MHKV,
            dq,
            dk,
            d_log_f,
            H=self.H,
            K=self.K,
            V=self.V,
            BITS=_CHUNK_BITS,
            **self.places,
        )
        return dq, dk, d_log_f


@torch.library.custom_op("hgrnx::triton_recurrence", mutates_args=())
def _recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    run = _Run(q, k, v, log_f, cu_seqlens)
    q_decayed, k_decayed, decay_MHK, scores_MHCC = run.prepare()
    states_MHKV, final_NHKV = run.states(k_decayed, run.v, decay_MHK, initial_state, reverse=False)
    return run.outputs(q_decayed, states_MHKV, scores_MHCC, run.v, transpose=False), final_NHKV


@_recurrence.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    N = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    final = torch.empty(N, q.shape[2], q.shape[3], v.shape[3], dtype=torch.float32, device=q.device)
    return torch.empty(v.shape, dtype=v.dtype, device=v.device), final


@torch.library.custom_op("hgrnx::triton_recurrence_backward", mutates_args=())
def _recurrence_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    do: Tensor,
    d_final: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_f and, in float32 and also without one, of the initial state."""
    run = _Run(q, k, v, log_f, cu_seqlens)
    do = do.contiguous()
    q_decayed, k_decayed, decay_MHK, scores_MHCC = run.prepare()
    states_MHKV, _ = run.states(k_decayed, run.v, decay_MHK, initial_state, reverse=False)
    d_states_MHKV, d_initial_NHKV = run.states(q_decayed, do, decay_MHK, d_final, reverse=True)
    dv = run.outputs(k_decayed, d_states_MHKV, scores_MHCC, do, transpose=True)
    dq, dk, d_log_f = run.gradients(states_MHKV, do, d_states_MHKV)
    return dq, dk, dv, d_log_f, d_initial_NHKV


@_recurrence_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    do: Tensor,
    d_final: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, log_f, d_final)]
    return like[0], like[1], like[2], like[3], like[4]


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients_of_inputs(ctx: Any, do: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors  # once: activation checkpointing hands them out a single time
    initial_state = inputs[4]
    *grads, d_initial = _recurrence_backward(*inputs, do, d_final)
    return (*grads, None if initial_state is None else d_initial.to(initial_state.dtype), None)


_recurrence.register_autograd(_gradients_of_inputs, setup_context=_keep)
