"""Times several ways of doing one thing against each other in one process.

Machines are shared and noisy. So the cases take turns, all of them warm, and the medians of many rounds are
compared; a single time means little.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_PEAK_SIZE = 2048  # of the square matrices whose product gives the machine's peak


@dataclass(frozen=True)
class Case:
    """One way of doing the thing."""

    name: str
    step: Callable[[], object]
    """Does it once, from beginning to end."""
    tokens: int = 0
    """Tokens that a step goes through."""
    flops: float = 0.0
    """Floating-point operations that a step needs, however it does them."""
    dtype: torch.dtype = torch.float32
    """Type of its matrix products, for the share of the peak."""
    threads: int | None = None
    """Threads of torch during the step; those of the process when None."""
    processes: bool = False
    """Whether the step starts processes: their memory then counts, too."""


@dataclass(frozen=True)
class Measurement:
    """What came out for one case."""

    name: str
    seconds: float
    """Median of the rounds."""
    cpu_seconds: float
    """Median of the processor time of all threads: on a busy machine more to be trusted than ``seconds``."""
    spread: float
    """Half the distance between the quartiles, as a share of the median."""
    memory_mb: float | None
    """Memory that one step takes on top of what was there, at its highest; None where it cannot be told."""
    tokens_per_second: float | None
    flops_per_second: float | None
    share_of_peak: float | None
    """Of the speed of a large matrix product of the same type, measured in the same rounds."""
    rounds: list[float] = field(repr=False)

    def row(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(vars(self))


def measure(
    cases: Sequence[Case],
    *,
    rounds: int = 7,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measurement]:
    """Measure ``cases``, in their order.

    Each is warmed up, then its memory is measured, then all take turns for ``rounds`` rounds, each round beginning
    with another one. Exceptions of a step are the caller's.
    """
    device = torch.device(device)
    peaks = {dtype: _peak_case(dtype, device) for dtype in dict.fromkeys(case.dtype for case in cases if case.flops)}
    turns = [*cases, *peaks.values()]
    total, done = len(turns) * (warmup + 1 + rounds), 0
    memory: dict[str, float | None] = {}
    seconds: dict[str, list[tuple[float, float]]] = {case.name: [] for case in turns}
    for case in turns:
        with _threads(case.threads):
            for _ in range(warmup):
                case.step()
            memory[case.name] = (_tree_memory_mb if case.processes else added_memory_mb)(case.step, device)
        on_progress(done := done + warmup + 1, total)
    for turn in range(rounds):
        first = turn % len(turns)
        for case in turns[first:] + turns[:first]:
            seconds[case.name].append(_time(case, device))
            on_progress(done := done + 1, total)
    peak_speed = {
        dtype: case.flops / statistics.median(wall for wall, _ in seconds[case.name]) for dtype, case in peaks.items()
    }
    return [_summarise(case, seconds[case.name], memory[case.name], peak_speed.get(case.dtype)) for case in cases]


def added_memory_mb(step: Callable[[], object], device: torch.device) -> float | None:
    """Megabytes that ``step`` takes at its highest on top of what is in use: of the GPU, or of this process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        # The C library keeps what was freed; given back, it counts again when the step takes it.
        ctypes.CDLL(None).malloc_trim(0)
        before_kb = _status_kb(status, "VmRSS")
        reset.write_text("5")  # the highest resident size starts anew
    except (OSError, AttributeError):  # not Linux, or not glibc
        return None
    step()
    return max(0.0, (_status_kb(status, "VmHWM") - before_kb) / 1e3)


def _tree_memory_mb(step: Callable[[], object], device: torch.device) -> float | None:
    """As :func:`added_memory_mb`, of this process and all that descend from it; looked at 20 times a second."""
    if not Path("/proc/self/smaps_rollup").exists():  # not Linux
        return None
    gc.collect()
    before = peak = _tree_kb(os.getpid())
    ended = threading.Event()

    def look() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, _tree_kb(os.getpid()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        step()
    finally:
        ended.set()
        thread.join()
    return (peak - before) / 1e3


def _tree_kb(process: int) -> int:
    """Resident memory of a process and its descendants; what several share counts once in all."""
    folder = Path(f"/proc/{process}")
    try:
        total = _status_kb(folder / "smaps_rollup", "Pss")
        children = [child for task in folder.glob("task/*/children") for child in task.read_text().split()]
    except OSError:  # ended meanwhile
        return 0
    return total + sum(_tree_kb(int(child)) for child in children)


def _status_kb(status: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{key}:"))


def _peak_case(dtype: torch.dtype, device: torch.device) -> Case:
    left, right = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, device=device).to(dtype) for _ in range(2))
    return Case(f"product of {dtype}", lambda: left @ right, flops=2.0 * _PEAK_SIZE**3, dtype=dtype)


def _time(case: Case, device: torch.device) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    with _threads(case.threads):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        case.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start, _cpu_seconds() - cpu_start


def _cpu_seconds() -> float:
    """Of all threads, and of the processes that were started and have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@contextmanager
def _threads(count: int | None) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _summarise(case: Case, rounds: list[tuple[float, float]], memory: float | None, peak: float | None) -> Measurement:
    seconds = [wall for wall, _ in rounds]
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median, median, median)
    speed = case.flops / median if case.flops else None
    return Measurement(
        name=case.name,
        seconds=median,
        cpu_seconds=statistics.median(cpu for _, cpu in rounds),
        spread=(high - low) / 2 / median,
        memory_mb=memory,
        tokens_per_second=case.tokens / median if case.tokens else None,
        flops_per_second=speed,
        share_of_peak=speed / peak if speed and peak else None,
        rounds=seconds,
    )
