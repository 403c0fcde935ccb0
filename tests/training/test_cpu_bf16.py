from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
import torch

from hgrnx.training.cpu_bf16 import make_cpu_bf16_safe


@pytest.mark.parametrize("code, expected", [(-4, "AVX512_CORE_FP16"), (0, "DEFAULT")])
def test_amx_is_left_alone_where_a_trial_dies_and_tried_only_once(
    code: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        trials.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "to be restored")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    make_cpu_bf16_safe()
    make_cpu_bf16_safe()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == expected
    assert len(trials) == 1


def test_a_cpu_without_amx_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(subprocess, "run", None)
    make_cpu_bf16_safe()
