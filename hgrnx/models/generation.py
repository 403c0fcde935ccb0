"""Texts from a model, one token at a time, from its state: constant memory for all architectures but the Transformer.

Shapes: B prompts or rows, T tokens of the longest prompt, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hgrnx.errors import UserError
from hgrnx.models.base import LanguageModel

_BATCH_PROMPTS = 32


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    Raises:
        UserError: a value is out of range.
    """

    temperature: float = 1.0
    """0 takes the most likely token every time."""
    top_k: int | None = None
    """Draw among the k most likely tokens."""
    top_p: float | None = None
    """Draw among the most likely tokens that together reach this probability."""
    seed: int = 0
    """Decides the draws, whatever the global random state; each row has draws of its own."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"temperature={self.temperature} must be 0 or more.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} must be 1 or more.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be more than 0 and at most 1.")

    def generator(self, row: int) -> torch.Generator:
        """The source of the draws of a row."""
        return torch.Generator().manual_seed(int(np.random.SeedSequence([self.seed, row]).generate_state(1)[0]))


def stream_text(
    model: LanguageModel,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int,
    sampling: Sampling,
    *,
    bos: str = "<s>",
    eos: str = "</s>",
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` piece by piece, in whole characters; stops at the token ``eos``.

    ``tokenizer`` is a ``tokenizers.Tokenizer``. The text is continued as the training data wrote it: after ``bos``,
    each line beginning with a space.

    Raises:
        UserError: the tokenizer has no token ``bos``.
    """
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    ids = _prompt_ids(tokenizer, prompt, bos)
    for token in generate(model, ids, max_new_tokens, sampling, tokenizer.token_to_id(eos)):
        piece = stream.step(tokenizer, token)
        if piece:
            yield piece


def complete_texts(
    model: LanguageModel,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    samples: int = 1,
    bos: str = "<s>",
    eos: str = "</s>",
) -> Iterator[list[str]]:
    """Yield for each of ``prompts`` its ``samples`` continuations, as :func:`stream_text` would make them.

    Prompts go through the model several at a time, which does not change their texts.
    """
    eos_id = tokenizer.token_to_id(eos)
    ids = [_prompt_ids(tokenizer, prompt, bos) for prompt in prompts]
    for start in range(0, len(ids), _BATCH_PROMPTS):
        part = ids[start : start + _BATCH_PROMPTS]
        rows = generate_batch(model, part, max_new_tokens, sampling, eos_id, samples=samples, first=start)
        texts = tokenizer.decode_batch(rows, skip_special_tokens=True)
        yield from (texts[row : row + samples] for row in range(0, len(texts), samples))


def generate(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    eos_id: int | None = None,
) -> Iterator[int]:
    """Yield up to ``max_new_tokens`` ids that continue ``prompt_ids``; stops after yielding ``eos_id``.

    Args:
        model: any model, on any device; put into evaluation mode.
        prompt_ids: at least one token (BOS for an empty prompt).

    Raises:
        UserError: the prompt is empty or has an id that the model does not know.
    """
    _check_prompts(model, [prompt_ids])
    return (token for _, token in _generate(model, [prompt_ids], max_new_tokens, sampling, eos_id, 1, 0))


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    eos_id: int | None = None,
    *,
    samples: int = 1,
    first: int = 0,
) -> list[list[int]]:
    """What :func:`generate` yields for each of ``prompts``, ``samples`` rows for each one after the other.

    A row that has ended leaves the batch. Prompt i draws what prompt ``first + i`` of a larger batch would.
    """
    _check_prompts(model, prompts)
    rows: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    for row, token in _generate(model, prompts, max_new_tokens, sampling, eos_id, samples, first):
        rows[row].append(token)
    return rows


def _check_prompts(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
    for ids in prompts:
        if not ids or not all(0 <= token < model.vocab_size for token in ids):
            raise UserError(f"A prompt needs at least one token, with ids from 0 to {model.vocab_size - 1}.")


def _generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    eos_id: int | None,
    samples: int,
    first: int,
) -> Iterator[tuple[int, int]]:
    """Yield (row, token), a token of every row that has not ended in turn."""
    model.eval()
    device = model.head_weight.device
    rows = list(range(len(prompts) * samples))
    generators = [sampling.generator(first * samples + row) for row in rows]
    lengths_B = torch.tensor([len(ids) for ids in prompts], device=device)
    tokens_BT = torch.zeros(len(prompts), int(lengths_B.max()), dtype=torch.int64)
    for ids, tokens_T in zip(prompts, tokens_BT, strict=True):
        tokens_T[: len(ids)] = torch.tensor(ids)
    of_prompt = torch.tensor([row // samples for row in rows], device=device)
    with torch.no_grad():  # and not around the loop: a generator must not leave it switched off while it waits
        padded = None if int(lengths_B.min()) == tokens_BT.shape[1] else lengths_B
        hidden_BTD, state = model.rows(tokens_BT.to(device), padded, None)
    last_BD = hidden_BTD[of_prompt, lengths_B[of_prompt] - 1]
    if samples > 1:
        state = state.select(of_prompt)
    for step in range(1, max_new_tokens + 1):
        logits_BV = (last_BD @ model.head_weight[: model.vocab_size].to(last_BD.dtype).T).detach().float().cpu()
        picked = [pick(logits_V, sampling, generators[row]) for logits_V, row in zip(logits_BV, rows, strict=True)]
        yield from zip(rows, picked, strict=True)
        going = [place for place, token in enumerate(picked) if token != eos_id]
        if not going or step == max_new_tokens:
            return
        if len(going) < len(rows):
            state = state.select(torch.tensor(going, device=device))
            rows, picked = [rows[place] for place in going], [picked[place] for place in going]
        with torch.no_grad():
            hidden_BTD, state = model.rows(torch.tensor(picked, device=device)[:, None], None, state)
        last_BD = hidden_BTD[:, -1]


def pick(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token from softmax(logits / temperature), cut to ``top_k`` and then to ``top_p``."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probabilities_V, order_V = (logits_V / sampling.temperature).softmax(0).sort(descending=True, stable=True)
    if sampling.top_k is not None:
        probabilities_V = probabilities_V[: sampling.top_k] / probabilities_V[: sampling.top_k].sum()
    if sampling.top_p is not None:  # the token that crosses the threshold belongs to the set
        probabilities_V = probabilities_V[probabilities_V.cumsum(0) - probabilities_V < sampling.top_p]
    return int(order_V[torch.multinomial(probabilities_V, 1, generator=generator)])


def _prompt_ids(tokenizer: Any, prompt: str, bos: str) -> list[int]:
    bos_id = tokenizer.token_to_id(bos)
    if bos_id is None:
        raise UserError(f"The tokenizer has no token '{bos}', with which every text begins.")
    text = "".join(f" {line}" for line in prompt.splitlines(keepends=True))
    return [bos_id, *tokenizer.encode(text, add_special_tokens=False).ids]
