from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrnx.data.encoder import DocumentEncoder
from hgrnx.data.shards import ShardedArray, TokenSplit, write_shard
from hgrnx.data.tokenizer import model_text, train_tokenizer


def test_shards_hold_the_documents(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["an old owl\nat 7 a.m.! 字\n", "a  b   é🙂 🙂🙂\n\t x\n"] * 9, 330)
    documents = ["an owl\nat 7\n", "字 é\n", "a\u00a0b\x1cc\n"] * 5
    raw = [document.encode() for document in documents]
    parts = [[(0, raw[:4]), (1, raw[4:6])], [(1, raw[6:7]), (1, raw[7:])]]
    facts = [write_shard(tmp_path, number, DocumentEncoder(tokenizer), part) for number, part in enumerate(parts)]
    split = TokenSplit(tmp_path, np.dtype(np.uint16), [fact["totals"] for fact in facts])
    assert split.doc_offsets.dtype == split.doc_bytes.dtype == split.doc_words.dtype == np.int64
    assert split.documents == len(documents)
    assert len(split.tokens) == len(split.word_starts) == split.doc_offsets[-1]
    for number, document in enumerate(documents):
        begin, end = split.doc_offsets[number : number + 2]
        assert split.tokens[begin:end][0] == 0
        assert tokenizer.decode(split.tokens[begin + 1 : end].tolist()) == model_text(document)
        assert split.word_starts[begin:end].sum() == len(document.split())
        assert split.doc_bytes[number] == len(document.encode())
        assert split.doc_words[number + 1] == sum(len(text.split()) for text in documents[: number + 1])
    counts = {source: [fact["sources"].get(source, {}) for fact in facts] for source in "01"}
    for source, mine in (("0", documents[:4]), ("1", documents[4:])):
        assert sum(part.get("documents", 0) for part in counts[source]) == len(mine)
        assert sum(part.get("words", 0) for part in counts[source]) == sum(len(text.split()) for text in mine)
        assert sum(part.get("bytes", 0) for part in counts[source]) == sum(len(text.encode()) for text in mine)
    assert sum(fact["totals"]["tokens"] for fact in facts) == len(split.tokens)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(name for fact in facts for name in fact["files"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), max_size=6), st.data())
def test_parts_read_as_one_array(sizes: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(sizes)) ** 2 % 251
    array = ShardedArray(np.split(whole, np.cumsum(sizes)[:-1]) if sizes else [])
    assert len(array) == len(whole)
    assert np.array_equal(np.asarray(array), whole)
    start, stop = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))
    assert np.array_equal(array[start:stop], whole[start:stop])
    length = data.draw(st.integers(1, 12))
    count = data.draw(st.integers(0, len(whole) // length))
    expected = whole[: count * length].reshape(count, length).sum(axis=1)
    assert array.block_sums(length, count).tolist() == expected.tolist()


def test_only_consecutive_values() -> None:
    with pytest.raises(AssertionError, match="consecutive"):
        ShardedArray([np.arange(9)])[::2]
