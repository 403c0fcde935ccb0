"""The tests of tests/ops/kernels on a CPU: see the conftest.py there."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_kernels_in_tritons_interpreter() -> None:
    folder = Path(__file__).parent / "kernels"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", str(folder)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
