"""What Prometheus reads of a run, and that the Grafana dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest

from hgrnx.launch.metrics import DURABLE_STEP, NAMES, SCORE, STEP

ROOT = Path(__file__).resolve().parents[2]
KEPT = {f"ray_{name}" for name, _ in (*NAMES.values(), SCORE, STEP, DURABLE_STEP)}


def asked() -> set[str]:
    """The metrics in the dashboard's queries."""
    content = json.loads((ROOT / "cluster" / "grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in content["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in content["templating"]["list"]]
    return {name for query in queries for name in re.findall(r"\bray_\w+", query)}


def test_the_dashboard_asks_for_what_is_exported_and_for_all_of_it() -> None:
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    of_nodes = {f"ray_{name}" for name in METRICS_GAUGES}
    assert asked() - of_nodes == KEPT


@pytest.mark.ray
@pytest.mark.slow
def test_the_exporter_shows_a_run(local_ray: None) -> None:
    import ray

    from hgrnx.launch.metrics import RayMetrics

    @ray.remote(num_cpus=0)
    class Worker:
        def work(self) -> int:
            tracker = RayMetrics("some-run")
            tracker.log(3, {"words": 12, "dev/bits_per_byte": 1.5, **{key: 0.25 for key in NAMES if key != "words"}})
            tracker.durable(2)
            return tracker.close(final=True)

    worker = Worker.remote()
    assert ray.get(worker.work.remote()) == 0
    port = ray.nodes()[0]["MetricsExportPort"]
    found: dict[str, float] = {}
    end = time.monotonic() + 60
    while not found.keys() >= KEPT:
        assert time.monotonic() < end, f"not exported: {KEPT - found.keys()}"
        time.sleep(1)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        for name, labels, value in re.findall(r"^(ray_hgrnx_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE):
            assert 'run="some-run"' in labels
            assert ('key="dev/bits_per_byte"' in labels) == (name == "ray_hgrnx_score")
            found[name] = float(value)
    values = {"ray_hgrnx_step": 3, "ray_hgrnx_checkpoint_step": 2, "ray_hgrnx_words": 12, "ray_hgrnx_score": 1.5}
    assert found == {name: values.get(name, 0.25) for name in KEPT}
