"""The one public recurrence, and the choice of its implementation.

Shapes: B batch, T time, H heads, K keys and V values per head, N documents.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from hgrnx.ops.chunked import chunked_recurrence
from hgrnx.ops.compiled import compiled_recurrence
from hgrnx.ops.library import compiled_serves, compiled_status
from hgrnx.ops.packing import check_offsets
from hgrnx.ops.reference import reference_recurrence

IMPLEMENTATIONS = ("reference", "chunked", "compiled", "fla", "triton")


def gated_linear_recurrence(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_f_BTHK: Tensor,
    initial_state_BHKV: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = diag(f_t) S_{t-1} + k_t v_t^T and o_t = S_t^T q_t (HGRN2, arXiv 2404.07904), unscaled.

    Args:
        q_BTHK: queries, [B, T, H, K]; the caller scales them.
        k_BTHK: keys, [B, T, H, K]; HGRN2's are 1 - f.
        v_BTHV: values, [B, T, H, V].
        log_f_BTHK: logarithms of the forget gates, at most 0; float32 where gates come near 1.
        initial_state_BHKV: state before the first token, zeros when absent.
        cu_seqlens: offsets of documents packed into one row (B = 1), int [N + 1] from 0 to T, increasing.
            Each document starts from its own state; states are then [N, H, K, V].
        impl: one of ``IMPLEMENTATIONS``; by default "fla" on CUDA, "compiled" on a CPU where it can be built, else
            "chunked".

    Returns:
        Outputs [B, T, H, V] in the type of v, and the last state [B, H, K, V] ([N, H, K, V] with
        ``cu_seqlens``) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: an unknown ``impl`` or one that cannot be used, or a tensor whose shape does not fit (it is named).
    """
    if impl is None:
        impl = default_implementation(q_BTHK.device.type)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"gated_linear_recurrence: impl='{impl}' is none of {', '.join(IMPLEMENTATIONS)}")
    _check_shapes(q_BTHK, k_BTHK, v_BTHV, log_f_BTHK, initial_state_BHKV, cu_seqlens)
    arguments = (q_BTHK, k_BTHK, v_BTHV, log_f_BTHK, initial_state_BHKV, cu_seqlens)
    if impl == "reference":
        return reference_recurrence(*arguments)
    if impl == "chunked":
        return chunked_recurrence(*arguments)
    if impl == "compiled":
        return compiled_recurrence(*arguments)
    if impl == "triton":
        from hgrnx.ops.triton_recurrence import triton_recurrence  # needs a GPU's packages

        return triton_recurrence(*arguments)
    from hgrnx.ops.fla_kernels import fla_recurrence  # needs a GPU's packages

    return fla_recurrence(*arguments)


def available_implementations(device_type: str) -> list[str]:
    """Those of ``IMPLEMENTATIONS`` that can run on ``device_type`` here; the one dispatch would choose comes first."""
    found = ["chunked", "reference"]
    if device_type == "cpu" and compiled_status().available:
        found.append("compiled")
    if device_type == "cuda":
        found += [name for name, package in (("triton", "triton"), ("fla", "fla")) if find_spec(package) is not None]
    return sorted(found, key=lambda name: name != default_implementation(device_type))


def implementation_note(device_type: str) -> str:
    """Which implementation dispatch chooses on ``device_type`` here and why, for a person."""
    if device_type != "cpu":
        return default_implementation(device_type)
    available, reason = compiled_status()
    return f"compiled ({reason})" if available else f"chunked, several times slower than compiled: {reason}"


def default_implementation(device_type: str) -> str:
    """The one of ``IMPLEMENTATIONS`` that dispatch chooses on ``device_type`` here."""
    if device_type == "cpu":
        return "compiled" if compiled_serves() else "chunked"
    return "fla" if device_type == "cuda" else "chunked"


def _check_shapes(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    if q.ndim != 4:
        raise ValueError(f"q must be [B, T, H, K], not {list(q.shape)}")
    B, T, H, K = q.shape
    if T == 0:
        raise ValueError("q has no tokens: T must be at least 1")
    _expect("k", k, (B, T, H, K))
    _expect("log_f", log_f, (B, T, H, K))
    _expect("v", v, (B, T, H, v.shape[-1] if v.ndim else 0))
    states = B
    if cu_seqlens is not None:
        if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 2:
            raise ValueError(f"cu_seqlens must be [documents + 1] offsets, not {list(cu_seqlens.shape)}")
        if B != 1:
            raise ValueError(f"cu_seqlens needs a batch of 1, and q is {list(q.shape)}")
        states = cu_seqlens.numel() - 1
        # Off the CPU a look at the values would wait for the device, and a graph in the making has none.
        if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
            check_offsets(cu_seqlens, T)
    if initial_state is not None:
        _expect("initial_state", initial_state, (states, H, K, v.shape[-1]))


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
