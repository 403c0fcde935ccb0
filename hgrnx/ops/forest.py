"""Rows of tokens that share their beginnings, and the recurrence over them.

Shapes: T tokens, H heads, K keys and V values per head, N segments, M segments of one generation, t their tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hgrnx.ops.compiled import compiled_forest
from hgrnx.ops.recurrence import default_implementation, gated_linear_recurrence


class Generation(NamedTuple):
    """The segments with equally many ancestors; they can be read at once."""

    places_t: Tensor
    """Of their tokens, segment after segment."""
    cu_seqlens: Tensor
    """Offsets of the segments in ``places_t``, [M + 1]."""
    parents_M: Tensor | None
    """Which segment of the generation before each goes on from; None for the first generation."""


class Forest(NamedTuple):
    """Rows of tokens that share their beginnings; each beginning is there once.

    The tokens lie one after the other as segments. A segment goes on where its parent ends; it stands behind its
    parent and all that descends from siblings before it (preorder). Tensors are int64 and lie on the CPU.
    """

    cu_seqlens: Tensor
    """Offsets of the segments, [N + 1]: strictly increasing, from 0 to T."""
    parents_N: Tensor
    """-1 for a segment that begins a row."""
    generations_N: Tensor
    """How many ancestors a segment has."""

    @classmethod
    def of(cls, cu_seqlens: Sequence[int], parents: Sequence[int]) -> Forest:
        """From offsets and parents."""
        generations: list[int] = []
        for parent in parents:
            generations.append(0 if parent < 0 else generations[parent] + 1)
        return cls(torch.tensor(cu_seqlens), torch.tensor(parents), torch.tensor(generations))

    def positions(self) -> Tensor:
        """How many tokens come before each token in its row, [T]."""
        starts, lengths = self.cu_seqlens[:-1].tolist(), self.cu_seqlens.diff().tolist()
        depths: list[int] = []
        for parent in self.parents_N.tolist():
            depths.append(0 if parent < 0 else depths[parent] + lengths[parent])
        shifts_N = torch.tensor([depth - start for depth, start in zip(depths, starts, strict=True)])
        return torch.arange(int(self.cu_seqlens[-1])) + shifts_N.repeat_interleave(self.cu_seqlens.diff())

    def ends(self) -> Tensor:
        """Where the last descendant of each token's segment ends, [T]: token j is before token i in a row if
        j < i < ends[j]."""
        ends = self.cu_seqlens[1:].tolist()
        for segment, parent in reversed(list(enumerate(self.parents_N.tolist()))):
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[segment])
        return torch.tensor(ends).repeat_interleave(self.cu_seqlens.diff())

    def by_generation(self, device: torch.device) -> Iterator[Generation]:
        """The generations, first to last, with tensors on ``device``."""
        starts, lengths = self.cu_seqlens[:-1], self.cu_seqlens.diff()
        ranks = torch.zeros_like(self.parents_N)
        for number in range(int(self.generations_N.max()) + 1):
            members_M = (self.generations_N == number).nonzero()[:, 0]
            ranks[members_M] = torch.arange(len(members_M))
            cu_seqlens = torch.cat([members_M.new_zeros(1), lengths[members_M].cumsum(0)])
            shifts_t = (starts[members_M] - cu_seqlens[:-1]).repeat_interleave(lengths[members_M])
            parents_M = ranks[self.parents_N[members_M]].to(device) if number else None
            places_t = shifts_t + torch.arange(int(cu_seqlens[-1]))
            yield Generation(places_t.to(device), cu_seqlens.to(device), parents_M)


def forest_recurrence(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_f_BTHK: Tensor, forest: Forest, impl: str | None = None
) -> Tensor:
    """Outputs [1, T, H, V] of :func:`hgrnx.ops.gated_linear_recurrence` over a forest, in the type of v; no gradients.

    A segment begins with the state that its parent ends with. "compiled" goes depth first and holds as many states as
    the deepest segment has ancestors; the others go by generation and hold the states of one.
    """
    if impl is None:
        impl = default_implementation(q_BTHK.device.type)
    if impl == "compiled":
        return compiled_forest(q_BTHK, k_BTHK, v_BTHV, log_f_BTHK, forest.cu_seqlens, forest.generations_N)
    o_BTHV = torch.empty_like(v_BTHV)
    states_MHKV: Tensor | None = None
    for places_t, cu_seqlens, parents_M in forest.by_generation(q_BTHK.device):
        if states_MHKV is not None and parents_M is not None:
            states_MHKV = states_MHKV.index_select(0, parents_M)
        q_BtHK, k_BtHK, v_BtHV, log_f_BtHK = (x.index_select(1, places_t) for x in (q_BTHK, k_BTHK, v_BTHV, log_f_BTHK))
        o_BtHV, states_MHKV = gated_linear_recurrence(q_BtHK, k_BtHK, v_BtHV, log_f_BtHK, states_MHKV, cu_seqlens, impl)
        o_BTHV.index_copy_(1, places_t, o_BtHV)
    return o_BTHV
