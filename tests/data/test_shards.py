from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hgrnx.data import shards
from hgrnx.data.shards import ShardWriter, count_word_starts, token_dtype
from hgrnx.data.sources import LineCounts, document_from_text
from hgrnx.data.tokenizer import BOS_ID, model_text, token_byte_lengths, train_tokenizer

SPACES = [chr(point) for point in range(sys.maxunicode + 1) if chr(point).isspace()]
# Much white space of every kind, and characters of one to four bytes.
TEXT = st.text(
    st.sampled_from([*SPACES, " ", " ", "\n"]) | st.sampled_from("ab!7éß한字🙂\0\u200b") | st.characters(codec="utf-8")
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["an old owl\nat 7 a.m.! 字\n", "a  b   é🙂 🙂🙂\n\t x\n"] * 9, 330)


def tokens_of(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.array([BOS_ID, *tokenizer.encode(text).ids])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXT)
@example("a\x1cb!\x1c!\x1d!")  # control characters that are white space, inside what the tokenizer keeps together
@example("🙂 字\u3000é\u00a0한")
def test_word_starts_are_the_words_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    document = document_from_text(text, LineCounts())
    if not document:
        assert not text.split()
        return
    encoded = model_text(document)
    tokens, lengths = tokens_of(tokenizer, encoded), token_byte_lengths(tokenizer)
    starts = count_word_starts(encoded, tokens, lengths)
    assert starts.sum() == len(text.split())
    # Any prefix of the tokens, cut where a character ends, holds the words that begin in that much of the text.
    ends = np.cumsum(lengths[tokens])
    for index, end in enumerate(ends):
        prefix = encoded.encode()[:end].decode(errors="ignore")
        if len(prefix.encode()) == end:
            assert starts[: index + 1].sum() == len(prefix.split())


def test_a_split_character_counts_once_where_its_first_byte_lies() -> None:
    bytes_only = train_tokenizer(["a\n"], 300)
    text = " 🦉 x\n"
    starts = count_word_starts(text, tokens_of(bytes_only, text), token_byte_lengths(bytes_only))
    #                       BOS  " "  the owl's four " "  x  \n
    assert starts.tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0]


def test_wrong_tokens_are_noticed(tokenizer: Tokenizer) -> None:
    with pytest.raises(AssertionError, match="do not spell"):
        count_word_starts(" ab\n", tokens_of(tokenizer, " abc\n"), token_byte_lengths(tokenizer))


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_shards_do_not_depend_on_the_chunks(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(shards, "_CHUNK_CHARACTERS", chunk)
    documents = ["an owl\nat 7\n", "字 é\n", "a\u00a0b\x1cc\n"] * 5
    with ShardWriter(tmp_path / "s", tokenizer) as writer:
        for number, document in enumerate(documents):
            writer.add(number % 2, document)
    tokens = np.fromfile(tmp_path / "s" / "tokens.bin", np.uint16)
    starts = np.fromfile(tmp_path / "s" / "word_starts.bin", np.uint8)
    offsets = np.load(tmp_path / "s" / "doc_offsets.npy")
    sizes = np.load(tmp_path / "s" / "doc_bytes.npy")
    assert offsets.dtype == sizes.dtype == np.int64
    assert len(starts) == len(tokens) == offsets[-1]
    for number, document in enumerate(documents):
        begin, end = offsets[number : number + 2]
        assert tokens[begin] == BOS_ID
        assert tokenizer.decode(tokens[begin + 1 : end].tolist()) == model_text(document)
        assert starts[begin:end].sum() == len(document.split())
        assert sizes[number] == len(document.encode())
    for source in (0, 1):
        mine = documents[source::2]
        counts = writer.counts[source]
        assert counts["documents"] == len(mine)
        assert counts["words"] == sum(len(document.split()) for document in mine)
        assert counts["bytes"] == sum(len(document.encode()) for document in mine)
    assert sum(counts["tokens"] for counts in writer.counts.values()) == len(tokens)


def test_token_type_holds_every_id() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
