"""Packed documents, also for a recurrence that knows only batches of equally long rows.

Shapes: T time, H heads, K keys and V values per head, N documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def in_padded_rows(
    recurrence: Callable[..., tuple[Tensor, Tensor]],
    q_1THK: Tensor,
    k_1THK: Tensor,
    v_1THV: Tensor,
    log_f_1THK: Tensor,
    initial_state_NHKV: Tensor | None,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor]:
    """Calls ``recurrence`` on groups of documents of similar length, padded to rows, and puts the results back.

    Args:
        recurrence: takes q, k, v, log_f and the initial state of a batch of rows.
        cu_seqlens: offsets of the documents, [N + 1].

    Returns:
        Outputs [1, T, H, V] and last states [N, H, K, V].
    """
    device = q_1THK.device
    starts = cu_seqlens[:-1].to("cpu", torch.int64)
    lengths = cu_seqlens[1:].to("cpu", torch.int64) - starts
    order = torch.argsort(lengths, descending=True, stable=True)
    outputs, places, states = [], [], []
    for group in _groups_of_similar_length(lengths[order].tolist()):
        documents = order[group]
        position = torch.arange(int(lengths[documents[0]]))
        inside = position < lengths[documents, None]
        index = torch.where(inside, starts[documents, None] + position, 0).to(device)
        documents, inside = documents.to(device), inside.to(device)
        # Padding follows the text, with keys of 0 and gates of 1: it changes neither outputs nor last states.
        q_rows, k_rows, v_rows, log_f_rows = (
            x[0].index_select(0, index.flatten()).unflatten(0, index.shape)
            for x in (q_1THK, k_1THK, v_1THV, log_f_1THK)
        )
        padding = ~inside[..., None, None]
        k_rows, log_f_rows = k_rows.masked_fill(padding, 0), log_f_rows.masked_fill(padding, 0)
        state = None if initial_state_NHKV is None else initial_state_NHKV[documents]
        o, state = recurrence(q_rows, k_rows, v_rows, log_f_rows, state)
        outputs.append(o[inside])
        places.append(index[inside])
        states.append(state)
    o_THV = torch.cat(outputs)[torch.argsort(torch.cat(places))]
    return o_THV[None], torch.cat(states)[torch.argsort(order).to(device)]


def check_offsets(cu_seqlens: Tensor, T: int) -> None:
    """Raises ValueError unless the offsets increase strictly from 0 to T."""
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != T or any(a >= b for a, b in zip(bounds, bounds[1:])):
        raise ValueError(f"cu_seqlens must increase strictly from 0 to {T}: {bounds}")


def _groups_of_similar_length(lengths: list[int]) -> Iterator[slice]:
    """Slices of descending lengths within which none is shorter than 3/4 of the longest, or than 8 less."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] < min(0.75 * lengths[start], lengths[start] - 8):
            yield slice(start, end)
            start = end
