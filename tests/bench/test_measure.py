"""Times, memory and shares of the peak are of what ran."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from hgrnx.bench.measure import Case, added_memory_mb, measure

CPU = torch.device("cpu")


def test_slower_steps_come_out_slower() -> None:
    fast, slow = measure(
        [
            Case("fast", lambda: time.sleep(0.002), tokens=10),
            Case("slow", lambda: time.sleep(0.02), tokens=10),
        ],
        rounds=3,
    )
    assert (fast.name, slow.name) == ("fast", "slow")
    assert slow.seconds >= 0.02 and 0.002 <= fast.seconds < slow.seconds
    assert slow.tokens_per_second == pytest.approx(10 / slow.seconds)
    assert fast.share_of_peak is None and len(fast.rounds) == 3


def test_cases_take_turns_and_each_begins_a_round() -> None:
    seen: list[str] = []
    cases = [Case(name, lambda name=name: seen.append(name)) for name in "abc"]
    measure(cases, rounds=3, warmup=1)
    assert "".join(seen) == "aabbcc" + "abc" + "bca" + "cab"


def test_share_of_the_peak() -> None:
    size = 1024
    x = torch.randn(size, size)
    (whole, half) = measure(
        [Case("whole", lambda: x @ x, flops=2.0 * size**3), Case("half", lambda: x @ x, flops=1.0 * size**3)],
        rounds=5,
    )
    assert whole.share_of_peak and half.share_of_peak and whole.flops_per_second and half.flops_per_second
    peak = whole.flops_per_second / whole.share_of_peak
    assert half.flops_per_second / half.share_of_peak == pytest.approx(peak) and peak > 1e8
    assert whole.flops_per_second == pytest.approx(2.0 * size**3 / whole.seconds)


def test_threads_are_those_asked_for_and_come_back() -> None:
    before, seen = torch.get_num_threads(), []
    measure([Case("two", lambda: seen.append(torch.get_num_threads()), threads=2)], rounds=1, warmup=1)
    assert set(seen) == {2} and torch.get_num_threads() == before


def test_memory_is_what_a_step_adds() -> None:
    held = torch.ones(4_000_000)  # 16 MB that were there before count for nothing
    if added_memory_mb(lambda: None, CPU) is None:
        pytest.skip("the system does not tell the highest resident size")
    little = added_memory_mb(lambda: held.sum(), CPU)
    much = added_memory_mb(lambda: (held + 1).sum() + torch.ones(16_000_000).sum(), CPU)
    assert little is not None and much is not None
    assert little < 10 and 60 < much < 120
    assert added_memory_mb(lambda: held.sum(), CPU) < 10  # type: ignore[operator]


def test_the_time_of_the_processor_is_that_of_threads_and_of_processes_that_have_ended() -> None:
    busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    alone, child = measure(
        [
            Case("alone", lambda: time.sleep(0.05)),
            Case("child", lambda: subprocess.run([sys.executable, "-c", busy], check=True)),
        ],
        rounds=1,
        warmup=0,
    )
    assert alone.cpu_seconds < 0.05 and 0.3 <= child.cpu_seconds < 5
