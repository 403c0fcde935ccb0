"""Summed log-probabilities of token sequences.

Sequences of like length share a batch, padded on the right, so padding is never seen. The output head runs over a
few hundred positions at a time and only where a token is to be scored: no [B, T, V] tensor exists.

Shapes: B rows, T tokens, D model width, V vocabulary without padding, N scored positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hgrnx.models import LanguageModel

Precision = Literal["fp32", "bf16"]
Progress = Callable[[int, int], None]

# A CPU is fastest while its caches hold hidden states and logits; a GPU wants large products.
_BATCH_TOKENS = defaultdict(lambda: 16_384, cpu=2048)
_HEAD_POSITIONS = defaultdict(lambda: 4096, cpu=128)


def score_tokens(
    model: LanguageModel,
    rows: Sequence[np.ndarray],
    starts: np.ndarray | None = None,
    *,
    batch_tokens: int | None = None,
    precision: Precision = "fp32",
    on_progress: Progress | None = None,
) -> np.ndarray:
    """Log-probability (nats, float64) of the tokens of each row from its start on, given all those before them.

    Args:
        model: any language model, on any device; put into evaluation mode by the caller.
        rows: token ids, int64.
        starts: place of the first token to score in each row, at least 1; 1 when None. A row that ends before its
            start scores 0.
        batch_tokens: bounds memory; what suits the device when None. Neither this nor the order of the rows changes a
            score beyond rounding.
        precision: of the hidden states; logits and log-probabilities are float32 and their sums float64 always.
        on_progress: called with rows done and rows in all.
    """
    if starts is None:
        starts = np.ones(len(rows), dtype=np.int64)
    scores = np.zeros(len(rows), dtype=np.float64)
    device = model.head_weight.device
    done = 0
    for batch in length_buckets([len(row) for row in rows], batch_tokens or _BATCH_TOKENS[device.type]):
        longest = len(rows[batch[-1]])
        if longest > 1:
            tokens_BT = np.zeros((len(batch), longest), dtype=np.int64)
            lengths_B = np.array([len(rows[index]) for index in batch])
            tokens_BT[np.arange(longest) < lengths_B[:, None]] = np.concatenate([rows[index] for index in batch])
            scores[batch] = _score_batch(
                model,
                torch.from_numpy(tokens_BT).to(device),
                torch.from_numpy(lengths_B).to(device),
                torch.from_numpy(starts[batch]).to(device),
                precision,
            )
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(rows))
    return scores


def length_buckets(lengths: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices of rows, shortest first, in batches of at most ``batch_tokens`` places (or of one longer row)."""
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and lengths[order[stop]] * (stop + 1 - start) <= batch_tokens:
            stop += 1
        yield order[start:stop]
        start = stop


@torch.inference_mode()
def _score_batch(
    model: LanguageModel, tokens_BT: Tensor, lengths_B: Tensor, starts_B: Tensor, precision: Precision
) -> np.ndarray:
    device = tokens_BT.device
    places_T = torch.arange(1, tokens_BT.shape[1], device=device)
    valid_BT = (places_T >= starts_B[:, None]) & (places_T < lengths_B[:, None])
    scores_BT = torch.zeros(valid_BT.shape, dtype=torch.float64, device=device)
    with _exact_products():
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            hidden_BTD, _ = model.hidden(tokens_BT[:, :-1])
        with torch.autocast(device.type, enabled=False):
            scores_BT[valid_BT] = _log_probs(
                hidden_BTD[valid_BT].float(),
                model.head_weight[: model.vocab_size].float().T.contiguous(),
                tokens_BT[:, 1:][valid_BT],
            )
    return scores_BT.sum(1).cpu().numpy()


def _log_probs(hidden_ND: Tensor, weight_DV: Tensor, targets_N: Tensor) -> Tensor:
    """log softmax(hidden @ weight)[target], float64 [N]; one small buffer of logits, used in place again and again."""
    positions = _HEAD_POSITIONS[hidden_ND.device.type]
    buffer_NV = hidden_ND.new_empty(min(positions, len(hidden_ND)), weight_DV.shape[1])
    log_probs_N = torch.empty(len(hidden_ND), dtype=torch.float64, device=hidden_ND.device)
    for start in range(0, len(hidden_ND), positions):
        part = slice(start, min(start + positions, len(hidden_ND)))
        logits_NV = torch.mm(hidden_ND[part], weight_DV, out=buffer_NV[: part.stop - start])
        chosen_N1 = logits_NV.gather(1, targets_N[part, None])
        largest_N1 = logits_NV.amax(1, keepdim=True)
        log_sum_N1 = logits_NV.sub_(largest_N1).exp_().sum(1, keepdim=True).log_()
        log_probs_N[part] = (chosen_N1 - largest_N1 - log_sum_N1)[:, 0]
    return log_probs_N


@contextmanager
def _exact_products() -> Iterator[None]:
    """Full float32 products, also in a process that has allowed itself faster ones for training."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
