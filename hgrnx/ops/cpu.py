"""What computing on a CPU needs of the process: a guard for half-hidden AMX, no denormals, memory that stays."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""Environment in which glibc gives threads no heaps of their own. Those are small, and return what is freed."""
_BF16_PRODUCT = "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); x @ x"


def guard_bf16_products() -> bool:
    """Keep oneDNN from AMX where a hypervisor announces it but hides its tile sizes (CPUID leaf 0x1D).

    oneDNN would load an empty tile configuration there, and the first bfloat16 product would end the process
    with "Illegal instruction". Sets ``ONEDNN_MAX_CPU_ISA`` unless the user has; child processes inherit it.
    oneDNN reads it once: call this before the first matrix product of the process, of any type. Where AMX is
    announced the call takes as long as importing torch does.

    Returns:
        Whether AMX was taken from oneDNN.
    """
    if "ONEDNN_MAX_CPU_ISA" in os.environ or not (_announces_amx() and _bf16_products_are_fatal()):
        return False
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_FP16"
    return True


def _announces_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        return "amx_tile" in cpuinfo.read_text().split()
    except OSError:  # not Linux
        return False


def _bf16_products_are_fatal() -> bool:
    """Tries one in a throw-away process."""
    done = subprocess.run([sys.executable, "-c", _BF16_PRODUCT], capture_output=True)
    return done.returncode == -signal.SIGILL


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormals count as 0 in this thread: products of many small gates are full of them, and 3 times slower."""
    # There is no getter: with the flag set, a product with a denormal is 0.
    already = (torch.tensor(1e-39) * 1.0).item() == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next large tensor instead of returning it to the system.

    A training step frees and takes the same large tensors again, and a page that comes fresh from the system
    costs a fault: steps of small models were 15 to 30% slower. Lasts for the process; call it before training.
    It does not reach the heaps that threads have of their own: a process that trains in a thread has to be started
    with :data:`ONE_HEAP` in its environment.

    Returns:
        Whether this could be set (glibc only).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Older versions refuse a threshold above 32 MiB.
    larger = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)
    return bool(mallopt(_M_TRIM_THRESHOLD, 2**30) and larger)
