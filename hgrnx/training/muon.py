"""Muon for matrices and AdamW for the rest, as one optimizer.

Muon's step is the momentum's nearest orthogonal matrix (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon),
scaled so that its root mean square is that of a step of AdamW (Moonshot, arXiv 2502.16982, eq. 4): one learning rate
and one weight decay serve both. Names of states and the order of operations are those of ``torch.optim.Muon``.

Shapes: M rows and N columns of a matrix, S elements of a rank's shard, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_RMS = 0.2
"""Root mean square of a usual step of AdamW, in learning rates."""


class Shards(NamedTuple):
    """How ZeRO has laid the matrices of a group one after the other, and which part of it this rank has."""

    rank: int
    world_size: int
    matrices: list[tuple[int, torch.Size]]
    """Where each begins, and its shape."""


class MuonAdamW(torch.optim.Optimizer):
    """Groups with ``muon=True`` are stepped by Muon, the others by torch's AdamW with ``adamw``'s options.

    A group of Muon holds matrices, or with ``shards`` (:class:`Shards`) one flat tensor, this rank's part of them:
    then a step exchanges the momentum once and is collective. The orthogonal matrices are computed in ``dtype``.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, dtype: torch.dtype = torch.float32, **adamw: Any
    ) -> None:
        super().__init__([{"muon": False, **group} for group in groups], {"momentum": momentum, **adamw})
        self._dtype = dtype
        self._adamw = torch.optim.AdamW([torch.empty(0)], **adamw)
        for group in self.param_groups:  # what AdamW's constructor adds by itself
            group.update({key: value for key, value in self._adamw.param_groups[0].items() if key not in group})
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step(parameter, parameter.grad, group)
        # ZeRO steps one group at a time, by putting others in the place of param_groups.
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.step()

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["step"] += 1
        average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        wanted = gradient.lerp(average, group["momentum"])  # Nesterov's
        shards = group.get("shards")
        if shards is None:
            update = _orthogonal(wanted, self._dtype)
        else:
            update = _orthogonal_shard(wanted, shards, self._dtype)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def _orthogonal(matrix_MN: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V^T of the singular value decomposition, by Newton and Schulz in ``dtype``, times 0.2 sqrt(max(M, N))."""
    m, n = matrix_MN.shape
    a, b, c = _COEFFICIENTS
    x = matrix_MN.to(dtype)
    x = x if m <= n else x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if m <= n else x.T).to(matrix_MN.dtype) * (_RMS * max(m, n) ** 0.5)


def _orthogonal_shard(shard_S: Tensor, shards: Shards, dtype: torch.dtype) -> Tensor:
    """This rank's part of the orthogonal matrices, each computed where a part of it lies."""
    whole = shard_S
    if shards.world_size > 1:
        whole = shard_S.new_empty(shards.world_size * len(shard_S))
        dist.all_gather_into_tensor(whole, shard_S)
    first, last = shards.rank * len(shard_S), (shards.rank + 1) * len(shard_S)
    update_S = torch.zeros_like(shard_S)
    for begin, shape in shards.matrices:
        end = begin + shape.numel()
        low, high = max(begin, first), min(end, last)
        if low < high:
            matrix = _orthogonal(whole[begin:end].view(shape), dtype).flatten()
            update_S[low - first : high - first] = matrix[low - begin : high - begin]
    return update_S
