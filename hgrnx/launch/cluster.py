"""Connecting to Ray: the cluster of the environment, or one started on this machine for the time of the job."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from hgrnx.config import LaunchConfig
from hgrnx.errors import UserError
from hgrnx.paths import Places


@contextmanager
def connected(places: Places) -> Iterator[None]:
    """Connect to the cluster named by ``RAY_ADDRESS`` (set inside a submitted job), else start a local one.

    A cluster that was started here is stopped at the end; one that was joined is left as it was.
    """
    if ray.is_initialized():
        yield
        return
    # "local" and not None, which would look for a cluster that somebody, or a dead process, left on this machine.
    address = os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    ray.init(
        address=address,
        **options,
        runtime_env={"env_vars": places.environment()},
        log_to_driver=False,  # what a person needs of the workers comes through the progress board
        logging_level=logging.WARNING,
    )
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(launch: LaunchConfig) -> None:
    """Refuse a run that the cluster can never place, instead of waiting for ever.

    Raises:
        UserError: the cluster has fewer CPUs or GPUs than the workers need.
    """
    have = ray.cluster_resources()
    workers = launch.min_workers or launch.num_workers
    for kind, need in (
        ("CPU", workers * launch.cpus_per_worker),
        ("GPU", workers * launch.use_gpu),
    ):
        if need > have.get(kind, 0):
            key = (
                "launch.num_workers or launch.cpus_per_worker"
                if kind == "CPU"
                else "launch.num_workers or launch.use_gpu"
            )
            raise UserError(
                f"The recipe needs {need} {kind}s ({workers} workers), "
                f"the Ray cluster has {have.get(kind, 0):g}. Lower {key}, or add nodes."
            )
