"""Summed log-probabilities of token sequences.

What rows begin with together is read once (:mod:`hgrnx.evaluation.prefixes`). The output head runs over a few
hundred positions at a time and only where a token is to be predicted: no [T, V] tensor exists.

Shapes: T tokens, D model width, V vocabulary without padding, E predictions, N positions that they are made at, n of
one run of the head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hgrnx.evaluation.prefixes import Batch, shared_batches
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
    scores = np.zeros(len(rows), dtype=np.float64)
    starts = np.ones(len(rows), dtype=np.int64) if starts is None else starts
    wanted = np.flatnonzero(starts < np.array([len(row) for row in rows], dtype=np.int64))
    batches = shared_batches(
        [rows[i] for i in wanted.tolist()],
        starts[wanted],
        batch_tokens=batch_tokens or _BATCH_TOKENS[model.head_weight.device.type],
        tree_tokens=model.tree_tokens,
        segment_cost=model.segment_cost(),
    )
    done = len(rows) - len(wanted)
    for batch in batches:
        log_probs_E = np.append(_log_probs(model, batch, precision), 0.0)
        scores[wanted[batch.rows_n]] = log_probs_E[batch.predictions_nL].sum(1)
        done += len(batch.rows_n)
        if on_progress is not None:
            on_progress(done, len(rows))
    return scores


@torch.inference_mode()
def _log_probs(model: LanguageModel, batch: Batch, precision: Precision) -> np.ndarray:
    """Log-probabilities [E] of a batch's predictions."""
    weight_VD = model.head_weight
    device = weight_VD.device
    tokens_T, targets_E = (torch.from_numpy(x).to(device) for x in (batch.tokens_T, batch.targets_E))
    # Several predictions can be made after one token: it goes through the head once.
    sources, counts = np.unique(batch.sources_E, return_counts=True)
    with _exact_products():
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            hidden_TD = model.read_forest(tokens_T, batch.forest)
        with torch.autocast(device.type, enabled=False):
            hidden_ND = hidden_TD[torch.from_numpy(sources).to(device)].float()
            head_DV = weight_VD[: model.vocab_size].float().T.contiguous()
            return _picked(hidden_ND, head_DV, targets_E, counts).cpu().numpy()


def _picked(hidden_ND: Tensor, head_DV: Tensor, targets_E: Tensor, counts_N: np.ndarray) -> Tensor:
    """log softmax(hidden @ head)[target], float64 [E]; the first ``counts_N[0]`` targets are of the first position.

    One small buffer of logits is used in place again and again.
    """
    positions = _HEAD_POSITIONS[hidden_ND.device.type]
    buffer_nV = hidden_ND.new_empty(min(positions, len(hidden_ND)), head_DV.shape[1])
    log_probs_E = torch.empty(len(targets_E), dtype=torch.float64, device=hidden_ND.device)
    row_E = torch.from_numpy(np.repeat(np.arange(len(counts_N)) % positions, counts_N)).to(hidden_ND.device)
    offsets = np.concatenate([[0], counts_N.cumsum()])
    for start in range(0, len(hidden_ND), positions):
        stop = min(start + positions, len(hidden_ND))
        part = slice(int(offsets[start]), int(offsets[stop]))
        logits_nV = torch.mm(hidden_ND[start:stop], head_DV, out=buffer_nV[: stop - start])
        chosen_e = logits_nV[row_E[part], targets_E[part]]
        largest_n1 = logits_nV.amax(1, keepdim=True)
        log_sum_n = logits_nV.sub_(largest_n1).exp_().sum(1).log_()
        log_probs_E[part] = (chosen_e - largest_n1[:, 0][row_E[part]]) - log_sum_n[row_E[part]]
    return log_probs_E


@contextmanager
def _exact_products() -> Iterator[None]:
    """Full float32 products, also in a process that has allowed itself faster ones for training."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
