"""Settings for all tests; set before torch is imported."""

import os

import pytest

# Several processes with several spinning OpenMP threads each would fight for two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

from hgrnx.ops.cpu import guard_bf16_products

# Tests have places and a cluster of their own, whatever this shell's runs use.
for name in ("HGRNX_HOME", "HGRNX_RUNS", "HGRNX_DATA", "HGRNX_SIGNALS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
    os.environ.pop(name, None)
guard_bf16_products()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where torch sees none; those of Triton's kernels have a rule of their own."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords and "kernels" not in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
