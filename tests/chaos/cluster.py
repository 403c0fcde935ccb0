"""A real Ray cluster of several raylets on this machine, a real MLflow server, and ways to do them harm.

Everything that is started inherits a variable with a value of its own, by which it is found again; nothing else
on the machine is ever signalled.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from hgrnx.launch.cluster import free_port
from hgrnx.launch.local_cluster import TAG, processes


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)


class World:
    """Cluster, MLflow server and jobs of one test; all ends with :meth:`close`."""

    def __init__(self, folder: Path, nodes: int = 3, server: bool = False) -> None:
        self.folder, self.nodes, self.mark = folder, nodes, secrets.token_hex(8)
        self.temporary = tempfile.mkdtemp(prefix="hgrnx-", dir="/tmp")
        """Of Ray; short, because a socket's path has at most 107 bytes."""
        self.environment = {
            **os.environ,
            "HGRNX_DATA": str(folder / "data"),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": self.temporary,
            # Minutes otherwise, in which a driver waits for a head that does not come back.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_initial_delay_ms": "2000",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
            TAG: self.mark,  # the last one: titles of processes are written over the first
        }
        self.port = free_port()
        self.server: subprocess.Popen[bytes] | None = None
        self.holder: subprocess.Popen[str] | None = None
        try:
            self.start_cluster()
            if server:
                self.start_server()
        except BaseException:
            self.close()
            raise

    def start_cluster(self) -> None:
        """Head without CPUs, and nodes of one CPU, in a process of their own that adds further nodes when told."""
        script = Path(__file__).with_name("hold_cluster.py")
        self.holder = subprocess.Popen(
            [sys.executable, str(script), str(self.nodes)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "cluster.log").open("a"),
            text=True,
        )
        assert self.holder.stdout is not None
        address = self.holder.stdout.readline().strip()
        assert address, (self.folder / "cluster.log").read_text()[-3000:]
        self.environment["RAY_ADDRESS"] = address

    def add_node(self) -> None:
        assert self.holder is not None and self.holder.stdin is not None and self.holder.stdout is not None
        self.holder.stdin.write("add\n")
        self.holder.stdin.flush()
        assert self.holder.stdout.readline().strip() == "added"

    def start_server(self) -> None:
        uri = f"sqlite:///{self.folder / 'server.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--default-artifact-root", (self.folder / "artifacts").as_uri()]
        environment = {**self.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = (self.folder / "server.log").open("ab")
        self.server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{self.port}"
        wait_until(self.server_answers, 300, "the MLflow server")

    def server_answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).close()
            return True
        except OSError:
            return False

    def kill_server(self) -> None:
        assert self.server is not None
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def job(self, *arguments: str, home: Path) -> subprocess.Popen[bytes]:
        """``hgrnx`` with ``arguments``, joined to the cluster; the text is prepared once for all homes."""
        log = (self.folder / "jobs.log").open("ab")
        command = [sys.executable, "-m", "hgrnx.cli", *arguments]
        environment = {"HGRNX_HOME": str(home), **self.environment}  # the mark stays last
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def log(self) -> str:
        return (self.folder / "jobs.log").read_text(errors="replace")

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Everything that lives and bears the mark, with ``part`` in its command line; not this process."""
        found = []
        for process in processes(self.mark, self.temporary):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """Ray Train's workers, in the order of their starts."""
        found = []
        for process in self.processes("RayTrainWorker"):
            try:
                found.append((process.create_time(), process))
            except psutil.NoSuchProcess:
                continue
        return [process for _, process in sorted(found, key=lambda pair: pair[0])]

    def raylets(self, head: bool) -> list[psutil.Process]:
        found = [process for process in self.processes("raylet/raylet") if process.name() == "raylet"]
        return [process for process in found if ("--head" in process.cmdline()) == head]

    def kill_node(self, generator: random.Random) -> None:
        generator.choice(sorted(self.raylets(head=False), key=lambda process: process.pid)).kill()

    def kill_head(self) -> None:
        """The head's processes die at once; what is left of the cluster goes with it, and another is started."""
        for process in [*self.processes("gcs_server"), *self.raylets(head=True)]:
            process.kill()

    def replace_cluster(self) -> None:
        self.close_cluster()
        self.start_cluster()

    def close_cluster(self) -> None:
        assert self.holder is not None
        self.holder.kill()
        self.holder.wait()
        self.holder = None
        keep = {self.server.pid} if self.server is not None else set()
        for process in self.processes():
            family = {process.pid, *(parent.pid for parent in _parents(process))}
            if not family & keep:
                _kill(process)

    def close(self) -> None:
        if self.holder is not None:
            self.close_cluster()
        for process in self.processes():
            _kill(process)
        shutil.rmtree(self.temporary, ignore_errors=True)


def _parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
