"""`hgrnx cluster`: everything on loopback, nobody without the token, no secret written down, nothing left behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from hgrnx.errors import UserError
from hgrnx.launch import local_cluster
from hgrnx.launch.local_cluster import LocalCluster, processes
from hgrnx.paths import resolve_places

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
HF_TOKEN, PASSWORD = "hf_" + "Z9" * 17, "correct-horse-battery"


@dataclass
class Shell:
    """A user's shell: its home folder, and its variables."""

    home: Path
    environment: dict[str, str]

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**self.environment, **more},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def hgrnx(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "hgrnx.cli", *arguments, **more)

    def cluster(self) -> LocalCluster:
        return LocalCluster(**json.loads((self.home / "cluster" / "cluster.json").read_text()))

    def sourced(self) -> dict[str, str]:
        lines = (self.home / "cluster" / "env.sh").read_text().splitlines()
        pairs = [shlex.split(line)[1].partition("=") for line in lines]
        return {key: value for key, _, value in pairs}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HGRNX", "MLFLOW"))}
    path = f"{BIN}{os.pathsep}{kept['PATH']}"
    environment = {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "HF_TOKEN": HF_TOKEN}
    shell = Shell(tmp_path_factory.mktemp("home"), environment)
    environment["HGRNX_HOME"] = str(shell.home)
    try:
        yield shell
    finally:
        shell.hgrnx("cluster", "down")


def ports() -> tuple[str, str]:
    return f"--port={local_cluster.free_port()}", f"--mlflow-port={local_cluster.free_port()}"


def alive(process: psutil.Process) -> bool:
    """Not where another process has its number by now, nor where only its parent has to take note of its end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def agent_port(running: list[psutil.Process]) -> int:
    """Of one node's dashboard agent, as its raylet was told."""
    told = [argument for process in running for argument in process.cmdline() if "listen-port=" in argument]
    return int(told[0].partition("--listen-port=")[2].split()[0])


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_from_up_to_down(shell: Shell, tiny_path: Path) -> None:
    done = shell.hgrnx("cluster", "up", "--workers", "2", *ports())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ray job submit --working-dir . -- python jobs/distill.py" in done.stdout
    cluster, sourced = shell.cluster(), shell.sourced()
    running = processes(cluster.id, cluster.temporary)
    assert sum(process.name() == "raylet" for process in running) == 3

    everyone = {one for process in running for one in (process, *process.children(recursive=True))}
    assert any(process.name().startswith("ray::") for process in running)  # their titles hide half their variables

    listening = [c.laddr.ip for p in running for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) > 6 and {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert (shell.home / "cluster" / "token").stat().st_mode & 0o777 == 0o600
    token = (shell.home / "cluster" / "token").read_text()
    assert not any(token in " ".join(process.cmdline()) for process in running)

    # What the probes of cluster/kuberay ask, without a token.
    for port, path in [(cluster.dashboard_port, "api/gcs_healthz"), (agent_port(running), "api/local_raylet_healthz")]:
        assert b"success" in urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30).read()

    refused = shell.hgrnx("cluster", "up")
    assert refused.returncode == 2 and "hgrnx cluster down" in refused.stderr
    assert shell.hgrnx("cluster", "status").returncode == 0

    submit = (str(BIN / "ray"), "job", "submit", "--", "python", "-m", "hgrnx.cli", "doctor")
    address = {"RAY_API_SERVER_ADDRESS": sourced["RAY_API_SERVER_ADDRESS"]}
    for stranger in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}):
        denied = shell.run(*submit, **address, **stranger)
        assert denied.returncode != 0 and "hgrnx.cli" not in denied.stdout
    doctor = shell.run(*submit, **sourced)
    assert doctor.returncode == 0, doctor.stdout[-3000:] + doctor.stderr[-1000:]
    assert "(head)" in doctor.stdout and doctor.stdout.count("127.0.0.1 ") >= 3 and "NOT SHARED" not in doctor.stdout

    # A job of this shell on the cluster, with secrets in its environment.
    uri = sourced["MLFLOW_TRACKING_URI"].replace("http://", f"http://me:{PASSWORD}@")
    variables = {**sourced, "MLFLOW_TRACKING_URI": uri}
    options = ("training.duration=4 steps", "twin=false")
    trained = shell.hgrnx("distill", str(tiny_path), *options, **variables)
    assert trained.returncode == 0, trained.stdout[-3000:] + trained.stderr[-1000:]
    assert list(shell.home.glob("runs/*/mlflow.json"))
    written = [path for folder in (shell.home, Path(cluster.temporary)) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 50
    for secret in (HF_TOKEN, PASSWORD, token):
        assert secret not in trained.stdout + trained.stderr + doctor.stdout
        holding = {path.name for path in written if secret.encode() in path.read_bytes()}
        assert holding == ({"token"} if secret is token else set())

    next(process for process in processes(cluster.id, cluster.temporary) if process.name() == "raylet").kill()
    end = time.monotonic() + 30
    while "2 of 3 nodes" not in (told := shell.hgrnx("cluster", "status")).stderr:
        assert time.monotonic() < end, told
    assert told.returncode == 2

    done = shell.hgrnx("cluster", "down")
    assert done.returncode == 0 and "Ended" in done.stdout
    assert not processes(cluster.id, cluster.temporary) and not Path(cluster.temporary).exists()
    assert not [process for process in everyone if alive(process)]
    assert not (shell.home / "cluster" / "token").exists()
    assert "No cluster" in shell.hgrnx("cluster", "status").stderr


@pytest.mark.ray
@pytest.mark.slow
def test_killed_while_it_starts_nothing_is_left_after_down(shell: Shell) -> None:
    command = [sys.executable, "-m", "hgrnx.cli", "cluster", "up", *ports()]
    with subprocess.Popen(command, env=shell.environment, cwd=ROOT, stdout=subprocess.DEVNULL) as starting:
        end = time.monotonic() + 120
        while not (shell.home / "cluster" / "cluster.json").exists() or not any(
            process.name() == "gcs_server" for process in processes(shell.cluster().id, shell.cluster().temporary)
        ):
            assert time.monotonic() < end and starting.poll() is None
            time.sleep(0.1)
        starting.send_signal(signal.SIGKILL)
    cluster = shell.cluster()
    assert shell.hgrnx("cluster", "down").returncode == 0
    assert not processes(cluster.id, cluster.temporary) and not Path(cluster.temporary).exists()


def test_a_port_that_is_taken_is_named_and_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hgrnx.console import make_console

    monkeypatch.setattr(local_cluster, "port_is_free", lambda port: port != 5000)
    options = {"workers": 1, "cpus": 1, "gpus": 0, "dashboard_port": 8265, "mlflow_port": 5000}
    with pytest.raises(UserError, match="Port 5000 is in use .* --mlflow-port"):
        local_cluster.up(resolve_places(tmp_path), **options, console=make_console())
    assert not (tmp_path / "cluster" / "cluster.json").exists()


@pytest.mark.parametrize("hidden", [False, True])
def test_what_belongs_to_a_cluster_is_found_and_ended(tmp_path: Path, hidden: bool) -> None:
    """By the variable, or, where a title hides that, by its open files."""
    tag, folder = "only-this-test", str(tmp_path / "one")
    Path(folder).mkdir()
    cluster = local_cluster.LocalCluster(tag, folder, 1, 1, 2, 3, "")
    environment = {**os.environ, **({} if hidden else {local_cluster.TAG: tag})}
    script = "import sys; f = open(sys.argv[1], 'w'); print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, f"{folder}/log" if hidden else os.devnull]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        assert [process.pid for process in processes(tag, folder)] == [child.pid]
        assert processes("only-this", str(tmp_path / "on")) == []
        assert local_cluster._end(cluster) == 1
        assert child.wait(timeout=10) is not None
        assert processes(tag, folder) == []
