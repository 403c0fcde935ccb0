"""`hgrnx eval --workers`: the scores of one and two workers, of killed workers and killed drivers, on a real Ray."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from eval_data import write_eval_data
from rich.console import Console

from hgrnx.config import GlueConfig, HGRN2Config
from hgrnx.data.tokenizer import save_tokenizer, train_tokenizer
from hgrnx.errors import UserError
from hgrnx.evaluation import shares
from hgrnx.launch import ray_eval
from hgrnx.launch.evaluate_tasks import evaluate_tasks
from hgrnx.launch.task_request import TaskRequest
from hgrnx.models import build_model
from hgrnx.models.folders import save_folder
from hgrnx.paths import Places, resolve_places
from hgrnx.runs import evaluation_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
QUICK = GlueConfig(epochs=2, batch_size=4, max_length=16)
TASKS = ("supplement", "ewok", "bear", "cola", "sst2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_data(tmp_path_factory.mktemp("eval"), items=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    text = "the dog sees a cat. dogs run and the big cats see.\n" * 50
    save_tokenizer(train_tokenizer([text], 300), place / "tokenizer")
    model = build_model(HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16), 300, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    save_folder(model, place / "model", place / "tokenizer")
    return place / "model"


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "SHARE_TEXTS", 16)
    monkeypatch.setattr(shares.cut, "__defaults__", (16,))


def score(folder: Path, home: Path, data: Path, *tasks: str, **options: Any) -> tuple[dict[str, Any], str]:
    console = Console(record=True, width=160, file=io.StringIO())
    request = TaskRequest(data, tasks or TASKS, glue=QUICK, seeds=(1, 2))
    content = evaluate_tasks(str(folder), resolve_places(home), request, console, **options)
    return content, console.export_text()


def predictions(folder: Path, home: Path) -> bytes:
    return (evaluation_folder(folder, resolve_places(home)) / "tasks-predictions.json.gz").read_bytes()


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::_Worker"):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.fixture(scope="module")
def alone(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """What this process gives."""
    home = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares.cut, "__defaults__", (16,))
        return score(folder, home, data)[0], predictions(folder, home)


@pytest.mark.parametrize("count", [1, 2])
def test_any_number_of_workers_gives_the_same_files(
    folder: Path, data: Path, alone: tuple[dict[str, Any], bytes], tmp_path: Path, count: int
) -> None:
    content, shown = score(folder, tmp_path, data, workers=count)
    assert content == alone[0]
    assert predictions(folder, tmp_path) == alone[1], "to the last bit"
    assert "cola, seed 2, epoch 2" in shown and "texts asked" in shown
    assert not workers(), "none is left behind"
