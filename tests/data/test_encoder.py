from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hgrnx.data import encoder as encoder_module
from hgrnx.data.encoder import DocumentEncoder, count_word_starts
from hgrnx.data.sources import LineCounts, document_from_text
from hgrnx.data.tokenizer import model_text, token_byte_lengths, token_dtype, train_tokenizer

BOS_ID = 0
SPACES = [chr(point) for point in range(sys.maxunicode + 1) if chr(point).isspace()]
# Much white space of every kind, and characters of one to four bytes.
TEXT = st.text(
    st.sampled_from([*SPACES, " ", " ", "\n"]) | st.sampled_from("ab!7éß한字🙂\0\u200b") | st.characters(codec="utf-8")
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    # White space in all combinations, so that pieces of it become tokens: then it matters how runs are split.
    runs = ["a" + first + second + third + "b\n" for first in SPACES for second in SPACES for third in (" ", "\n", "")]
    return train_tokenizer(["an old owl\nat 7 a.m.! 字\n", "a  b   é🙂 🙂🙂\n\t x\n", *runs] * 9, 2_000)


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


# What the tokenizer's splitting looks at: white space in runs, contractions, digits, punctuation, marks.
UNTIDY = st.lists(
    st.sampled_from([*SPACES, " ", " ", " ", "\n", "\t"])
    | st.sampled_from(
        ["a", "'s", "'ll", "7", "!", "é", "e\u0301", "字", "한", "שלום", "\u200f", "🙂", "\0", "\ufeff", "<s>"]
    )
    | st.characters(codec="utf-8")
).map("".join)


def as_the_tokenizer_does(tokenizer: Tokenizer, document: str) -> list[int]:
    return [BOS_ID, *tokenizer.encode(model_text(document), add_special_tokens=False).ids]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(UNTIDY, max_size=4))
@example(["a\n", "\tb  c\n", "  \x85\u00a0 d \n e\u3000 \n"])
@example([" \x1ca \x1c\n"])
@example([f"x{a}{b}{c}y\n" for a in SPACES for b in (" ", "\u3000") for c in SPACES])
@example([space + "a" + space + " b" + space + space + "c " + space + "\n" for space in SPACES])
def test_the_tokens_are_the_tokenizers(tokenizer: Tokenizer, texts: list[str]) -> None:
    documents = [text for text in (document_from_text(text, LineCounts()) for text in texts) if text]
    if not documents:
        return
    encoder = DocumentEncoder(tokenizer)
    for _ in "ab":  # the second time from what it has learned
        encoded = encoder.encode([document.encode() for document in documents])
        expected = [as_the_tokenizer_does(tokenizer, document) for document in documents]
        assert encoded.tokens.tolist() == [token for tokens in expected for token in tokens]
        assert encoded.doc_tokens.tolist() == [len(tokens) for tokens in expected]
        ends = np.cumsum(encoded.doc_tokens)
        words = np.diff(np.cumsum(encoded.word_starts)[ends - 1], prepend=0)
        assert words.tolist() == [len(document.split()) for document in documents]


def test_what_was_encoded_before_does_not_matter(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f"an owl {number}\n  at 7 字 é{number}\n".encode() for number in range(50)]
    whole = DocumentEncoder(tokenizer).encode(documents)
    monkeypatch.setattr(encoder_module, "_MOST_PIECES", 7)  # forgets all the time
    encoder = DocumentEncoder(tokenizer)
    parts = [encoder.encode([document]) for document in documents]
    assert np.array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)
    assert np.array_equal(np.concatenate([part.word_starts for part in parts]), whole.word_starts)


def test_a_line_of_ten_megabytes(tokenizer: Tokenizer) -> None:
    document = "owl, " * 1_000_000 + "x" * 5_000_000 + "\n"
    encoded = DocumentEncoder(tokenizer).encode([document.encode()])
    assert tokenizer.decode(encoded.tokens[1:].tolist()) == model_text(document)
    assert encoded.word_starts.sum() == 1_000_001


def test_token_type_holds_every_id() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
