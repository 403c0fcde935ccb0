"""``hold_cluster.py NODES``: a head without CPUs and NODES of one CPU.

Prints the address; adds a node for every line it reads.
"""

from __future__ import annotations

import sys
from typing import Any

from ray.cluster_utils import Cluster

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": 80_000_000,
            "include_dashboard": False,
        },
    )
    for _ in range(int(sys.argv[1])):
        cluster.add_node(wait=False, **NODE)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        for attempt in range(5):
            try:
                cluster.add_node(wait=False, **NODE)
                break
            except Exception:  # a machine too busy for Ray's own time-outs
                if attempt == 4:
                    raise
        print("added", flush=True)


if __name__ == "__main__":
    main()
