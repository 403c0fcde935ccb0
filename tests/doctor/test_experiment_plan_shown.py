"""What `hgrnx reproduce --dry-run` says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hgrnx.config.experiments import ExperimentPlan, plan_experiment
from hgrnx.doctor import experiment
from hgrnx.doctor.experiment import print_plan
from hgrnx.paths import resolve_places


def printed(plan: ExperimentPlan, home: Path) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    print_plan(plan, resolve_places(home), console)
    return " ".join(console.export_text().split())


def test_time_is_tried_here_and_at_once_by_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = experiment.describe_environment()
    monkeypatch.setattr(experiment, "describe_environment", lambda: {**facts, "cpu_cores": 5})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    plan = plan_experiment("distill", "demo", overrides=["launch.num_workers=2"], arms=["teacher", "twin"])
    text = printed(plan, tmp_path)
    assert "2 runs, " in text and "room for 2 at a time" in text and "tried here just now" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="the time would be tried on this GPU")
def test_without_a_gpu_time_is_computed_from_flops(tmp_path: Path) -> None:
    text = printed(plan_experiment("distill", "gpu", seeds=[0], arms=["teacher", "twin"]), tmp_path)
    assert "Time computed for one H100" in text and "H100 hours" in text and "at a time" not in text
    assert not any(tmp_path.iterdir())
