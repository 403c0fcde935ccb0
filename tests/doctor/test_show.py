"""What `hgrnx doctor` says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hgrnx.console import make_console
from hgrnx.doctor.machine import product_speed
from hgrnx.doctor.show import print_machine
from hgrnx.ops import implementation_note
from hgrnx.paths import resolve_places


def test_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_machine(resolve_places(tmp_path / "home" / "not yet there"), make_console())
    printed = " ".join(capsys.readouterr().out.split())
    assert torch.__version__ in printed and "GFLOP/s" in printed and "ray" in printed
    assert "not yet there/runs" in printed and "GB free" in printed
    assert f"recurrence on cpu {implementation_note('cpu').split()[0]}" in printed


def test_speed_of_products_is_plausible() -> None:
    assert 1e8 < product_speed(torch.float32) < 1e14
