"""A language model with a linear head on each text's last token.

Texts of a batch are packed one after the other into a single row (``cu_seqlens``), so no padding is computed
where the architecture can do without.

Shapes: N texts, T tokens of all of them, D model width, C classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hgrnx.errors import UserError
from hgrnx.evaluation.scoring import Precision
from hgrnx.models import LanguageModel

Texts = Sequence[tuple[str, str | None]]
"""One text and possibly a second one for each row."""

# Bounds memory. A CPU is fastest while its caches hold the activations.
BATCH_TOKENS = defaultdict(lambda: 8192, cpu=2048)
"""Tokens, padding included, that go through the model at once, by kind of device."""

_ENCODED_AT_ONCE = 10_000
_SPREAD = 0.02  # initializer_range of transformers' models


class Classifier(nn.Module):
    """The scores of ``classes`` classes from the hidden state of a text's last token; all weights can be trained.

    As transformers' ``...ForSequenceClassification`` of decoders, which the BabyLM pipeline uses: no bias, weights
    N(0, 0.02), decided by ``generator`` alone.
    """

    def __init__(self, model: LanguageModel, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.model = model
        self.undecayed = model.undecayed
        # Without torch's own initial values, which would be drawn from the global random state.
        self.score = nn.utils.skip_init(nn.Linear, model.head_weight.shape[1], classes, bias=False)
        with torch.no_grad():
            self.score.weight.normal_(0.0, _SPREAD, generator=generator)

    @property
    def device(self) -> torch.device:
        return self.score.weight.device

    def forward(self, tokens_1T: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Logits [N, C], float32, of the texts packed into ``tokens_1T`` at the offsets ``cu_seqlens`` [N + 1]."""
        hidden_1TD, _ = self.model.hidden(tokens_1T, cu_seqlens)
        last_ND = hidden_1TD[0, cu_seqlens[1:] - 1]
        with torch.autocast(last_ND.device.type, enabled=False):  # bfloat16 logits would tie
            return self.score(last_ND.float())


def encode_texts(
    tokenizer: Any, bos_id: int, texts: Texts, *, max_length: int, separator: str = "\n"
) -> list[np.ndarray]:
    """Token ids of each row: BOS, the first text, then the separator and the second text where there is one.

    Each text has a space before it, like every line of the training text. Rows longer than ``max_length`` lose
    tokens at the end of the longer text first, as the tokenizers library's ``longest_first`` has it.

    Raises:
        UserError: ``separator`` leaves no room for the texts.
    """
    firsts = _token_ids(tokenizer, [first for first, _ in texts])
    seconds = iter(_token_ids(tokenizer, [second for _, second in texts if second is not None]))
    begin, between = np.array([bos_id]), np.array(tokenizer.encode(separator, add_special_tokens=False).ids, np.int64)
    room = max_length - 1 - len(between)
    if room < 2:
        raise UserError(
            f"The separator {separator!r} is {len(between)} tokens long, too many for max_length={max_length}."
        )
    rows = []
    for first, (_, text) in zip(firsts, texts, strict=True):
        if text is None:
            rows.append(np.concatenate([begin, first[: max_length - 1]]))
        else:
            second = next(seconds)
            keep, keep_second = longest_first(len(first), len(second), room)
            rows.append(np.concatenate([begin, first[:keep], between, second[:keep_second]]))
    return rows


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text with a space before it, int64; by and by, because the library's encodings are large."""
    rows: list[np.ndarray] = []
    for start in range(0, len(texts), _ENCODED_AT_ONCE):
        part = [" " + text for text in texts[start : start + _ENCODED_AT_ONCE]]
        encoded = tokenizer.encode_batch_fast(part, add_special_tokens=False)
        rows += [np.array(encoding.ids, dtype=np.int64) for encoding in encoded]
    return rows


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens to keep of two texts so that both fit into ``room``: the longer one gives way."""
    if first + second <= room:
        return first, second
    short = min(first, second)
    if short <= room - short:  # cutting the longer one is enough
        return (first, room - first) if first <= second else (room - second, second)
    half, rest = divmod(room, 2)
    return (half, half + rest) if first <= second else (half + rest, half)


def pack(rows: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """``rows`` one after the other as ``tokens_1T``, and their offsets ``cu_seqlens`` [N + 1]."""
    offsets = np.cumsum([0, *map(len, rows)])
    return torch.from_numpy(np.concatenate(rows))[None].to(device), torch.from_numpy(offsets).to(device)


@torch.no_grad()
def class_logits(
    classifier: Classifier,
    rows: Sequence[np.ndarray],
    *,
    precision: Precision = "fp32",
    batch_tokens: int | None = None,
) -> np.ndarray:
    """Logits [N, C], float32, in the order of ``rows``.

    ``batch_tokens`` bounds memory and changes no logit beyond rounding. The classifier's training mode is restored.
    """
    training = classifier.training
    classifier.eval()
    device = classifier.device
    logits_NC = np.zeros((len(rows), classifier.score.out_features), dtype=np.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        for part in length_buckets([len(row) for row in rows], batch_tokens or BATCH_TOKENS[device.type]):
            logits_NC[part] = classifier(*pack([rows[index] for index in part], device)).cpu().numpy()
    classifier.train(training)
    return logits_NC


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
