"""Log-probabilities of texts: how a benchmark's strings become tokens.

Every text follows BOS. What stands before it, and where a continuation begins, is the caller's choice; the defaults
are the BabyLM pipeline's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from hgrnx.evaluation.scoring import Precision, Progress, score_tokens
from hgrnx.models import LanguageModel

_T = TypeVar("_T")


class Scorer:
    """Scores texts with one model.

    Args:
        model: any language model, on any device; put into evaluation mode by the caller.
        tokenizer: a ``tokenizers.Tokenizer``.
        bos_id: id of the token before every text; not scored itself.
        precision: of the hidden states; logits and log-probabilities are float32 and their sums float64 always.
        batch_tokens: bounds memory, not the result; what suits the device when None.
        on_progress: called with texts done and texts in all.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Any,
        bos_id: int,
        precision: Precision = "fp32",
        batch_tokens: int | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.bos_id = bos_id
        self.precision: Precision = precision
        self.batch_tokens = batch_tokens
        self.on_progress = on_progress

    def strings(self, texts: Sequence[str], *, prefix: str = " ") -> np.ndarray:
        """Log-probability (nats, float64 [N]) of ``prefix`` + each text, after BOS.

        The BabyLM pipeline scores " " + sentence; BEAR's statements have no prefix. Equal texts are scored once.
        """
        places, inverse = _distinct(texts)
        rows = self._encode([prefix + text for text in places])
        return self._score(rows, np.ones(len(rows), dtype=np.int64))[inverse]

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Log-probability (nats, float64 [N]) of the continuation of each (context, continuation), after BOS.

        As in lm-eval's Hugging Face backend: spaces at the end of the context move to the continuation, both are
        encoded as one text, and the tokens beyond the context's own number count as the continuation's. Equal pairs
        are scored once.
        """
        places, inverse = _distinct(pairs)
        contexts, context_of = _distinct([context.rstrip() for context, _ in places])
        starts = np.array([len(row) for row in self._encode(contexts)], dtype=np.int64)[context_of]
        rows = self._encode([context + continuation for context, continuation in places])
        return self._score(rows, starts)[inverse]

    def token_counts(self, texts: Sequence[str], *, prefix: str = " ") -> np.ndarray:
        """How many tokens of ``prefix`` + each text :meth:`strings` sums over, int64 [N]."""
        return np.array([len(row) - 1 for row in self._encode([prefix + text for text in texts])])

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """BOS and the tokens of each text."""
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([self.bos_id, *encoding.ids], dtype=np.int64) for encoding in encoded]

    def _score(self, rows: Sequence[np.ndarray], starts: np.ndarray) -> np.ndarray:
        return score_tokens(
            self.model,
            rows,
            starts,
            batch_tokens=self.batch_tokens,
            precision=self.precision,
            on_progress=self.on_progress,
        )


def _distinct(items: Sequence[_T]) -> tuple[list[_T], np.ndarray]:
    """The items without repetition, and the place of each item among them."""
    places: dict[_T, int] = {}
    inverse = np.array([places.setdefault(item, len(places)) for item in items], dtype=np.int64)
    return list(places), inverse
