from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hgrnx.config import HGRN2Config
from hgrnx.errors import UserError
from hgrnx.models import LanguageModel, build_model, generation
from hgrnx.models.generation import generate, pick, stream_text


@pytest.fixture
def model() -> LanguageModel:
    model = build_model(HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16), 259)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        model.head_weight[259:] = 100.0  # rows of the padding must never be drawn
    return model


@pytest.fixture
def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    return tokenizer


def test_greedy_takes_the_likeliest_token_of_the_whole_text(model: LanguageModel) -> None:
    ids = [5, 9, 11]
    for token in generate(model, ids, 8, temperature=0):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


def test_seed_decides_the_sample(model: LanguageModel) -> None:
    torch.manual_seed(0)
    first = list(generate(model, [3], 20, seed=1))
    torch.manual_seed(1)
    assert first == list(generate(model, [3], 20, seed=1))
    assert first != list(generate(model, [3], 20, seed=2))
    assert max(first) < 259


def test_stops_after_the_end(model: LanguageModel) -> None:
    free = list(generate(model, [3], 20, temperature=0))
    stopped = list(generate(model, [3], 20, temperature=0, eos_id=free[4]))
    assert stopped == free[: free.index(free[4]) + 1]


def test_cuts_keep_the_likeliest_tokens() -> None:
    logits = torch.tensor([0.1, 0.2, 0.4, 0.3]).log()
    generator = torch.Generator().manual_seed(0)

    def drawn(top_k: int | None, top_p: float | None) -> set[int]:
        return {pick(logits, 1.0, top_k, top_p, generator) for _ in range(200)}

    assert drawn(None, None) == {0, 1, 2, 3}
    assert drawn(2, None) == {2, 3}
    assert drawn(None, 0.65) == {2, 3}
    assert drawn(None, 0.75) == {1, 2, 3}
    assert drawn(1, 0.9) == {2}
    assert drawn(None, 0.01) == {2}


def test_gradients_stay_on_between_tokens(model: LanguageModel) -> None:
    for _ in generate(model, [3], 2):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("arguments", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_arguments_out_of_range_are_refused(model: LanguageModel, arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        generate(model, [1], 1, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one token"):
        generate(model, [], 1)
    with pytest.raises(UserError, match="0 to 258"):
        generate(model, [259], 1)


def test_text_is_streamed_in_whole_characters(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def scripted(*arguments: object) -> Iterator[int]:
        given.extend(arguments)
        yield from tokenizer.encode(" né ∑x", add_special_tokens=False).ids

    monkeypatch.setattr(generation, "generate", scripted)
    pieces = list(stream_text(model, tokenizer, "a line\nanother", 40, temperature=0.5, top_k=3, top_p=0.9, seed=7))
    assert "".join(pieces) == " né ∑x"
    assert pieces == list(" né ∑x"), "one piece per character, however many bytes it has"
    prompt = tokenizer.encode(" a line\n another", add_special_tokens=False).ids
    assert given == [model, [0, *prompt], 40, 0.5, 3, 0.9, 7, 1]


def test_tokenizer_without_begin_is_refused(model: LanguageModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="<bos>"):
        list(stream_text(model, tokenizer, "", 1, bos="<bos>"))
