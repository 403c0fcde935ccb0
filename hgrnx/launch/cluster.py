"""Connecting to Ray: the cluster of the environment, or one started on this machine for the time of the job."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from hgrnx.config import LaunchConfig
from hgrnx.errors import UserError
from hgrnx.launch import orphans
from hgrnx.ops.cpu import ONE_HEAP
from hgrnx.paths import Places
from hgrnx.tracking.store_check import shown


@contextmanager
def connected(places: Places, *, dashboard: bool = False) -> Iterator[None]:
    """Connect to the cluster named by ``RAY_ADDRESS`` (set inside a submitted job), else start a local one.

    A cluster that was started here is stopped at the end; one that was joined is left as it was. The one started
    here takes nobody without its token, which only this process and its children know. A ``dashboard`` (on loopback)
    is needed where several runs follow one another: without it Ray Train cannot see that the driver of a run is gone,
    and keeps the CPUs of its workers.

    Raises:
        UserError: Ray did not start here in time.
    """
    if ray.is_initialized():
        yield
        return
    # "local" and not None, which would look for a cluster that somebody, or a dead process, left on this machine.
    address = os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {}
    # Ray shows these on its dashboard and writes them into its logs.
    variables = {**places.environment(), "MLFLOW_TRACKING_URI": shown(places.mlflow_uri)}
    # Ray Train's workers train in a thread.
    variables |= {name: os.environ.get(name, value) for name, value in ONE_HEAP.items()}
    if address == "local":
        options = {"include_dashboard": dashboard, "dashboard_port": free_port()}
        _make_token()
        # Ray Train asks there whether the driver of a run lives. Without this it asks the cluster that somebody, or a
        # dead process, left on this machine: it waits for it for 40 seconds, or takes the driver for dead.
        variables["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{options['dashboard_port']}"
        # A run has more processes than a laptop has cores, most of them idle; Ray would warn of them again and again.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    try:
        ray.init(
            address=address,
            **options,
            runtime_env={"env_vars": variables, "worker_process_setup_hook": orphans.HOOK},
            log_to_driver=False,  # what a person needs of the workers comes through the progress board
            logging_level=logging.WARNING,
        )
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start on this machine in time; most likely it is busy with other work. Give the command "
            "again when it is less so."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_token() -> None:
    """A token for this process and its children, unless the user has chosen one, or chosen to have none.

    Ray asks for a token by default where it starts a cluster itself, and would keep a new one in the user's home
    folder, readable by all.
    """
    if not any(os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Its advice how to switch that off again, at every start, is of no use to anybody.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


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
