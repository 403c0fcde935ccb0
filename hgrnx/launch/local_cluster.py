"""The shape of a real cluster on one machine: a head, workers (raylets of their own) and an MLflow server.

All listen on loopback, and Ray takes nobody without the token. Whatever is started carries :data:`TAG` in its
environment, as do its children, whoever adopts them: so all can be found again and ended, after any accident.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from hgrnx.errors import UserError
from hgrnx.launch.cluster import free_port
from hgrnx.paths import Places
from hgrnx.tracking.mlflow_store import init_store, server_command
from hgrnx.tracking.store_check import LOOPBACK, check_store, locked, port_is_free, shown

TAG = "HGRNX_CLUSTER"
_OBJECT_STORE_BYTES = 256 * 2**20  # of each node: hgrnx hands weights and text over through files
_START_SECONDS = 180.0
# `ray start`, but a second node may join at the loopback address, where Ray's servers then listen and nowhere else.
# (The command replaces that address by one that other machines reach, or, told not to, lets no node join.)
_RAY_ON_LOOPBACK = f"""
from ray._private import ray_constants, services
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda address=None: "{LOOPBACK}"
from ray.scripts.scripts import main
main()
"""


@dataclass(frozen=True)
class LocalCluster:
    """What has been started, as ``cluster.json`` keeps it."""

    id: str
    temporary: str
    """Ray's sockets and logs."""
    workers: int
    ray_port: int
    dashboard_port: int
    mlflow_port: int | None
    """None where the runs go to a server that was there before."""
    mlflow_uri: str
    """Without user name and password."""


def cluster_folder(places: Places) -> Path:
    """Where the cluster of ``places`` keeps its state, its token and the settings to source."""
    return places.home / "cluster"


def up(
    places: Places, *, workers: int, cpus: int, gpus: int, dashboard_port: int, mlflow_port: int, console: Console
) -> None:
    """Start a head, ``workers`` nodes with ``cpus`` CPUs and ``gpus`` GPUs each, and MLflow; return when all answer.

    Raises:
        UserError: one is running, a port is taken, or a part did not start. Nothing is left running then.
    """
    folder = cluster_folder(places)
    with _only_one(folder):
        old = _read(folder)
        if old is not None and processes(old.id, old.temporary):
            raise UserError(f"The cluster in {folder} is running. Stop it first: hgrnx cluster down")
        _clear(folder, old)
        own_mlflow = not places.mlflow_uri.startswith("http")
        for port, option in ((dashboard_port, "--port"), (mlflow_port, "--mlflow-port")):
            if not port_is_free(port) and (own_mlflow or port != mlflow_port):
                raise UserError(f"Port {port} is in use on this machine. Choose another with {option}.")
        store = os.environ.get("MLFLOW_BACKEND_STORE_URI") or places.mlflow_uri
        init_store(store)
        cluster = LocalCluster(
            id=secrets.token_hex(8),
            temporary=tempfile.mkdtemp(prefix="hgrnx-", dir="/tmp"),  # short: a socket's path has at most 107 bytes
            workers=workers,
            ray_port=free_port(),
            dashboard_port=dashboard_port,
            mlflow_port=mlflow_port if own_mlflow else None,
            mlflow_uri=f"http://{LOOPBACK}:{mlflow_port}" if own_mlflow else shown(places.mlflow_uri),
        )
        # Before the first process: a kill in the middle of this leaves nothing that `down` would not find.
        _write_private(folder / "cluster.json", json.dumps(asdict(cluster), indent=1))
        _write_private(folder / "token", secrets.token_hex(32))
        _write_private(folder / "env.sh", _settings(folder, places, cluster))
        try:
            _start(folder, places, cluster, store, cpus, gpus, console)
        except BaseException:
            _end(cluster)
            _clear(folder, cluster)
            raise
    _tell(folder, cluster, console)


def down(places: Places) -> int:
    """End everything that :func:`up` started, and what jobs left behind in it; returns how many processes."""
    folder = cluster_folder(places)
    cluster = _read(folder)
    if cluster is None:
        return 0
    with _only_one(folder):
        ended = _end(cluster)
        _clear(folder, cluster)
    return ended


def status(places: Places, console: Console) -> None:
    """Say where the cluster is. Raises :class:`UserError` where it is not running, or not whole."""
    folder = cluster_folder(places)
    cluster = _read(folder)
    if cluster is None:
        raise UserError(f"No cluster is running in {folder}. Start one: hgrnx cluster up")
    nodes = sum(process.info["name"] == "raylet" for process in processes(cluster.id, cluster.temporary))
    problems = []
    if nodes != cluster.workers + 1:
        problems.append(f"{nodes} of {cluster.workers + 1} nodes are alive")
    if port_is_free(cluster.dashboard_port):
        problems.append("the dashboard, which takes the jobs, is gone")
    if cluster.mlflow_port is not None and check_store(cluster.mlflow_uri):
        problems.append("the MLflow server does not answer")
    if problems:
        raise UserError(
            f"The cluster in {folder} is not whole: {'; '.join(problems)}. "
            "Start it anew (runs go on from their checkpoints): hgrnx cluster down, hgrnx cluster up"
        )
    _tell(folder, cluster, console)


def processes(tag: str, folder: str) -> list[psutil.Process]:
    """All living processes of a cluster, but this one and those it comes from.

    They have ``tag`` in their environment, or files in ``folder`` open, Ray's temporary one: a process that gives
    itself a title (ray::...) writes it over its environment, over some variables or all of them.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    variable = f"\0{TAG}={tag}\0".encode()
    found = []
    for process in psutil.process_iter(["pid", "name"]):
        with suppress(psutil.Error, OSError):
            if process.pid in mine or process.status() == psutil.STATUS_ZOMBIE:
                continue
            # Not psutil's `environ()`, which reads no further than the title.
            tagged = variable in Path(f"/proc/{process.pid}/environ").read_bytes()
            if tagged or any(link.startswith(f"{folder}/") for link in _open_files(process.pid)):
                found.append(process)
    return found


def _open_files(pid: int) -> Iterator[str]:
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):  # closed meanwhile
            yield os.readlink(entry.path)


def _start(
    folder: Path, places: Places, cluster: LocalCluster, store: str, cpus: int, gpus: int, console: Console
) -> None:
    environment = _environment(folder, places, cluster)
    if cluster.mlflow_port is not None:
        console.print(f"MLflow server on {shown(store)}", highlight=False)
        _start_mlflow(folder, cluster, store, environment)
    head = ["--head", f"--port={cluster.ray_port}", "--num-cpus=0", "--num-gpus=0"]
    head += ["--include-dashboard=true", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={cluster.dashboard_port}"]
    head += [f"--ray-client-server-port={free_port()}", f"--temp-dir={cluster.temporary}"]
    console.print("head", highlight=False)
    _ray_start(cluster, head, environment)
    for number in range(cluster.workers):
        console.print(f"worker {number + 1} of {cluster.workers}", highlight=False)
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(number * gpus, (number + 1) * gpus)))}
        arguments = [f"--address={LOOPBACK}:{cluster.ray_port}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        _ray_start(cluster, arguments, {**environment, **visible})
    _wait_until("Ray's dashboard", lambda: not port_is_free(cluster.dashboard_port), None)
    if cluster.mlflow_port is not None:
        _wait_until("MLflow's server", lambda: check_store(cluster.mlflow_uri) is None, folder / "mlflow.log")


def _ray_start(cluster: LocalCluster, arguments: list[str], environment: Mapping[str, str]) -> None:
    command = [
        sys.executable, "-c", _RAY_ON_LOOPBACK, "start", *arguments, f"--node-ip-address={LOOPBACK}",
        f"--dashboard-agent-listen-port={free_port()}",
        "--min-worker-port=0", "--max-worker-port=0",  # nodes on one machine must not hand out the same ports
        f"--object-store-memory={_OBJECT_STORE_BYTES}", "--disable-usage-stats",
    ]  # fmt: skip
    before = {process.pid for process in processes(cluster.id, cluster.temporary)}
    for _ in range(3):  # Ray itself gives a node no more than 30 seconds, which a busy machine exceeds
        _end(cluster, keep=before)
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            cwd=Path.home(),
            check=False,
        )
        if done.returncode == 0:
            return
        if "timed out during startup" not in done.stdout + done.stderr:
            break
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    raise UserError("Ray did not start:\n" + "\n".join(f"  {line}" for line in lines[-6:]))


def _start_mlflow(folder: Path, cluster: LocalCluster, store: str, environment: Mapping[str, str]) -> None:
    assert cluster.mlflow_port is not None
    command, variables = server_command(store, cluster.mlflow_port, LOOPBACK, None)
    if not os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") and "--artifacts-destination" not in command:
        command += ["--artifacts-destination", (folder.parent / "mlflow-artifacts").as_uri()]
    with (folder / "mlflow.log").open("wb") as log:
        subprocess.Popen(
            command, env={**variables, TAG: cluster.id}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            cwd=folder, start_new_session=True,
        )  # fmt: skip


def _environment(folder: Path, places: Places, cluster: LocalCluster) -> dict[str, str]:
    """What all nodes have, and with them the jobs: a job does not see the variables of who submitted it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_A", "MLFLOW_BACKEND"))}
    uri = cluster.mlflow_uri if cluster.mlflow_port is not None else places.mlflow_uri
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"  # jobs type `python`
    own = {"PATH": path, "RAY_USAGE_STATS_ENABLED": "0", **_entry(folder), TAG: cluster.id}
    return {**kept, **places.environment(), "MLFLOW_TRACKING_URI": uri, **own}


def _entry(folder: Path) -> dict[str, str]:
    # The last one makes Ray take the loopback address for its own, as it does by default on macOS.
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def _settings(folder: Path, places: Places, cluster: LocalCluster) -> str:
    """Lines for a shell that is to talk to the cluster: `ray job submit`, or `hgrnx` itself."""
    values = {
        **_entry(folder),
        "RAY_ADDRESS": f"{LOOPBACK}:{cluster.ray_port}",
        "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{cluster.dashboard_port}",
        **places.environment(),
        "MLFLOW_TRACKING_URI": cluster.mlflow_uri,
    }
    return "".join(f"export {key}={shlex.quote(value)}\n" for key, value in values.items())


def _tell(folder: Path, cluster: LocalCluster, console: Console) -> None:
    console.print(
        f"\n1 head, {cluster.workers} workers\n"
        f"Ray's page   http://{LOOPBACK}:{cluster.dashboard_port}  (token: {folder / 'token'})\n"
        f"MLflow       {cluster.mlflow_uri}\n\n"
        "In every shell that talks to it:\n"
        f"  . {shlex.quote(str(folder / 'env.sh'))}\n"
        "Then, for example:\n"
        "  ray job submit --working-dir . -- python jobs/distill.py\n"
        "  hgrnx doctor\n"
        "At the end:\n"
        "  hgrnx cluster down",
        highlight=False,
        soft_wrap=True,
    )


def _end(cluster: LocalCluster, keep: Container[int] = ()) -> int:
    ended = set()
    for _ in range(5):  # a process that is ended may have made another in the meantime
        living = [process for process in processes(cluster.id, cluster.temporary) if process.pid not in keep]
        if not living:
            break
        ended |= {process.pid for process in living}
        for process in living:
            with suppress(psutil.Error):
                process.terminate()
        stubborn = psutil.wait_procs(living, timeout=10)[1]
        for process in stubborn:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(stubborn, timeout=10)  # one that is dying has no environment any more, and is not found again
    return len(ended)


def _clear(folder: Path, cluster: LocalCluster | None) -> None:
    if cluster is not None:
        shutil.rmtree(cluster.temporary, ignore_errors=True)
    for name in ("token", "env.sh", "cluster.json"):
        (folder / name).unlink(missing_ok=True)


def _read(folder: Path) -> LocalCluster | None:
    try:
        values: dict[str, Any] = json.loads((folder / "cluster.json").read_text(encoding="utf-8"))
        return LocalCluster(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise UserError(f"{folder / 'cluster.json'} is damaged. Remove it, and end the processes of its Ray.") from None


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write in {folder}: {error.strerror}. Choose another place with --home.") from None
    with locked(folder / "lock"):
        yield


def _wait_until(what: str, answers: Any, log: Path | None) -> None:
    end = time.monotonic() + _START_SECONDS
    while not answers():
        if time.monotonic() > end:
            hint = f"; its messages: {log}" if log else ""
            raise UserError(f"{what} did not answer in {_START_SECONDS:g} seconds{hint}")
        time.sleep(0.3)
