"""The few collective operations that training needs; with one process they do nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes (0 and 1 where torch.distributed was not started)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Sum each value over all ranks, in float64 (float32 on devices without it). Every rank must call it."""
    if rank_and_world()[1] == 1:
        return values
    names = sorted(values)
    sums = torch.tensor([values[name] for name in names], dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return dict(zip(names, sums.tolist()))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set on any rank. Every rank must call it."""
    if rank_and_world()[1] == 1:
        return flag
    value = torch.tensor([int(flag)], dtype=torch.int32, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


def gather_objects(value: Any) -> list[Any]:
    """Every rank's ``value``, in rank order, on every rank. Every rank must call it."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, value)
    return gathered


def wait_for_all() -> None:
    """Return when every rank has arrived."""
    if rank_and_world()[1] > 1:
        dist.barrier()
