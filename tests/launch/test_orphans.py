"""Nothing of Ray outlives its raylet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

THREADS = """
import threading
from pathlib import Path
import ray
from hgrnx.launch.cluster import connected
from hgrnx.paths import resolve_places

@ray.remote(num_cpus=0)
class Actor:
    def threads(self):
        return [thread.name for thread in threading.enumerate()]

with connected(resolve_places(Path.cwd())):
    print(ray.get(Actor.remote().threads.remote()))
"""


def test_a_worker_whose_raylet_is_lost_ends() -> None:
    worker = "from hgrnx.launch.orphans import end_with_parent; end_with_parent(); print('on', flush=True); input()"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    # Its standard output is closed when the last process that has it is gone.
    raylet = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert raylet.stdout is not None and raylet.stdout.readline() == b"on\n"
    raylet.kill()
    assert raylet.stdout.read() == b""
    raylet.wait()


@pytest.mark.ray
def test_every_process_of_a_job_looks_after_its_raylet(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=True
    )
    assert "'hgrnx-parent'" in done.stdout
