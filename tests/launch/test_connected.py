"""What a cluster of one's own knows of itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ASK = """
import time
from pathlib import Path
import ray
from hgrnx.launch.cluster import connected
from hgrnx.paths import resolve_places

@ray.remote(num_cpus=0)
class Actor:
    def name(self):
        return ray.get_runtime_context().get_actor_id()

    def state(self, name):
        from ray.util.state import get_actor
        return get_actor(name, timeout=10).state

with connected(resolve_places(Path.cwd()), dashboard=True):
    one, other = Actor.remote(), Actor.remote()
    name = ray.get(one.name.remote())
    began = time.monotonic()
    print(ray.get(other.state.remote(name)), time.monotonic() - began < 15)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_it_asks_itself_and_not_a_dead_cluster_who_lives(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="hgrnx-", dir="/tmp"))  # short: it is part of the paths of sockets
    try:
        (folder / "ray").mkdir()
        (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            env={**environment, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == ["ALIVE", "True"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
