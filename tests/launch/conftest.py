"""A recipe that trains in seconds, and one local Ray for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hgrnx.config import AnyRecipe, load_recipe

TINY = """
name: tiny
data: {track: demo, words: 6000, vocab_size: 400}
teacher: &model {hidden_size: 32, num_hidden_layers: 2, expand_ratio: 16}
student: *model
distill: {weight: 0.5, temperature: 2.0}
training:
  duration: 24 steps
  batch_size: 8
  seq_len: 32
  precision: fp32
  checkpoint_every: 4 steps
  log_every: 1
  learning_rate: 5e-3
evaluation: {every: 12 steps, pairs_per_file: 4, dev_documents: 10}
launch: {num_workers: 2, engine: deepspeed, zero_stage: 2}
"""


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> AnyRecipe:
    return load_recipe(str(tiny_path))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
