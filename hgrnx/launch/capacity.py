"""How many trials fit on a cluster at once."""

from __future__ import annotations

from collections.abc import Mapping

from hgrnx.config import LaunchConfig

_OTHERS_MB = 700.0
"""What a trial needs besides its workers: the driver and Ray Train's controller, each a process with torch."""


def trials_at_once(launch: LaunchConfig, resources: Mapping[str, float], memory_mb: float | None) -> int:
    """How many trials the cluster has room for; 1 until the memory of a worker is known, and never less.

    Args:
        resources: Ray's, of the whole cluster: ``CPU``, ``GPU``, ``memory`` (bytes).
        memory_mb: peak memory of one worker on the CPU; a worker on a GPU has that GPU for itself.
    """
    if memory_mb is None:
        return 1
    room = [resources.get("CPU", 0.0) / (launch.num_workers * launch.cpus_per_worker)]
    if launch.use_gpu:
        room.append(resources.get("GPU", 0.0) / launch.num_workers)
    else:
        room.append(resources["memory"] / 1e6 / (launch.num_workers * memory_mb + _OTHERS_MB))
    return max(1, int(min(room)))
