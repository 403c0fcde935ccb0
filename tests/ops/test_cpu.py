"""What the process is told about the processor and its memory."""

import os
import subprocess
import sys

import pytest
import torch

import hgrnx.ops.cpu as cpu

AMX = 1 << 24


@pytest.mark.parametrize(
    ("highest", "features", "palettes", "hidden"),
    [
        (0x20, AMX, 1, False),  # whole
        (0x20, AMX, 0, True),  # tile sizes zeroed
        (0x1C, AMX, 0, True),  # the leaf cut off
        (0x1C, AMX, 1, True),  # a processor answers for a leaf it does not have with its last one
        (0x20, 0, 0, False),  # no AMX
    ],
)
def test_what_counts_as_hidden(
    highest: int, features: int, palettes: int, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = {0: (highest, 0), 7: (0, features), 0x1D: (palettes, 0)}
    monkeypatch.setattr(cpu, "_cpuid", lambda leaf: leaves[leaf])
    monkeypatch.setattr(cpu.platform, "system", lambda: "Linux")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    assert cpu.amx_is_half_hidden() is hidden


def test_a_system_without_executable_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(leaf: int) -> tuple[int, int]:
        raise PermissionError

    monkeypatch.setattr(cpu, "_cpuid", forbidden)
    assert cpu.amx_is_half_hidden() is False


def test_the_users_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "amx_is_half_hidden", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert cpu.guard_bf16_products() is False
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert cpu.guard_bf16_products() is True
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_FP16"


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
        "without = faults(); kept = keep_freed_memory(); faults(); print(int(kept), without, faults())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, without, with_it = (int(x) for x in done.stdout.split())
    if not kept:
        pytest.skip("not glibc, or an old one")
    assert with_it < without / 4
