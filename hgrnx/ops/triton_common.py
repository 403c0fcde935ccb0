"""What the Triton kernels share. Only modules that are imported when a kernel is asked for import this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether Triton runs the kernels in Python (TRITON_INTERPRET=1 when it was imported): slow, but on any CPU.

Only float32 is right there: the interpreter multiplies bfloat16 matrices as if their bits were integers.
"""


def check_device(op: str, x: Tensor) -> None:
    if not (x.is_cuda or INTERPRETED):
        raise ValueError(f"{op}: impl='triton' needs tensors on a GPU, and they are on {x.device}")


def autotuned(
    configs: list[triton.Config], exact: triton.Config, typed_by: str, key: list[str]
) -> Callable[[Any], Any]:
    """Chooses the fastest of a few ``configs`` at the first call for the values of ``key`` and the types.

    The choice is kept on disk with the compiled kernels (TRITON_CACHE_DIR, by default ~/.triton/cache), so a
    machine pays for it once. Where the positional tensor ``typed_by`` is float32, and in the interpreter,
    ``exact`` is taken without trying: products in full float32 are unrolled into plain multiplications, and
    large tiles of them compile for minutes.
    """

    def prune(candidates: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
        return [exact] if arguments[typed_by].dtype == torch.float32 else configs

    return triton.autotune(
        [exact] if INTERPRETED else [*configs, exact],
        key=key,
        prune_configs_by={"early_config_prune": prune},
        cache_results=True,
    )
