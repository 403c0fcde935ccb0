"""The gated linear recurrence as Triton kernels, in chunks, forward and backward.

Shapes: B batch, T time, H heads, K keys and V values per head, N documents or rows of the batch, M chunks in all,
C tokens of a chunk. B and T are one axis of tokens to the kernels; a chunk never crosses the end of a row.

As in :mod:`hgrnx.ops.chunked`, every decay is the exponential of a sum of log-gates, each taken once: never of a
difference of sums, which overflows or cancels. Within a chunk the pairs of tokens are split by the highest bit in
which their places differ. For bit b the chunk falls into blocks of 2^b tokens, and a pair is a query in a block
with the bit set (upper) and a key in the block before it (lower). With

    x_i = q_i exp(sum of the log-gates from the block's start to i)     in upper blocks,
    x_i = k_i exp(sum of the log-gates after i to the block's end)      in lower blocks,

the scores of those pairs are entries of x x^T. The sums are products of the log-gates with a matrix of zeros and
ones, and the gradient of the log-gates is the product with its transpose. So there is no difference of large sums
in the backward either, and no diagonal that would have to cancel (a gate does not lie between a token and itself):
flash-linear-attention's reversed cumulative sum of q dq - k dk loses the gradient of gates near 1e-4. The price is
that the matrix units compute whole C x C products of which a bit's blocks are a part; they have the time.

Four kernels: ``_prepare`` decays queries and keys to the ends of their chunk and computes the scores inside it,
``_states`` carries the state, or its gradient, from chunk to chunk, ``_outputs`` reads outputs (or the gradients of
the values) off both, and ``_gradients`` computes those of queries, keys and log-gates. Nothing but the inputs is
kept for the backward.
"""
# mypy: disallow-untyped-defs=False
# The arguments of a kernel are pointers, numbers and compile-time constants: there are no useful types for them.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrnx.ops.triton_common import autotuned, check_device

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


@triton.jit
def _span(chunk, begins_ptr, ends_ptr, T, chunks_per_row, C: tl.constexpr, PACKED: tl.constexpr):
    """First token of a chunk, and how many it has."""
    if PACKED:
        begin = tl.load(begins_ptr + chunk)
        return begin, (tl.load(ends_ptr + chunk) - begin).to(tl.int32)
    else:
        place = (chunk % chunks_per_row) * C
        return (chunk // chunks_per_row).to(tl.int64) * T + place, tl.minimum(T - place, C).to(tl.int32)


@triton.jit
def _log_gates(ptrs, mask):
    # The exponential of anything smaller is 0 as well, and minus infinity times a zero would not be a number.
    return tl.maximum(tl.load(ptrs, mask=mask, other=0.0).to(tl.float32), -104.0)


@triton.jit
def _sums(choice, g, DTYPE: tl.constexpr):
    """choice @ g for a matrix of zeros and ones. Two bfloat16 parts of g are enough for products in bfloat16."""
    if tl.float32 == DTYPE:
        return tl.dot(choice.to(tl.float32), g, input_precision="ieee")
    else:
        high = g.to(DTYPE)
        low = (g - high.to(tl.float32)).to(DTYPE)
        return tl.dot(choice.to(DTYPE), low, tl.dot(choice.to(DTYPE), high))


@triton.jit
def _bit(place, bit):
    return ((place >> bit) & 1) == 1


@autotuned(
    [
        triton.Config({"BK": 32}, num_warps=4, num_stages=2),
        triton.Config({"BK": 32}, num_warps=8, num_stages=2),
        triton.Config({"BK": 64}, num_warps=8, num_stages=2),
    ],
    exact=triton.Config({"BK": 16}, num_warps=8, num_stages=1),
    typed_by="scores_ptr",
    key=["H", "K"],
)
@triton.jit(do_not_specialize=["T", "chunks_per_row"])
def _prepare(
    q_ptr,
    k_ptr,
    log_f_ptr,
    q_decayed_ptr,  # [tokens, H, K], from the chunk's start
    k_decayed_ptr,  # [tokens, H, K], to the chunk's end
    decay_ptr,  # [M, H, K], of the whole chunk
    scores_ptr,  # [M, H, C, C]
    begins_ptr,
    ends_ptr,
    T,
    chunks_per_row,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BITS: tl.constexpr,
    PACKED: tl.constexpr,
    BK: tl.constexpr,
):
    chunk, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin, tokens = _span(chunk, begins_ptr, ends_ptr, T, chunks_per_row, C, PACKED)
    if tokens <= 0:
        return
    DTYPE: tl.constexpr = scores_ptr.dtype.element_ty
    place = tl.arange(0, C)
    row, column = place[:, None], place[None, :]
    of_tokens, of_chunk = (begin * H + head) * K, chunk * H + head
    scores = tl.zeros([C, C], dtype=tl.float32)
    for k0 in range(0, K, BK):
        keys = k0 + tl.arange(0, BK)
        at = row * (H * K) + keys[None, :]
        inside = (row < tokens) & (keys < K)[None, :]
        q = tl.load(q_ptr + of_tokens + at, mask=inside, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + of_tokens + at, mask=inside, other=0.0).to(tl.float32)
        g = _log_gates(log_f_ptr + of_tokens + at, inside)

        q_decayed = q * tl.exp(_sums(column <= row, g, DTYPE))
        k_decayed = k * tl.exp(_sums(column > row, g, DTYPE))
        tl.store(q_decayed_ptr + of_tokens + at, q_decayed.to(DTYPE), mask=inside)
        tl.store(k_decayed_ptr + of_tokens + at, k_decayed.to(DTYPE), mask=inside)
        tl.store(decay_ptr + of_chunk * K + keys, tl.exp(tl.sum(g, 0)), mask=keys < K)

        scores += tl.where(row == column, tl.sum(q * k, 1)[:, None], 0.0)
        for bit in range(BITS):
            upper = _bit(row, bit)
            same_block = ((row ^ column) >> bit) == 0
            log_decay = _sums(same_block & tl.where(upper, column <= row, column > row), g, DTYPE)
            x = (tl.where(upper, q, k) * tl.exp(log_decay)).to(DTYPE)
            products = tl.dot(x, tl.trans(x), input_precision="ieee")
            scores += tl.where(upper & (((row ^ column) >> bit) == 1), products, 0.0)
    tl.store(scores_ptr + of_chunk * C * C + row * C + column, scores.to(DTYPE))


@autotuned(
    [
        triton.Config({"BK": 32, "BV": 32}, num_warps=2, num_stages=3),
        triton.Config({"BK": 32, "BV": 64}, num_warps=4, num_stages=3),
        triton.Config({"BK": 64, "BV": 64}, num_warps=4, num_stages=3),
        triton.Config({"BK": 64, "BV": 64}, num_warps=4, num_stages=2),
    ],
    exact=triton.Config({"BK": 32, "BV": 32}, num_warps=4, num_stages=1),
    typed_by="y_ptr",
    key=["H", "K", "V", "REVERSED"],
)
@triton.jit(do_not_specialize=["T", "chunks_per_row"])
def _states(
    x_ptr,  # [tokens, H, K]
    y_ptr,  # [tokens, H, V]
    decay_ptr,
    initial_ptr,  # [N, H, K, V]
    states_ptr,  # [M, H, K, V]
    final_ptr,  # [N, H, K, V]
    begins_ptr,
    ends_ptr,
    firsts_ptr,
    T,
    chunks_per_row,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    PACKED: tl.constexpr,
    REVERSED: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """S <- decay S + x^T y over a row's chunks, storing S as it was before each; REVERSED from the last to the first.

    With decayed keys and values that is the state before a chunk, reversed with decayed queries and gradients of
    outputs the gradient of the state after it.
    """
    sequence, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    keys = tl.program_id(1) * BK + tl.arange(0, BK)
    values = tl.program_id(2) * BV + tl.arange(0, BV)
    if PACKED:
        first = tl.load(firsts_ptr + sequence)
        count = (tl.load(firsts_ptr + sequence + 1) - first).to(tl.int32)
    else:
        first = sequence * chunks_per_row
        count = chunks_per_row
    at_state = keys[:, None] * V + values[None, :]
    inside_state = (keys < K)[:, None] & (values < V)[None, :]
    place = tl.arange(0, C)
    state = tl.zeros([BK, BV], dtype=tl.float32)
    of_sequence = (sequence * H + head) * K * V
    if initial_ptr is not None:
        state += tl.load(initial_ptr + of_sequence + at_state, mask=inside_state, other=0.0).to(tl.float32)
    for i in range(count):
        chunk = first + (count - 1 - i if REVERSED else i)
        begin, tokens = _span(chunk, begins_ptr, ends_ptr, T, chunks_per_row, C, PACKED)
        tl.store(
            states_ptr + (chunk * H + head) * K * V + at_state,
            state.to(states_ptr.dtype.element_ty),
            mask=inside_state,
        )
        there = place < tokens
        of_tokens = begin * H + head
        x = tl.load(
            x_ptr + of_tokens * K + place[:, None] * (H * K) + keys[None, :],
            mask=there[:, None] & (keys < K)[None, :],
            other=0.0,
        )
        y = tl.load(
            y_ptr + of_tokens * V + place[:, None] * (H * V) + values[None, :],
            mask=there[:, None] & (values < V)[None, :],
            other=0.0,
        )
        decay = tl.load(decay_ptr + (chunk * H + head) * K + keys, mask=keys < K, other=0.0)
        state = tl.dot(tl.trans(x), y, state * decay[:, None], input_precision="ieee")
    tl.store(final_ptr + of_sequence + at_state, state, mask=inside_state)


@autotuned(
    [
        triton.Config({"BK": 32, "BV": 64}, num_warps=4, num_stages=3),
        triton.Config({"BK": 64, "BV": 64}, num_warps=4, num_stages=3),
        triton.Config({"BK": 64, "BV": 128}, num_warps=4, num_stages=2),
        triton.Config({"BK": 64, "BV": 128}, num_warps=8, num_stages=2),
    ],
    exact=triton.Config({"BK": 32, "BV": 32}, num_warps=8, num_stages=1),
    typed_by="y_ptr",
    key=["H", "K", "V", "TRANSPOSED"],
)
@triton.jit(do_not_specialize=["T", "chunks_per_row"])
def _outputs(
    x_ptr,  # [tokens, H, K]
    states_ptr,  # [M, H, K, V]
    scores_ptr,  # [M, H, C, C]
    y_ptr,  # [tokens, H, V]
    out_ptr,  # [tokens, H, V]
    begins_ptr,
    ends_ptr,
    T,
    chunks_per_row,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    PACKED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """x S + scores y: outputs; TRANSPOSED, x S + scores^T y: gradients of the values."""
    chunk, head = tl.program_id(0).to(tl.int64), tl.program_id(2)
    begin, tokens = _span(chunk, begins_ptr, ends_ptr, T, chunks_per_row, C, PACKED)
    if tokens <= 0:
        return
    values = tl.program_id(1) * BV + tl.arange(0, BV)
    place = tl.arange(0, C)
    there = (place < tokens)[:, None]
    of_tokens, of_chunk = begin * H + head, chunk * H + head
    at_values = place[:, None] * (H * V) + values[None, :]
    inside_values = there & (values < V)[None, :]

    scores = tl.load(scores_ptr + of_chunk * C * C + place[:, None] * C + place[None, :])
    if TRANSPOSED:
        scores = tl.trans(scores)
    y = tl.load(y_ptr + of_tokens * V + at_values, mask=inside_values, other=0.0)
    out = tl.dot(scores, y, input_precision="ieee")
    for k0 in range(0, K, BK):
        keys = k0 + tl.arange(0, BK)
        x = tl.load(
            x_ptr + of_tokens * K + place[:, None] * (H * K) + keys[None, :],
            mask=there & (keys < K)[None, :],
            other=0.0,
        )
        state = tl.load(
            states_ptr + of_chunk * K * V + keys[:, None] * V + values[None, :],
            mask=(keys < K)[:, None] & (values < V)[None, :],
            other=0.0,
        )
        out = tl.dot(x, state, out, input_precision="ieee")
    tl.store(out_ptr + of_tokens * V + at_values, out.to(out_ptr.dtype.element_ty), mask=inside_values)


@autotuned(
    [
        triton.Config({"BK": 32, "BV": 32}, num_warps=4, num_stages=2),
        triton.Config({"BK": 32, "BV": 64}, num_warps=4, num_stages=2),
        triton.Config({"BK": 32, "BV": 64}, num_warps=8, num_stages=2),
        triton.Config({"BK": 64, "BV": 64}, num_warps=8, num_stages=2),
    ],
    exact=triton.Config({"BK": 16, "BV": 32}, num_warps=8, num_stages=1),
    typed_by="v_ptr",
    key=["H", "K", "V"],
)
@triton.jit(do_not_specialize=["T", "chunks_per_row"])
def _gradients(
    q_ptr,
    k_ptr,
    v_ptr,
    log_f_ptr,
    states_ptr,  # [M, H, K, V], before each chunk
    do_ptr,
    d_states_ptr,  # [M, H, K, V], after each chunk
    dq_ptr,
    dk_ptr,
    d_log_f_ptr,
    begins_ptr,
    ends_ptr,
    T,
    chunks_per_row,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BITS: tl.constexpr,
    PACKED: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    chunk, head = tl.program_id(0).to(tl.int64), tl.program_id(2)
    begin, tokens = _span(chunk, begins_ptr, ends_ptr, T, chunks_per_row, C, PACKED)
    if tokens <= 0:
        return
    DTYPE: tl.constexpr = v_ptr.dtype.element_ty
    keys = tl.program_id(1) * BK + tl.arange(0, BK)
    place = tl.arange(0, C)
    row, column = place[:, None], place[None, :]
    of_tokens, of_chunk = begin * H + head, chunk * H + head

    d_scores = tl.zeros([C, C], dtype=tl.float32)
    dq = tl.zeros([C, BK], dtype=tl.float32)
    dk = tl.zeros([C, BK], dtype=tl.float32)
    through = tl.zeros([BK], dtype=tl.float32)  # gradient of the decay of what passes the whole chunk
    for v0 in range(0, V, BV):
        values = v0 + tl.arange(0, BV)
        at = row * (H * V) + values[None, :]
        inside = (row < tokens) & (values < V)[None, :]
        v = tl.load(v_ptr + of_tokens * V + at, mask=inside, other=0.0)
        do = tl.load(do_ptr + of_tokens * V + at, mask=inside, other=0.0)
        at = keys[:, None] * V + values[None, :]
        inside = (keys < K)[:, None] & (values < V)[None, :]
        state = tl.load(states_ptr + of_chunk * K * V + at, mask=inside, other=0.0)
        d_state = tl.load(d_states_ptr + of_chunk * K * V + at, mask=inside, other=0.0)
        d_scores = tl.dot(do, tl.trans(v), d_scores, input_precision="ieee")
        dq = tl.dot(do, tl.trans(state), dq, input_precision="ieee")
        dk = tl.dot(v, tl.trans(d_state), dk, input_precision="ieee")
        through += tl.sum(state.to(tl.float32) * d_state.to(tl.float32), 1)

    at = row * (H * K) + keys[None, :]
    inside = (row < tokens) & (keys < K)[None, :]
    q = tl.load(q_ptr + of_tokens * K + at, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + of_tokens * K + at, mask=inside, other=0.0).to(tl.float32)
    g = _log_gates(log_f_ptr + of_tokens * K + at, inside)

    # Between this chunk's tokens and others: a gate decays the queries from it on and the keys before it.
    dq *= tl.exp(_sums(column <= row, g, DTYPE))
    dk *= tl.exp(_sums(column > row, g, DTYPE))
    dg = (through * tl.exp(tl.sum(g, 0)))[None, :]
    dg += tl.dot((row <= column).to(DTYPE), (q * dq).to(DTYPE), input_precision="ieee")
    dg = tl.dot((row > column).to(DTYPE), (k * dk).to(DTYPE), dg, input_precision="ieee")

    # Within the chunk, bit by bit: `pairs` holds each pair's score gradient at both of its places.
    pairs = tl.where(row >= column, d_scores, tl.trans(d_scores))
    for bit in range(BITS):
        upper = _bit(row, bit)
        same_block = ((row ^ column) >> bit) == 0
        decay = tl.exp(_sums(same_block & tl.where(upper, column <= row, column > row), g, DTYPE))
        x = tl.where(upper, q, k) * decay
        d_scores_of_bit = tl.where(((row ^ column) >> bit) == 1, pairs, 0.0)
        dx = tl.dot(d_scores_of_bit.to(DTYPE), x.to(DTYPE), input_precision="ieee")
        dq += tl.where(upper, dx * decay, 0.0)
        dk += tl.where(upper, 0.0, dx * decay)
        decays = same_block & tl.where(upper, row <= column, row > column)
        dg = tl.dot(decays.to(DTYPE), (x * dx).to(DTYPE), dg, input_precision="ieee")

    # A token with itself: no gate lies between.
    itself = tl.sum(tl.where(row == column, d_scores, 0.0), 1)[:, None]
    dq += itself * k
    dk += itself * q
    tl.store(dq_ptr + of_tokens * K + at, dq.to(dq_ptr.dtype.element_ty), mask=inside)
    tl.store(dk_ptr + of_tokens * K + at, dk.to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(d_log_f_ptr + of_tokens * K + at, dg.to(d_log_f_ptr.dtype.element_ty), mask=inside)


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
        _prepare[(M, H)](
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
        _states[lambda meta: (N * H, triton.cdiv(K, meta["BK"]), triton.cdiv(V, meta["BV"]))](
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
        _outputs[lambda meta: (self.chunks.M, triton.cdiv(self.V, meta["BV"]), self.H)](
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
        _gradients[lambda meta: (self.chunks.M, triton.cdiv(self.K, meta["BK"]), self.H)](
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
