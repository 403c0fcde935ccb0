from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from architectures import CONFIGS, lively
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hgrnx.config import HGRN2Config
from hgrnx.errors import UserError
from hgrnx.models import LanguageModel, build_model, generation
from hgrnx.models.generation import Sampling, complete_texts, generate, generate_batch, pick, stream_text

GREEDY = Sampling(temperature=0)
PROMPTS = [[5, 9, 11], [3], [7, 7, 40, 41, 42, 43, 9], [100, 3, 8], [3]]


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
    for token in generate(model, ids, 8, GREEDY):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


def test_seed_decides_the_sample(model: LanguageModel) -> None:
    torch.manual_seed(0)
    first = list(generate(model, [3], 20, Sampling(seed=1)))
    torch.manual_seed(1)
    assert first == list(generate(model, [3], 20, Sampling(seed=1)))
    assert first != list(generate(model, [3], 20, Sampling(seed=2)))
    assert max(first) < 259


def test_stops_after_the_end(model: LanguageModel) -> None:
    free = list(generate(model, [3], 20, GREEDY))
    stopped = list(generate(model, [3], 20, GREEDY, eos_id=free[4]))
    assert stopped == free[: free.index(free[4]) + 1]


def test_cuts_keep_the_likeliest_tokens() -> None:
    logits = torch.tensor([0.1, 0.2, 0.4, 0.3]).log()
    generator = torch.Generator().manual_seed(0)

    def drawn(top_k: int | None, top_p: float | None) -> set[int]:
        return {pick(logits, Sampling(1.0, top_k, top_p), generator) for _ in range(200)}

    assert drawn(None, None) == {0, 1, 2, 3}
    assert drawn(2, None) == {2, 3}
    assert drawn(None, 0.65) == {2, 3}
    assert drawn(None, 0.75) == {1, 2, 3}
    assert drawn(1, 0.9) == {2}
    assert drawn(None, 0.01) == {2}


def test_gradients_stay_on_between_tokens(model: LanguageModel) -> None:
    for _ in generate(model, [3], 2, GREEDY):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("arguments", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        Sampling(**arguments)  # type: ignore[arg-type]


def test_prompts_without_tokens_or_with_strange_ones_are_refused(model: LanguageModel) -> None:
    with pytest.raises(UserError, match="at least one token"):
        generate(model, [], 1, GREEDY)
    with pytest.raises(UserError, match="0 to 258"):
        generate(model, [259], 1, GREEDY)
    with pytest.raises(UserError, match="at least one token"):
        generate_batch(model, [[1], []], 1, GREEDY)


def test_text_is_streamed_in_whole_characters(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def scripted(*arguments: object) -> Iterator[int]:
        given.extend(arguments)
        yield from tokenizer.encode(" né ∑x", add_special_tokens=False).ids

    monkeypatch.setattr(generation, "generate", scripted)
    pieces = list(stream_text(model, tokenizer, "a line\nanother", 40, Sampling(0.5, 3, 0.9, seed=7)))
    assert "".join(pieces) == " né ∑x"
    assert pieces == list(" né ∑x"), "one piece per character, however many bytes it has"
    prompt = tokenizer.encode(" a line\n another", add_special_tokens=False).ids
    assert given == [model, [0, *prompt], 40, Sampling(0.5, 3, 0.9, seed=7), 1]


def test_tokenizer_without_begin_is_refused(model: LanguageModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="<bos>"):
        list(stream_text(model, tokenizer, "", 1, GREEDY, bos="<bos>"))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_batch_gives_what_each_prompt_gives_alone(architecture: str) -> None:
    """Rows end at different lengths, and leave the batch."""
    model = lively(CONFIGS[architecture], vocab_size=259)
    alone = [list(generate(model, ids, 12, GREEDY)) for ids in PROMPTS]
    assert generate_batch(model, PROMPTS, 12, GREEDY) == alone
    eos_id = alone[0][5]
    ended = [list(generate(model, ids, 12, GREEDY, eos_id)) for ids in PROMPTS]
    assert len(set(map(len, ended))) > 1, "some end before others"
    assert generate_batch(model, PROMPTS, 12, GREEDY, eos_id) == ended


def test_samples_of_a_prompt_differ_and_batches_do_not_change_them(model: LanguageModel) -> None:
    drawn = generate_batch(model, PROMPTS, 10, Sampling(3.0, top_k=50, seed=4), samples=3)
    assert len({tuple(row) for row in drawn}) == 15
    assert drawn == generate_batch(model, PROMPTS, 10, Sampling(3.0, top_k=50, seed=4), samples=3)
    assert drawn[6:] == generate_batch(model, PROMPTS[2:], 10, Sampling(3.0, top_k=50, seed=4), samples=3, first=2)
    assert drawn != generate_batch(model, PROMPTS, 10, Sampling(3.0, top_k=50, seed=5), samples=3)
    one = generate_batch(model, PROMPTS[:1], 10, Sampling(3.0, top_k=50, seed=4))
    assert one[0] == list(generate(model, PROMPTS[0], 10, Sampling(3.0, top_k=50, seed=4))) == drawn[0]


def test_texts_of_a_batch_are_those_of_the_stream(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_BATCH_PROMPTS", 2)
    prompts = ["a", "the dog barks", "", "two\nlines", "é"]
    texts = list(complete_texts(model, tokenizer, prompts, 9, GREEDY, samples=2))
    for prompt, (first, second) in zip(prompts, texts, strict=True):
        wanted = generate(model, generation._prompt_ids(tokenizer, prompt, "<s>"), 9, GREEDY, 1)
        assert first == second == tokenizer.decode(list(wanted))


def test_the_state_does_not_grow(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()
    rows = model.rows

    def watched(*arguments: object) -> object:
        hidden, state = rows(*arguments)  # type: ignore[arg-type]
        leaves = torch.utils._pytree.tree_leaves(state)
        sizes.add(sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor)))
        return hidden, state

    monkeypatch.setattr(model, "rows", watched)
    generate_batch(model, [[3] * 30, [3]], 40, GREEDY)
    assert len(sizes) == 1 and min(sizes) > 0
