"""The store of a teacher's signal: what is written is read, and what is damaged is seen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrnx.data.signals import SignalLayout, SignalStore, StoredSignal
from hgrnx.errors import UserError

SETTINGS: dict[str, Any] = {"seq_len": 5, "k": 3, "vocab_size": 70, "values": "float16", "teacher": "a"}


def made(layout: SignalLayout, chunks: list[int], seed: int = 0) -> StoredSignal:
    """A signal that differs from chunk to chunk."""
    signal = layout.empty(len(chunks))
    for row, chunk in enumerate(chunks):
        generator = np.random.default_rng([seed, chunk])
        for array in signal:
            array[row] = generator.integers(0, min(layout.vocab_size, 50_000), array.shape[1:])
    return signal


def store(folder: Path, *shards: list[int], **changes: object) -> SignalStore:
    opened = SignalStore(folder, {**SETTINGS, **changes})
    for chunks in shards:
        opened.write(chunks, made(opened.layout, chunks))
    opened.open()
    return opened


def bins(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shards=st.lists(st.lists(st.integers(0, 10_000), min_size=1, max_size=6, unique=True), max_size=4),
    seq_len=st.integers(1, 9),
    k=st.integers(1, 6),
    vocab_size=st.sampled_from([6, 1 << 16, (1 << 16) + 1]),
    values=st.sampled_from(["float16", "float32"]),
    data=st.data(),
)
def test_what_is_written_is_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[list[int]],
    seq_len: int,
    k: int,
    vocab_size: int,
    values: str,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("signals") / "a"
    changes = {"seq_len": seq_len, "k": k, "vocab_size": vocab_size, "values": values}
    store(folder, *shards, **changes)
    again = store(folder, **changes)
    there = sorted({chunk for chunks in shards for chunk in chunks})
    assert again.missing(np.array([*there, 10_001])).tolist() == [10_001]
    order = data.draw(st.permutations(there))
    read, wanted = again.read(order), made(again.layout, order)
    for ours, true in zip(read, wanted, strict=True):
        assert ours.dtype == true.dtype and np.array_equal(ours, true)
    bytes_of = [len(chunks) * seq_len * again.layout.bytes_per_token for chunks in shards]
    assert sum(path.stat().st_size for path in bins(folder)) <= sum(bytes_of)  # of two equal shards one is kept
    assert read.ids_BTk.dtype == (np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def test_shards_that_come_later_are_found(tmp_path: Path) -> None:
    early = store(tmp_path, [1, 2])
    store(tmp_path, [3])
    assert early.missing(np.arange(1, 4)).tolist() == [3]
    early.open()
    assert not len(early.missing(np.arange(1, 4)))
    assert early.written([1, 2]) and not early.written([1])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


def other_chunks(path: Path) -> None:
    described = path.with_suffix(".json")
    described.write_text(json.dumps({**json.loads(described.read_text()), "chunks": [8, 9]}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"00000003-\w+\.bin has 219 bytes instead of 220\. Start the job again"),
        (alter, r"\.bin was altered: its SHA-256"),
        (Path.unlink, r"\.bin is missing"),
        (lambda path: path.with_suffix(".json").write_text('{"chunks": [3'), r"\.json is damaged"),
        (other_chunks, r"is not what 00000003-\w+\.json describes"),
    ],
)
def test_a_damaged_shard_is_refused_by_name_and_can_be_made_again(damage: Any, message: str, tmp_path: Path) -> None:
    store(tmp_path, [1, 2], [3])
    damage(bins(tmp_path)[1])
    with pytest.raises(UserError, match=message):
        store(tmp_path)
    repaired = SignalStore(tmp_path, SETTINGS)
    (problem,) = repaired.repair()
    assert "00000003" in problem
    assert repaired.missing(np.array([1, 2, 3])).tolist() == [3]
    assert len(bins(tmp_path)) == 1
    assert not len(store(tmp_path, [3]).missing(np.array([1, 2, 3])))


def test_a_touched_shard_is_looked_through_and_is_whole(tmp_path: Path) -> None:
    """As a copy to another disk is."""
    store(tmp_path, [1, 2])
    os.utime(bins(tmp_path)[0], ns=(1, 1))
    assert not len(store(tmp_path).missing(np.array([1, 2])))


def test_what_a_kill_left_is_no_shard_and_goes(tmp_path: Path) -> None:
    store(tmp_path, [1])
    whole = sorted(tmp_path.iterdir())
    (tmp_path / "00000002-0123456789ab.bin").write_bytes(b"written, not yet described")
    (tmp_path / "00000003-0123456789ab.bin.77.tmp").write_bytes(b"half")
    opened = store(tmp_path)
    assert opened.missing(np.array([1, 2, 3])).tolist() == [2, 3]
    assert opened.repair() == [] and sorted(tmp_path.iterdir()) == whole


def test_the_signal_of_something_else_is_refused(tmp_path: Path) -> None:
    store(tmp_path, [1])
    with pytest.raises(UserError, match="another teacher or text"):
        store(tmp_path, teacher="b")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        store(tmp_path)


def test_shards_are_neither_too_large_nor_empty() -> None:
    for layout in (SignalLayout(128, 32, 1024, "float16"), SignalLayout(512, 16_000, 16_000, "float32")):
        assert layout.shard_chunks >= 1
        assert layout.shard_chunks * layout.seq_len <= 1 << 16
    assert SignalLayout(1 << 20, 8, 100, "float16").shard_chunks == 1
    assert SignalLayout(128, 32, 1024, "float16").bytes_per_token == 32 * 4 + 8 * 4
