"""What a cluster of one's own knows of itself, and what its workers are started with."""

from __future__ import annotations

import os
import platform
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


HEAPS = """
import ctypes
import tempfile
import threading
from pathlib import Path
import ray
from hgrnx.launch.cluster import connected
from hgrnx.paths import resolve_places

@ray.remote(num_cpus=0)
def heaps():
    import torch

    def work():
        for _ in range(100):
            torch.ones(2**16)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        return Path(file.name).read_text().count("<heap nr=")

with connected(resolve_places(Path.cwd())):
    print(ray.get(heaps.remote()))
"""


def printed(script: str, tmp_path: Path, **variables: str) -> list[str]:
    """Words that ``script`` prints, run with none of this process's settings of Ray."""
    folder = Path(tempfile.mkdtemp(prefix="hgrnx-", dir="/tmp"))  # short: it is part of the paths of sockets
    try:
        (folder / "ray").mkdir()
        (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**environment, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.split()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
def test_it_asks_itself_and_not_a_dead_cluster_who_lives(tmp_path: Path) -> None:
    assert printed(ASK, tmp_path) == ["ALIVE", "True"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
def test_threads_of_workers_have_no_heaps_of_their_own(tmp_path: Path) -> None:
    assert printed(HEAPS, tmp_path) == ["1"]
    (many,) = printed(HEAPS, tmp_path, MALLOC_ARENA_MAX="8")  # the user's choice stays
    assert int(many) > 1


def test_a_machine_too_busy_for_ray_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from hgrnx.errors import UserError
    from hgrnx.launch.cluster import connected
    from hgrnx.paths import resolve_places

    def too_slow(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")  # Ray's own words

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # or it would make a token in this process's environment
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(UserError, match="busy with other work"), connected(resolve_places(tmp_path)):
        pass
