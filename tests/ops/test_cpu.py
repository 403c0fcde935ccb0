"""What the process is told about the processor and its memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hgrnx.ops.cpu as cpu


@pytest.mark.parametrize(
    ("flags", "outcome", "taken"),
    [
        ("fpu amx_bf16 amx_tile", "import os, signal; os.kill(os.getpid(), signal.SIGILL)", True),
        ("fpu amx_bf16 amx_tile", "pass", False),
        ("fpu amx_bf16 amx_tile", "raise ImportError", False),  # broken, but not by AMX
        ("fpu avx2", "import os, signal; os.kill(os.getpid(), signal.SIGILL)", False),
    ],
)
def test_when_amx_is_taken_from_onednn(
    flags: str, outcome: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    announces_amx = cpu._announces_amx
    monkeypatch.setattr(cpu, "_announces_amx", lambda: announces_amx(tmp_path / "cpuinfo"))
    monkeypatch.setattr(cpu, "_BF16_PRODUCT", outcome)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")  # so that the variable is put back even where it was not set
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert cpu.guard_bf16_products() is taken
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") == ("AVX512_CORE_FP16" if taken else None)


def test_a_system_without_cpuinfo(tmp_path: Path) -> None:
    assert cpu._announces_amx(tmp_path / "cpuinfo") is False


def test_the_users_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_announces_amx", lambda: True)
    monkeypatch.setattr(cpu, "_bf16_products_are_fatal", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert cpu.guard_bf16_products() is False
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_a_guarded_process_survives_bf16_products() -> None:
    code = (
        "import torch; from hgrnx.ops.cpu import guard_bf16_products; guard_bf16_products();"
        "x = torch.ones(64, 64); x @ x; print((x.bfloat16() @ x.bfloat16()).sum().item())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and float(done.stdout) == 64**3


def test_denormals_are_flushed_and_come_back_as_they_were() -> None:
    def product() -> float:
        return (torch.tensor(1e-39) * 1.0).item()

    assert product() != 0
    with cpu.flushed_denormals():
        assert product() == 0
        with cpu.flushed_denormals():
            pass
        assert product() == 0
    assert product() != 0


def test_freed_memory_is_kept() -> None:
    """A large tensor after a freed one of its size takes no new pages from the system."""
    code = (
        "import resource, torch; from hgrnx.ops.cpu import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(4): torch.ones(2**24)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "without = faults(); kept = keep_freed_memory()\n"
        "for _ in range(6): with_it = faults()\n"  # a small block in the wrong place may cost a few first rounds
        "print(int(kept), without, with_it)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, without, with_it = (int(x) for x in done.stdout.split())
    if not kept:
        pytest.skip("not glibc, or an old one")
    assert with_it < without / 4
