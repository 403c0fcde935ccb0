"""Cutting a batch into slabs of sequences and heads that fit a core's cache.

Shapes: B batch, T time, H heads, K keys or values per head, R the (sequence, head) pairs of a slab.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SLAB_ELEMENTS = 2**17  # numbers of a [tokens, K] slab: its few live tensors should stay in the cache

Slab = tuple[slice, slice]
"""Batch rows and heads."""


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def chunking(T: int, largest: int) -> tuple[int, int]:
    """Tokens of a chunk (a power of two, at most ``largest``), and T rounded up to a multiple of it."""
    chunk = 1
    while chunk < min(T, largest):
        chunk *= 2
    return chunk, -(-T // chunk) * chunk


def slabs(B: int, T: int, H: int, K: int) -> Iterator[Slab]:
    """Whole sequences where that is little enough, because they are contiguous; else some of their heads."""
    rows = max(1, SLAB_ELEMENTS // (T * H * K))
    heads = min(H, max(1, SLAB_ELEMENTS // (T * K)))
    for row in range(0, B, rows):
        for head in range(0, H, heads):
            yield slice(row, min(row + rows, B)), slice(head, min(head + heads, H))


def take(x_BTHK: Tensor, slab: Slab) -> Tensor:
    """A slab's own copy, [R, T, K] with R (sequence, head) pairs, in the type of the computation."""
    part = x_BTHK[slab[0], :, slab[1]].transpose(1, 2)
    copy = part.new_empty(part.shape, dtype=compute_dtype(x_BTHK))
    return copy.copy_(part).flatten(0, 1)


def put(x_BTHK: Tensor, slab: Slab, values: Tensor) -> None:
    part = x_BTHK[slab[0], :, slab[1]].transpose(1, 2)
    part.copy_(values.view(part.shape))


def pad_time(x_BTHK: Tensor, T: int) -> Tensor:
    """Zeros at the end: queries, keys and values of 0, gates of 1."""
    missing = T - x_BTHK.shape[1]
    return torch.nn.functional.pad(x_BTHK, (0, 0, 0, 0, 0, missing)) if missing else x_BTHK
