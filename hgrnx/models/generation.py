"""Text from a model, one token at a time, from its state: constant memory for all architectures but the Transformer.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hgrnx.errors import UserError
from hgrnx.models.base import LanguageModel


def stream_text(
    model: LanguageModel,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    bos: str = "<s>",
    eos: str = "</s>",
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` piece by piece, in whole characters; stops at the token ``eos``.

    ``tokenizer`` is a ``tokenizers.Tokenizer``; the other arguments are those of :func:`generate`. The text is
    continued as the training data wrote it: after ``bos``, each line beginning with a space.

    Raises:
        UserError: an argument is out of range, or the tokenizer has no token ``bos``.
    """
    from tokenizers.decoders import DecodeStream

    bos_id, eos_id = tokenizer.token_to_id(bos), tokenizer.token_to_id(eos)
    if bos_id is None:
        raise UserError(f"The tokenizer has no token '{bos}', with which every text begins.")
    text = "".join(f" {line}" for line in prompt.splitlines(keepends=True))
    ids = [bos_id, *tokenizer.encode(text, add_special_tokens=False).ids]
    stream = DecodeStream(skip_special_tokens=True)
    for token in generate(model, ids, max_new_tokens, temperature, top_k, top_p, seed, eos_id):
        piece = stream.step(tokenizer, token)
        if piece:
            yield piece


def generate(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_id: int | None = None,
) -> Iterator[int]:
    """Yield up to ``max_new_tokens`` ids that continue ``prompt_ids``; stops after yielding ``eos_id``.

    Args:
        model: any model, on any device; put into evaluation mode.
        prompt_ids: at least one token (BOS for an empty prompt).
        temperature: 0 takes the most likely token every time.
        top_k: sample among the k most likely tokens.
        top_p: sample among the most likely tokens that together reach this probability.
        seed: decides the sample, whatever the global random state.

    Raises:
        UserError: an argument is out of range.
    """
    if not prompt_ids or not all(0 <= token < model.vocab_size for token in prompt_ids):
        raise UserError(f"A prompt needs at least one token, with ids from 0 to {model.vocab_size - 1}.")
    if temperature < 0:
        raise UserError(f"temperature={temperature} must be 0 or more.")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k} must be 1 or more.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} must be more than 0 and at most 1.")
    return _generate(model, list(prompt_ids), max_new_tokens, temperature, top_k, top_p, seed, eos_id)


def _generate(
    model: LanguageModel,
    ids: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    eos_id: int | None,
) -> Iterator[int]:
    model.eval()
    device = model.head_weight.device
    generator = torch.Generator().manual_seed(seed)
    state = None
    for _ in range(max_new_tokens):
        with torch.no_grad():  # inside the loop: a generator must not leave it switched off while it waits
            hidden_BTD, state = model.hidden(torch.tensor([ids], device=device), state=state)
            last_D = hidden_BTD[0, -1]
            logits_V = (model.head_weight[: model.vocab_size].to(last_D.dtype) @ last_D).float().cpu()
        token = pick(logits_V, temperature, top_k, top_p, generator)
        yield token
        if token == eos_id:
            return
        ids = [token]


def pick(
    logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    """Draw a token from softmax(logits / temperature), cut to ``top_k`` and then to ``top_p``."""
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities_V, order_V = (logits_V / temperature).softmax(0).sort(descending=True, stable=True)
    if top_k is not None:
        probabilities_V = probabilities_V[:top_k] / probabilities_V[:top_k].sum()
    if top_p is not None:  # the token that crosses the threshold belongs to the set
        probabilities_V = probabilities_V[probabilities_V.cumsum(0) - probabilities_V < top_p]
    return int(order_V[torch.multinomial(probabilities_V, 1, generator=generator)])
