"""Settings for all tests; set before torch is imported."""

import os

# Several processes with several spinning OpenMP threads each would fight for two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

from hgrnx.ops.cpu import guard_bf16_products

guard_bf16_products()
