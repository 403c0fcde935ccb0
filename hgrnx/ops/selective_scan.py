"""Mamba's selective scan (arXiv 2312.00752, algorithm 2): on any device, on a CPU in C++, or with mamba_ssm's kernel.

Per channel and state, h_t = exp(dt_t A) h_{t-1} + dt_t b_t u_t, and y_t is the sum of c_t h_t over the states.

Shapes: B rows, T tokens, C channels, S states of a channel; N tokens of a chunk, M chunks, R rows of a slab.

Forward and backward are custom operators so that torch.compile leaves them alone: traced, the loops over the tokens,
which share their buffers, would make a graph that grows with the text.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hgrnx.ops.compiled_scan import compiled_selective_scan
from hgrnx.ops.cpu import flushed_denormals
from hgrnx.ops.dispatch import choose_kernels
from hgrnx.ops.slabs import compute_dtype

SCAN_IMPLEMENTATIONS = ("chunked", "compiled", "mamba_ssm")

_STEP_ELEMENTS = 2**16  # states of one token of a slab: enough work for one call of a kernel
_CHUNK_ELEMENTS = 2**20  # states of a chunk; a few such tensors exist at a time
_LARGEST_CHUNK = 32


def selective_scan(
    u_BTC: Tensor,
    dt_BTC: Tensor,
    A_CS: Tensor,
    b_BTS: Tensor,
    c_BTS: Tensor,
    initial_state_BCS: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs y_t = sum over s of c_t h_t, and the last state.

    Args:
        u_BTC: inputs.
        dt_BTC: time steps, 0 or more; a step of 0 leaves the state as it is.
        A_CS: negative; exp(dt A) is what remains of a state.
        b_BTS: how inputs enter the states.
        c_BTS: how outputs read the states.
        initial_state_BCS: state before the first token, zeros when absent.
        impl: "chunked", "compiled" or "mamba_ssm"; by default "compiled" on a CPU where it can be built (not in
            float64), and "mamba_ssm" on CUDA where it is installed and there is no initial state, which its kernel
            does not take. The last state it returns carries no gradient.

    Returns:
        Outputs [B, T, C] in the type of ``u_BTC``, and the last state [B, C, S] in float32 (float64 for float64
        inputs).

    Raises:
        ValueError: an unknown ``impl``, one that is not installed or cannot do this, or shapes that do not fit.
    """
    _check_shapes(u_BTC, dt_BTC, A_CS, b_BTS, c_BTS, initial_state_BCS)
    if impl is None:
        if u_BTC.is_cuda:
            kernel = initial_state_BCS is None and importlib.util.find_spec("mamba_ssm") is not None
            impl = "mamba_ssm" if kernel else "chunked"
        else:
            impl = "compiled" if choose_kernels("selective_scan", None, u_BTC) == "compiled" else "chunked"
    if impl in ("chunked", "compiled"):
        if impl == "compiled":
            choose_kernels("selective_scan", impl, u_BTC)  # refuses what it is not for
        scan = compiled_selective_scan if impl == "compiled" else _chunked_scan
        y_BTC, last_BCS, _ = scan(u_BTC, dt_BTC, A_CS, b_BTS, c_BTS, initial_state_BCS)
        return y_BTC, last_BCS
    if impl == "mamba_ssm":
        if initial_state_BCS is not None:
            raise ValueError("selective_scan: impl='mamba_ssm' takes no initial state; use impl='chunked'")
        return _mamba_ssm_scan(u_BTC, dt_BTC, A_CS, b_BTS, c_BTS)
    raise ValueError(f"selective_scan: impl='{impl}' is none of {', '.join(SCAN_IMPLEMENTATIONS)}")


class _Chunk:
    """Decays and states of the tokens of one chunk, in two buffers that are used again and again.

    Time comes first, so that one token's states are one piece of memory; channels come last, so that a kernel
    goes along them.
    """

    def __init__(self, tokens: int, R: int, S: int, C: int, like: Tensor) -> None:
        self._decay = like.new_empty(tokens, R, S, C)
        self._states = like.new_empty(tokens, R, S, C)

    def run(self, dt_NRC: Tensor, A_SC: Tensor, x_NRC: Tensor, b_NRS: Tensor, state_RSC: Tensor) -> None:
        """Go through the tokens from ``state_RSC``; ``x`` are the inputs times their steps."""
        N = dt_NRC.shape[0]
        # Steps are not negative and A is, so nothing here is more than 1.
        self.decay_NRSC = torch.mul(dt_NRC[:, :, None], A_SC, out=self._decay[:N]).exp_()
        self.states_NRSC = torch.mul(x_NRC[:, :, None], b_NRS[..., None], out=self._states[:N])
        for decay_RSC, now_RSC in zip(self.decay_NRSC.unbind(0), self.states_NRSC.unbind(0)):
            state_RSC = now_RSC.addcmul_(decay_RSC, state_RSC)


@torch.library.custom_op("hgrnx::selective_scan", mutates_args=())
def _chunked_scan(
    u: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state, and the states before each chunk [M, B, S, C], from which the backward runs it again."""
    B, T, C = u.shape
    S = A.shape[1]
    dtype = compute_dtype(u)
    with _exact(u):
        A_SC = A.to(dtype).T.contiguous()
        y_TBC = u.new_empty(T, B, C, dtype=dtype)
        slab, chunk = _sizes(B, T, C, S)
        befores = u.new_empty(-(-T // chunk), B, S, C, dtype=dtype)
        last_BSC = u.new_zeros(B, S, C, dtype=dtype)
        if initial_state is not None:
            last_BSC.copy_(initial_state.mT)
        for rows in slab:
            u_TRC, dt_TRC, b_TRS, c_TRS = (_time_first(part, rows, dtype) for part in (u, dt, b, c))
            x_TRC = u_TRC.mul_(dt_TRC)
            work = _Chunk(min(chunk, T), u_TRC.shape[1], S, C, A_SC)
            for number, tokens in enumerate(_chunks(T, chunk)):
                before_RSC = befores[number, rows].copy_(last_BSC[rows])
                work.run(dt_TRC[tokens], A_SC, x_TRC[tokens], b_TRS[tokens], before_RSC)
                y_TBC[tokens, rows] = torch.matmul(c_TRS[tokens, :, None], work.states_NRSC)[:, :, 0]
                last_BSC[rows] = work.states_NRSC[-1]
    return y_TBC.transpose(0, 1).to(u.dtype), last_BSC.mT, befores


@_chunked_scan.register_fake
def _(
    u: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, C = u.shape
    S = A.shape[1]
    _, chunk = _sizes(B, T, C, S)
    befores = u.new_empty(-(-T // chunk), B, S, C, dtype=compute_dtype(u))
    return u.new_empty(T, B, C).transpose(0, 1), befores.new_empty(B, S, C).mT, befores


@torch.library.custom_op("hgrnx::selective_scan_backward", mutates_args=())
def _chunked_scan_backward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None,
    befores: Tensor,
    dy: Tensor,
    d_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, dt, A, b, c and the initial state (an empty tensor without one)."""
    B, T, C = u.shape
    S = A.shape[1]
    dtype = befores.dtype
    with _exact(u):
        A_SC = A.to(dtype).T.contiguous()
        du, d_dt, db, dc = (torch.empty_like(part.transpose(0, 1)) for part in (u, dt, b, c))
        dA_SC = torch.zeros_like(A_SC)
        d_state_BSC = d_last.mT.to(dtype, copy=True, memory_format=torch.contiguous_format)
        slab, chunk = _sizes(B, T, C, S)
        for rows in slab:
            u_TRC, dt_TRC, b_TRS, c_TRS, dy_TRC = (_time_first(part, rows, dtype) for part in (u, dt, b, c, dy))
            x_TRC = u_TRC * dt_TRC
            work = _Chunk(min(chunk, T), u_TRC.shape[1], S, C, A_SC)
            gradients = torch.empty_like(work._states)
            dA_RSC = A_SC.new_zeros(u_TRC.shape[1], S, C)
            for number, tokens in reversed(list(enumerate(_chunks(T, chunk)))):
                before_RSC = befores[number, rows]
                dt_NRC, x_NRC, b_NRS, dy_NRC = dt_TRC[tokens], x_TRC[tokens], b_TRS[tokens], dy_TRC[tokens]
                work.run(dt_NRC, A_SC, x_NRC, b_NRS, before_RSC)
                decay_NRSC, states_NRSC = work.decay_NRSC, work.states_NRSC
                N = dt_NRC.shape[0]

                # g: gradients of the states, from the last to the first.
                g_NRSC = torch.mul(dy_NRC[:, :, None], c_TRS[tokens][..., None], out=gradients[:N])
                g_NRSC[-1] += d_state_BSC[rows]
                g, decays = g_NRSC.unbind(0), decay_NRSC.unbind(0)
                for n in reversed(range(N - 1)):
                    g[n].addcmul_(decays[n + 1], g[n + 1])
                torch.mul(decays[0], g[0], out=d_state_BSC[rows])

                dc[tokens, rows] = torch.matmul(states_NRSC, dy_NRC[..., None])[..., 0].to(dc.dtype)
                db[tokens, rows] = torch.matmul(g_NRSC, x_NRC[..., None])[..., 0].to(db.dtype)
                dx_NRC = torch.matmul(b_NRS[:, :, None], g_NRSC)[:, :, 0]

                # From here on g: gradients of the exponents dt A.
                g[0].mul_(before_RSC)
                g_NRSC[1:].mul_(states_NRSC[:-1])
                g_NRSC.mul_(decay_NRSC)
                for g_RSC, dt_RC in zip(g, dt_NRC.unbind(0)):
                    dA_RSC.addcmul_(g_RSC, dt_RC[:, None])
                d_dt_NRC = g_NRSC.mul_(A_SC).sum(2)
                d_dt[tokens, rows] = d_dt_NRC.addcmul_(dx_NRC, u_TRC[tokens]).to(d_dt.dtype)
                du[tokens, rows] = dx_NRC.mul_(dt_NRC).to(du.dtype)
            dA_SC += dA_RSC.sum(0)
    d_initial = u.new_empty(0) if initial_state is None else d_state_BSC.mT.to(initial_state.dtype)
    du, d_dt, db, dc = (part.transpose(0, 1) for part in (du, d_dt, db, dc))
    return du, d_dt, dA_SC.mT.to(A.dtype), db, dc, d_initial


@_chunked_scan_backward.register_fake
def _(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None,
    befores: Tensor,
    dy: Tensor,
    d_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, d_dt, db, dc = (torch.empty_like(part.transpose(0, 1)).transpose(0, 1) for part in (u, dt, b, c))
    dA = A.new_empty(A.shape[::-1]).mT
    d_initial = u.new_empty(0)
    if initial_state is not None:
        d_initial = initial_state.new_empty(initial_state.mT.shape).mT
    return du, d_dt, dA, db, dc, d_initial


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    befores = output[2]
    ctx.mark_non_differentiable(befores)
    ctx.set_materialize_grads(False)  # the states would get zeros too
    ctx.save_for_backward(*inputs, befores)


def _gradients(ctx: Any, dy: Tensor | None, d_last: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing hands them out a single time
    u, befores = saved[0], saved[6]
    dy = torch.zeros_like(u) if dy is None else dy
    d_last = befores.new_zeros(befores.shape[1:]).mT if d_last is None else d_last
    *grads, d_initial = _chunked_scan_backward(*saved, dy, d_last)
    return (*grads, None if saved[5] is None else d_initial)


_chunked_scan.register_autograd(_gradients, setup_context=_keep)


@contextlib.contextmanager
def _exact(x: Tensor) -> Iterator[None]:
    """Float32 throughout, and no denormals, of which products of decays are full."""
    with torch.autocast(x.device.type, enabled=False), flushed_denormals():
        yield


def _sizes(B: int, T: int, C: int, S: int) -> tuple[list[slice], int]:
    """Slabs of rows, and the tokens of a chunk."""
    R = min(B, max(1, _STEP_ELEMENTS // (C * S)))
    chunk = max(1, min(_LARGEST_CHUNK, T, _CHUNK_ELEMENTS // (R * C * S)))
    return [slice(row, min(row + R, B)) for row in range(0, B, R)], chunk


def _chunks(T: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, T)) for start in range(0, T, chunk))


def _time_first(x_BTX: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """A slab's own copy, [T, R, X]."""
    part = x_BTX[rows].transpose(0, 1)
    return part.new_empty(part.shape, dtype=dtype).copy_(part)


def _mamba_ssm_scan(u_BTC: Tensor, dt_BTC: Tensor, A_CS: Tensor, b_BTS: Tensor, c_BTS: Tensor) -> tuple[Tensor, Tensor]:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        raise ValueError(f"impl='mamba_ssm' needs the package mamba-ssm ({error})") from error
    # The kernel wants one type for all but A, and time last.
    parts = (part.to(u_BTC.dtype).mT.contiguous() for part in (u_BTC, dt_BTC, b_BTS, c_BTS))
    u_BCT, dt_BCT, b_BST, c_BST = parts
    y_BCT, last_BCS = selective_scan_fn(u_BCT, dt_BCT, A_CS.float(), b_BST, c_BST, return_last_state=True)
    return y_BCT.mT, last_BCS.float()


def _check_shapes(u: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, initial_state: Tensor | None) -> None:
    if u.ndim != 3 or 0 in u.shape:
        raise ValueError(f"selective_scan: u must be [B, T, C] with at least one token, not {list(u.shape)}")
    B, T, C = u.shape
    S = A.shape[-1]
    wanted = {"dt": (dt, (B, T, C)), "A": (A, (C, S)), "b": (b, (B, T, S)), "c": (c, (B, T, S))}
    if initial_state is not None:
        wanted["initial_state"] = (initial_state, (B, C, S))
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"selective_scan: {name} must be {list(shape)}, not {list(tensor.shape)}")
