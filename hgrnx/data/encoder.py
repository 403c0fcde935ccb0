"""Documents to tokens, several times as fast as the tokenizer alone: every distinct word is encoded once.

GPT-2's splitting never joins what lies on both sides of a space that is followed by a character other than white
space: the space belongs to what follows. So the tokens of a text are those of the pieces between such spaces, and a
dictionary from pieces to tokens does most of the work, since a few pieces make up most of any text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hgrnx.data.tokenizer import BOS, token_byte_lengths, token_dtype

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_DOCUMENT = b"\xff"  # occurs in no UTF-8 text
# White space as the tokenizer sees it (Unicode's White_Space), in UTF-8. str.split() takes U+001C to U+001F as well.
_SPACE = rb"[\t-\r ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"  # fmt: skip
_BEGINS_WITH_SPACE = re.compile(_SPACE)
_CUT = re.compile(rb" (?!" + _SPACE + rb")")
_SPLIT_SPACES = np.array([chr(point).isspace() for point in range(0x3001)])  # U+3000 is the last white space
_MOST_PIECES, _MOST_PIECE_BYTES = 2**19, 2**24  # then the dictionary begins anew, so that memory is bounded


class Encoded(NamedTuple):
    """Documents one after the other."""

    tokens: np.ndarray
    """uint16 or uint32 ``[tokens]``; each document begins with BOS."""
    word_starts: np.ndarray
    """uint8 ``[tokens]``: words, by white space, that begin in each token."""
    doc_tokens: np.ndarray
    """int64 ``[documents]``: tokens of each."""


class DocumentEncoder:
    """Encodes raw documents with ``tokenizer``, a byte-level BPE as :mod:`hgrnx.data.tokenizer` makes and accepts it.

    The result is that of ``tokenizer.encode(model_text(document))`` behind BOS, whatever was encoded before.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bos_id = tokenizer.get_vocab()[BOS]
        self._byte_lengths = token_byte_lengths(tokenizer)
        self._dtype = token_dtype(len(self._byte_lengths))
        self._forget()

    def encode(self, documents: Sequence[bytes]) -> Encoded:
        """Encode documents, each UTF-8 text of lines that end in a newline; about 1 MB at once is a good amount."""
        assert all(document.endswith(b"\n") for document in documents)
        text = _DOCUMENT + _DOCUMENT.join(documents)
        text = text.replace(b"\n", b"\n ")[:-1].replace(_DOCUMENT, _DOCUMENT + b" ")
        if len(self._numbers) > _MOST_PIECES or self._piece_bytes > _MOST_PIECE_BYTES:
            self._forget()
        known = len(self._numbers)
        # Most text has no space before white space, and then both ways to cut it give the same pieces.
        numbers = self._numbers.of(text.split(b" "))
        if any(not piece or _BEGINS_WITH_SPACE.match(piece) for piece in self._numbers.pieces[known:]):
            self._numbers.cut_back(known)
            numbers = self._numbers.of(_CUT.split(text))
        if len(self._numbers) > known:
            self._learn(self._numbers.pieces[known:])
        sizes = self._sizes[numbers]
        ends = np.cumsum(sizes)
        places = np.repeat(self._starts[numbers] - (ends - sizes), sizes) + np.arange(ends[-1])
        tokens = self._tokens[places]
        doc_starts = np.flatnonzero(tokens == self._bos_id)
        return Encoded(tokens, self._word_starts[places], np.diff(doc_starts, append=len(tokens)))

    def _forget(self) -> None:
        self._numbers, self._piece_bytes = _Numbers(), 0
        self._sizes: np.ndarray = np.empty(0, np.int64)
        self._starts: np.ndarray = np.empty(0, np.int64)
        self._tokens: np.ndarray = np.empty(0, self._dtype)
        self._word_starts: np.ndarray = np.empty(0, np.uint8)

    def _learn(self, pieces: list[bytes]) -> None:
        """Encode new pieces and put them behind the known ones."""
        texts = [piece[1:] if piece.startswith(_DOCUMENT) else b" " + piece for piece in pieces]
        strings = [text.decode() for text in texts]
        encodings = self._tokenizer.encode_batch_fast(strings, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        for index, piece in enumerate(pieces):
            if piece.startswith(_DOCUMENT):
                ids[index] = [self._bos_id, *ids[index]]
        sizes = np.array([len(tokens) for tokens in ids], dtype=np.int64)
        tokens = np.fromiter(chain.from_iterable(ids), dtype=self._dtype, count=int(sizes.sum()))
        word_starts = count_word_starts("".join(strings), tokens, self._byte_lengths)
        starts = len(self._tokens) + np.cumsum(sizes) - sizes
        self._sizes = np.concatenate([self._sizes, sizes])
        self._starts = np.concatenate([self._starts, starts])
        self._tokens = np.concatenate([self._tokens, tokens])
        self._word_starts = np.concatenate([self._word_starts, word_starts])
        self._piece_bytes += sum(map(len, pieces))


class _Numbers(dict[bytes, int]):
    """Numbers pieces in the order in which they are first met."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def __missing__(self, piece: bytes) -> int:
        number = self[piece] = len(self.pieces)
        self.pieces.append(piece)
        return number

    def of(self, pieces: list[bytes]) -> np.ndarray:
        return np.fromiter(map(self.__getitem__, pieces), dtype=np.int64, count=len(pieces))

    def cut_back(self, count: int) -> None:
        for piece in self.pieces[count:]:
            del self[piece]
        del self.pieces[count:]


def count_word_starts(text: str, tokens: np.ndarray, byte_lengths: np.ndarray) -> np.ndarray:
    """How many words, as ``text.split()`` finds them, begin in each token; uint8 ``[tokens]``.

    Args:
        text: the encoded text; several texts one after the other if each but the first begins with white space.
        tokens: the ids whose bytes, one after the other, are the UTF-8 bytes of ``text`` (BOS has none).
        byte_lengths: :func:`token_byte_lengths`.

    Works on bytes, since a token may hold a part of a character: a word begins where its first byte lies, so each
    is counted exactly once.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    space = _SPLIT_SPACES[np.minimum(points, 0x3000)] & (points <= 0x3000)
    begins = ~space
    begins[1:] &= space[:-1]
    point_bytes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    start_bytes = (np.cumsum(point_bytes) - point_bytes)[begins]
    token_ends = np.cumsum(byte_lengths[tokens])
    assert token_ends[-1] == point_bytes.sum(), "the tokens do not spell the text"
    owners = np.searchsorted(token_ends, start_bytes, side="right")
    return np.bincount(owners, minlength=len(tokens)).astype(np.uint8)
