"""The one public recurrence, and the choice of its implementation.

Shapes: B batch, T time, H heads, K keys and V values per head, N documents.
"""

from __future__ import annotations

from torch import Tensor

from hgrnx.ops.chunked import chunked_recurrence
from hgrnx.ops.reference import reference_recurrence

IMPLEMENTATIONS = ("reference", "chunked", "fla", "triton")


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
        impl: "reference", "chunked", "fla" or "triton"; by default "fla" on CUDA and "chunked" elsewhere.

    Returns:
        Outputs [B, T, H, V] in the type of v, and the last state [B, H, K, V] ([N, H, K, V] with
        ``cu_seqlens``) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: an unknown ``impl``, or a tensor whose shape does not fit (it is named).
    """
    if impl is None:
        impl = "fla" if q_BTHK.is_cuda else "chunked"
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"gated_linear_recurrence: impl='{impl}' is none of {', '.join(IMPLEMENTATIONS)}")
    _check_shapes(q_BTHK, k_BTHK, v_BTHV, log_f_BTHK, initial_state_BHKV, cu_seqlens)
    arguments = (q_BTHK, k_BTHK, v_BTHV, log_f_BTHK, initial_state_BHKV, cu_seqlens)
    if impl == "reference":
        return reference_recurrence(*arguments)
    if impl == "chunked":
        return chunked_recurrence(*arguments)
    if impl == "triton":
        from hgrnx.ops.triton_recurrence import triton_recurrence  # needs a GPU's packages

        return triton_recurrence(*arguments)
    from hgrnx.ops.fla_kernels import fla_recurrence  # needs a GPU's packages

    return fla_recurrence(*arguments)


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
        # Off the CPU a look at the values would wait for the device.
        if cu_seqlens.device.type == "cpu":
            bounds = cu_seqlens.tolist()
            if bounds[0] != 0 or bounds[-1] != T or any(a >= b for a, b in zip(bounds, bounds[1:])):
                raise ValueError(f"cu_seqlens must increase strictly from 0 to {T}: {bounds}")
    if initial_state is not None:
        _expect("initial_state", initial_state, (states, H, K, v.shape[-1]))


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
