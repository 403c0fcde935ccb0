"""Cross-entropy and KL of a chunk of logits on CPU in C++ (``csrc/chunk_losses.cpp``).

Shapes: n tokens of a chunk, V rows of the head (vocabulary, padding included), k entries of a top-k.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from hgrnx.ops.chunk_losses import ChunkTeachers, LossSettings
from hgrnx.ops.library import TYPES, address, kernel

_Size = ctypes.c_int64


class _Teacher(ctypes.Structure):
    _fields_ = [("logits", ctypes.c_void_p), ("type", _Size), ("row_stride", _Size), ("mixing", ctypes.c_float)]


class _Losses(ctypes.Structure):
    _fields_ = [
        *((name, _Size) for name in ("tokens", "V", "row_stride", "type")),
        *((name, ctypes.c_void_p) for name in ("logits", "targets")),
        ("ignore_index", _Size),
        *((name, ctypes.c_float) for name in ("weight", "temperature")),
        *((name, _Size) for name in ("reverse", "wants_grad", "teachers")),
        ("teacher", ctypes.POINTER(_Teacher)),
        ("k", _Size),
        *((name, ctypes.c_void_p) for name in ("ids", "top", "rest", "cross_entropy", "kl")),
    ]


_KERNEL = "hgrnx_chunk_losses", ctypes.POINTER(_Losses)


def compiled_chunk_losses(
    logits_nV: Tensor, targets_n: Tensor, teachers: ChunkTeachers, s: LossSettings, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As :func:`hgrnx.ops.chunk_losses.chunk_losses`, in float32 for logits of any type but float64.

    Raises:
        ValueError: a target or an id of a top-k that is no entry of the vocabulary.
    """
    tokens, row = logits_nV.shape
    assert logits_nV.is_contiguous()  # it is overwritten
    targets_n = targets_n.contiguous()
    logits = [((x.float() if x.dtype == torch.float64 else x).contiguous(), mixing) for x, mixing in teachers.logits]
    ids, top, rest = None, None, None
    if teachers.top_k is not None:
        ids, top, rest = teachers.top_k[0].long().contiguous(), *(x.float().contiguous() for x in teachers.top_k[1:])
    _check_entries("targets_N", targets_n[targets_n != s.ignore_index], s.vocab)
    if ids is not None:
        _check_entries("the teacher's top_k", ids, s.vocab)
    rows = (_Teacher * max(1, len(logits)))(
        *(_Teacher(address(x), TYPES[x.dtype], x.stride(0), mixing) for x, mixing in logits)
    )
    cross_entropy_n, kl_n = torch.empty(2, tokens, dtype=torch.float64)
    losses = _Losses(
        tokens,
        s.vocab,
        row,
        TYPES[logits_nV.dtype],
        address(logits_nV),
        address(targets_n),
        s.ignore_index,
        s.weight,
        s.temperature,
        s.reverse,
        s.wants_grad,
        len(logits),
        rows,
        0 if ids is None else ids.shape[1],
        address(ids),
        address(top),
        address(rest),
        address(cross_entropy_n),
        address(kl_n),
    )
    kernel(*_KERNEL)(losses)
    return cross_entropy_n.sum().to(dtype), kl_n.sum().to(dtype)


def _check_entries(name: str, ids: Tensor, vocab: int) -> None:
    """The kernel writes where they point to."""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise ValueError(f"head_loss: {name} has entries outside the vocabulary of {vocab}")
