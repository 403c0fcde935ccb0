"""The Triton kernels of the gated linear recurrence, in chunks, forward and backward.

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

``prepare_kernel`` decays queries and keys to the ends of their chunk and computes the scores inside it,
``states_kernel`` carries the state, or its gradient, from chunk to chunk, ``outputs_kernel`` reads outputs (or the
gradients of the values) off both, and ``gradients_kernel`` computes those of queries, keys and log-gates.
"""
# mypy: disallow-untyped-defs=False
# The arguments of a kernel are pointers, numbers and compile-time constants: there are no useful types for them.

from __future__ import annotations

import triton
import triton.language as tl

from hgrnx.ops.triton_common import autotuned


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
def prepare_kernel(
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
def states_kernel(
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
def outputs_kernel(
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
def gradients_kernel(
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
