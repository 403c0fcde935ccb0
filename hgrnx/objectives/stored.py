"""A teacher that was asked before the training: its k likeliest tokens at every position, and what lies beyond them.

The probability that a teacher gives to an entry at temperature T is exp(logit / T - lse_T). Of lse_T only the part of
the entries beyond the k is unknown to who has the k logits, so that part is what is stored, at the temperatures of
``SIGNAL_TEMPERATURES``: nothing is the difference of two near numbers, and rounded logits still give probabilities that
sum to one.

Shapes: B rows, T tokens, N = B * T, V vocabulary, k entries, R temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from hgrnx.config import SIGNAL_TEMPERATURES
from hgrnx.ops import TeacherSignal

_CPU_BLOCK_ELEMENTS = 2**18  # as in hgrnx.ops.chunk_losses: some blocks of float32 fit a core's cache
_CPU_PRODUCT_TOKENS = 512  # with fewer a product reads the head from memory more often than it is worth
_BLOCK_TOKENS = 4096


class SignalReader(Protocol):
    """Where the signal is stored: :class:`hgrnx.data.signals.SignalStore`."""

    def read(self, chunks: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rest [B, T, R], the logits [B, T, k] and the ids [B, T, k] on these chunks of the text."""
        ...


class StoredTeacher:
    """Reads what a teacher of ``vocab_size`` tokens said, instead of running it."""

    def __init__(self, reader: SignalReader, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._reader = reader

    def signal(
        self,
        inputs_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        chunks: Sequence[int] = (),
        temperature: float = 1.0,
    ) -> TeacherSignal:
        """Ids, logits and the rest at the temperature; ``chunks`` alone says which."""
        stored = self._reader.read(chunks)
        assert stored[2].shape[0] * stored[2].shape[1] == inputs_BT.numel(), "chunks must be those of the inputs"
        rest_NR, top_Nk, ids_Nk = (
            torch.from_numpy(array if array.dtype.kind == "f" else array.astype(np.int32)).flatten(0, 1)
            for array in stored
        )
        beyond = self.vocab_size - ids_Nk.shape[1]
        if beyond == 0:
            rest_N = rest_NR.new_full((len(rest_NR),), -torch.inf)
        else:
            at_infinity, *others = rest_weights(temperature)
            rest_N = rest_NR @ rest_NR.new_tensor(others) + at_infinity * math.log(beyond)
        ids_Nk, top_Nk, rest_N = (x.to(self.device, non_blocking=True) for x in (ids_Nk, top_Nk.float(), rest_N))
        return TeacherSignal(top_k=(ids_Nk, top_Nk, rest_N))


class TopK(NamedTuple):
    """What is stored of N tokens; the logits and the rest are counted from the largest logit."""

    rest_NR: Tensor
    """float32: log of the sum of exp(logit / T) over the entries beyond the k, at each of ``SIGNAL_TEMPERATURES``."""
    top_Nk: Tensor
    ids_Nk: Tensor


def top_k_of(hidden_ND: Tensor, head_VD: Tensor, vocab_size: int, k: int) -> TopK:
    """The signal to store of a teacher with these hidden states and this head, whose padding is left out.

    The products are in the head's type, as in :func:`hgrnx.ops.head_loss` with the same teacher beside the student; all
    else is in float32.
    """
    on_cpu = hidden_ND.device.type == "cpu"
    tokens = max(1, _CPU_BLOCK_ELEMENTS // vocab_size) if on_cpu else _BLOCK_TOKENS
    blocks = []
    for hidden_nD in hidden_ND.split(_CPU_PRODUCT_TOKENS if on_cpu else _BLOCK_TOKENS):
        whole_nV = (hidden_nD.to(head_VD.dtype) @ head_VD.T)[:, :vocab_size]
        blocks += [_top_k_of_logits(logits_nV.float(), k) for logits_nV in whole_nV.split(tokens)]
    return TopK(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _top_k_of_logits(logits_nV: Tensor, k: int) -> TopK:
    """Overwrites the logits."""
    vocab_size = logits_nV.shape[1]
    # One more than is kept: the largest of the rest, from which its sums are counted.
    sorted_nk, ids_nk = logits_nV.topk(min(k + 1, vocab_size))
    top_n1 = sorted_nk[:, :1]
    if k == vocab_size:
        rest_nR = logits_nV.new_full((len(logits_nV), len(SIGNAL_TEMPERATURES)), -torch.inf)
    else:
        below_n1 = sorted_nk[:, -1:]
        rest_nV = logits_nV.scatter_(1, ids_nk[:, :k], -torch.inf).sub_(below_n1)
        rest_nR = _log_sum_exp(rest_nV) + (below_n1 - top_n1) / logits_nV.new_tensor(SIGNAL_TEMPERATURES)
    return TopK(rest_nR, sorted_nk[:, :k] - top_n1, ids_nk[:, :k])


def _log_sum_exp(rest_nV: Tensor) -> Tensor:
    """log of the sum of exp(rest / T) over V, at each of ``SIGNAL_TEMPERATURES`` [n, R]; overwrites ``rest_nV``, whose
    largest is 0.

    One exponential, at the highest temperature: all others are whole powers of it.
    """
    highest = SIGNAL_TEMPERATURES[-1]
    once_nV = rest_nV.div_(highest).exp_()
    twice_nV = once_nV * once_nV
    power_nV, power = once_nV.clone(), 1
    sums = []
    for T in reversed(SIGNAL_TEMPERATURES):
        wanted = round(highest / T)
        assert math.isclose(wanted * T, highest), "no whole power"
        while power < wanted:
            step = min(2, wanted - power)
            power_nV.mul_(twice_nV if step == 2 else once_nV)
            power += step
        sums.append(power_nV.sum(1).log_())
    return torch.stack(sums[::-1], 1)


def rest_weights(temperature: float) -> list[float]:
    """How much the log-sum-exp at 1 / T = 0, and those at ``SIGNAL_TEMPERATURES``, count for the one at a temperature.

    The log-sum-exp is a smooth function of 1 / T, and at 0 it is the logarithm of how many there are: a cubic through
    the four places around 1 / T. At a stored temperature that one alone counts.
    """
    assert temperature >= SIGNAL_TEMPERATURES[0]
    places = [0.0, *(1 / T for T in reversed(SIGNAL_TEMPERATURES))]
    at = 1 / temperature
    above = next(i for i, place in enumerate(places) if place >= at)
    first = min(max(above - 2, 0), len(places) - 4)
    four = range(first, first + 4)
    weights = [0.0] * len(places)
    for i in four:
        weights[i] = math.prod((at - places[j]) / (places[i] - places[j]) for j in four if j != i)
    return [weights[0], *reversed(weights[1:])]
