"""The README's way: a cluster started with `ray start`, a job submitted with `ray job submit`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from eval_data import write_eval_data

from hgrnx.config import HGRN2Config
from hgrnx.data.tokenizer import save_tokenizer, train_tokenizer
from hgrnx.launch.cluster import free_port
from hgrnx.models import build_model
from hgrnx.models.folders import save_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


class Cluster:
    """One head on free ports, with token authentication, and what a shell needs to talk to it."""

    def __init__(self, folder: Path) -> None:
        self.dashboard = free_port()
        # A short path, because sockets lie in it; one of its own, because Ray leaves its address there.
        self.temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        token = folder / "token"
        token.write_text("0123456789abcdef" * 4)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HGRNX", "MLFLOW"))}
        self.environment = {
            **kept,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        self.head = subprocess.Popen(
            [
                str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}", "--disable-usage-stats",
                f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
                f"--temp-dir={self.temporary}",
            ],
            env=self.environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.dashboard)) == 0

    def submit(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), "job", "submit", f"--address=http://127.0.0.1:{self.dashboard}", *arguments],
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def close(self) -> None:
        self.head.terminate()  # `ray start --block` ends all processes of its node
        self.head.wait(timeout=60)
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        deadline = time.monotonic() + 90
        while not started.answers():
            assert time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.5)
        yield started
    finally:
        started.close()


def test_with_and_without_working_dir(cluster: Cluster, tiny_path: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("hgrnx", "jobs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(tiny_path, checkout / "tiny.yaml")
    home = str(tmp_path / "home")
    small = ["training.duration=4 steps", "twin=false", "launch.num_workers=1", "launch.engine=torch"]
    options = [*small, "--home", home]

    done = cluster.submit("--working-dir", ".", "--", "python", "jobs/distill.py", "tiny.yaml", *options, cwd=checkout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for part in (f"{home}/runs", "student", "bits per byte"):
        assert part in done.stdout

    script = str(ROOT / "jobs" / "distill.py")
    again = cluster.submit("--", "python", script, str(tiny_path), *options, cwd=tmp_path)
    assert again.returncode == 0, again.stdout[-3000:]
    assert again.stdout.count("finished before") == 2


def test_a_place_that_would_be_deleted_is_refused(cluster: Cluster, tiny_path: Path, tmp_path: Path) -> None:
    done = cluster.submit(
        "--", "python", str(ROOT / "jobs" / "distill.py"), str(tiny_path), "--home", "relative", cwd=tmp_path
    )
    assert done.returncode != 0 and "relative" in done.stdout and "Traceback" not in done.stdout


@pytest.mark.long
def test_scoring_is_shared_out_over_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    data = write_eval_data(tmp_path / "data")
    text = "the dog sees a cat. dogs run and the big cats see.\n" * 50
    save_tokenizer(train_tokenizer([text], 300), tmp_path / "tokenizer")
    model = build_model(HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16), 300, seed=0)
    save_folder(model, tmp_path / "model", tmp_path / "tokenizer")
    home = tmp_path / "home"
    options = ["--tasks", "supplement,bear,cola", "--data", str(data), "--glue", "epochs=1", "--home", str(home)]
    script = str(ROOT / "jobs" / "evaluate.py")
    done = cluster.submit("--", "python", script, str(tmp_path / "model"), *options, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    for part in ("BLiMP Supplement", "BEAR", "cola (mcc)", "texts asked"):
        assert part in done.stdout
    again = cluster.submit("--", "python", script, str(tmp_path / "model"), *options, "--workers", "9", cwd=ROOT)
    assert again.returncode != 0 and "the Ray cluster has 2 CPUs" in again.stdout and "Traceback" not in again.stdout
