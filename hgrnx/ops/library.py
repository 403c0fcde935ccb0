"""The C++ kernels for CPUs (``csrc``): built on the first use on a machine, loaded on the first use in a process.

``HGRNX_COMPILED=0`` in the environment forbids them.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgrnx.ops.build import BuildError, built_library

TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
"""Numbers of the types in ``csrc/arrays.h``."""

_log = logging.getLogger(__name__)


class CompiledStatus(NamedTuple):
    """Whether the kernels can be used here; ``reason`` says which they are, or why there are none."""

    available: bool
    reason: str


def compiled_status() -> CompiledStatus:
    """Builds the kernels, the first time on a machine (some 20 seconds), and loads them."""
    library, reason = _load()
    return CompiledStatus(library is not None, reason)


def forbidden() -> bool:
    """Whether the environment says that the kernels are not to be used."""
    return os.environ.get("HGRNX_COMPILED") == "0"


def compiled_serves() -> bool:
    """Whether the kernels are what a CPU should use; says once why not, unless they are forbidden."""
    return _available_or_said_why_not()


# What torch.compiler.assume_constant_result does, which would import the whole compiler.
compiled_serves._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _available_or_said_why_not() -> bool:
    available, reason = compiled_status()
    if not available and not forbidden():
        _log.warning("CPU kernels are not compiled, training is slower: %s.", reason)
    return available


@functools.cache
def kernel(name: str, *argument_types: Any) -> Callable[..., None]:
    """A function of the library, which takes ctypes' ``argument_types``.

    Raises:
        ValueError: the kernels cannot be built or loaded here (why is said).
        MemoryError: when called, the kernel finds no memory for its buffers.
    """
    library, reason = _load()
    if library is None:
        raise ValueError(f"impl='compiled' cannot be used: {reason}")
    function = getattr(library, name)
    function.argtypes, function.restype = argument_types, ctypes.c_int64

    def call(*arguments: Any) -> None:
        if function(*arguments) != 0:
            raise MemoryError(f"no memory for the buffers of the CPU kernel {name}")

    return call


def address(x: Tensor | None) -> int | None:
    """Where the elements of a tensor begin."""
    return None if x is None else x.data_ptr()


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if forbidden():
        return None, "HGRNX_COMPILED=0 forbids it"
    try:
        path = built_library()
        return ctypes.CDLL(str(path)), f"{torch.backends.cpu.get_cpu_capability()}, {path}"
    except (BuildError, OSError) as error:
        return None, str(error)
