"""The tests here run our Triton kernels: on a GPU (`-m gpu`), or on a CPU in Triton's interpreter.

The interpreter must be chosen before Triton is imported, for the whole process; so without a GPU the tests are
collected only under TRITON_INTERPRET=1, and tests/ops/test_triton_interpreter.py runs them in a process of their own.
"""

import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not INTERPRETED and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"
