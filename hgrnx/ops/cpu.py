"""What computing on a CPU needs of the process: a guard for half-hidden AMX, no denormals, memory that stays."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
from collections.abc import Iterator

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_TILE_LEAF = 0x1D
_AMX_TILE_BIT = 1 << 24  # of EDX in leaf 7
# push rbx; mov eax, edi; mov r8, rsi; xor ecx, ecx; cpuid; mov [r8], eax; mov [r8+4], edx; pop rbx; ret
_CPUID = bytes.fromhex("53 89f8 4989f0 31c9 0fa2 418900 41895004 5b c3")


def guard_bf16_products() -> bool:
    """Keep oneDNN from AMX where a hypervisor announces it but hides its tile sizes (CPUID leaf 0x1D).

    oneDNN would load an empty tile configuration there, and the first bfloat16 product would end the process
    with "Illegal instruction". Sets ``ONEDNN_MAX_CPU_ISA`` unless the user has; child processes inherit it.
    oneDNN reads it once: call this before the first matrix product of the process, of any type.

    Returns:
        Whether AMX was taken from oneDNN.
    """
    if "ONEDNN_MAX_CPU_ISA" in os.environ or not amx_is_half_hidden():
        return False
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_FP16"
    return True


def amx_is_half_hidden() -> bool:
    """Whether this processor announces AMX but not its tile sizes. False where it cannot be found out."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    try:
        highest_leaf, _ = _cpuid(0)
        _, features = _cpuid(7)
        palettes = _cpuid(_TILE_LEAF)[0] if highest_leaf >= _TILE_LEAF else 0
    except OSError:  # a system that forbids executable pages
        return False
    return bool(features & _AMX_TILE_BIT) and palettes == 0


def _cpuid(leaf: int) -> tuple[int, int]:
    """EAX and EDX of a CPUID leaf, subleaf 0."""
    with mmap.mmap(-1, len(_CPUID), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_CPUID)
        start = ctypes.c_char.from_buffer(page)
        registers = (ctypes.c_uint32 * 2)()
        ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_void_p)(ctypes.addressof(start))(
            leaf, ctypes.addressof(registers)
        )
        del start  # the page cannot be closed while something points into it
    return registers[0], registers[1]


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
