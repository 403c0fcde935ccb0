"""The processes of the test of resumption on other shapes: ``shape_worker.py FOLDER``.

``FOLDER/jobs.json`` has ``data``, the folder of the dataset, and ``runs``: by name, ``training`` keys and the
``phases``, each on ``world`` processes with ``engine`` and ``stage`` until ``leave`` steps were taken in it (to the
end without). Every rank is a fork of this process, so that the imports are paid once.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from ranks import fork_ranks
from torch import distributed as dist

from hgrnx.config import Recipe, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.training import deepspeed_engine
from hgrnx.training.notice import Left
from hgrnx.training.run import run_training


def recipe_of(training: dict[str, Any], world: int, engine: str, stage: int) -> Recipe:
    made = recipe_from_dict(
        {
            "name": "shape",
            "data": {"track": "demo", "words": 3000, "vocab_size": 400},
            "model": {"hidden_size": 34, "num_hidden_layers": 2, "expand_ratio": 17},
            "training": {
                "duration": "24 steps",
                "batch_size": 6,
                "seq_len": 32,
                "precision": "fp32",
                "checkpoint_every": "10 steps",
                "log_every": 3,
                "learning_rate": 1e-3,
                **training,
            },
            "evaluation": {"every": "100%", "dev_documents": 4, "pairs_per_file": 2},
            "launch": {"num_workers": world, "engine": engine, "zero_stage": stage},
        }
    )
    assert isinstance(made, Recipe)
    return made


def run_rank(folder: Path, name: str, training: dict[str, Any], data: str, rank: int, meet: str, **phase: Any) -> None:
    world, leave = phase["world"], phase.get("leave")
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{meet}", rank=rank, world_size=world)
    steps = itertools.count(1)
    recipe = recipe_of(training, world, phase.get("engine", "deepspeed"), phase.get("stage", 0))
    # Only the last rank is asked.
    asked = lambda: next(steps) == leave and rank == world - 1
    try:
        run_training(recipe, PreparedDataset.open(Path(data)), folder / name, asked=asked)
        assert leave is None
    except Left:
        assert leave is not None


def main() -> None:
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed_engine.KEPT_WHOLE = 300
    for module in ("torch._dynamo", "deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.stage3"):
        importlib.import_module(module)
    folder = Path(sys.argv[1])
    jobs = json.loads((folder / "jobs.json").read_text())
    number = itertools.count()
    for name, run in jobs["runs"].items():
        for phase in run["phases"]:
            meet, training = f"meet-{next(number)}", run.get("training", {})
            fork_ranks(phase["world"], lambda rank: run_rank(folder, name, training, jobs["data"], rank, meet, **phase))  # noqa: B023


if __name__ == "__main__":
    main()
