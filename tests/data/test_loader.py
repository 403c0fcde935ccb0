from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.data.shards import ShardedArray
from hgrnx.errors import UserError

T, B = 32, 6
GOLDEN = [[21, 38, 0, 39, 16, 1], [17, 6, 11, 9, 8, 37], [16, 25, 10, 35, 18, 5]]


def loader(small: PreparedDataset, seed: int = 0, rank: int = 0, world_size: int = 1) -> TrainLoader:
    return TrainLoader(small, T, B, seed, rank, world_size)


def chunk_numbers(small: PreparedDataset, inputs: torch.Tensor) -> list[int]:
    """Which chunks of the stream these rows are."""
    tokens = small.split("train").tokens
    chunks = {bytes(tokens[i * T : (i + 1) * T].astype(np.int64)): i for i in range((len(tokens) - 1) // T)}
    assert len(chunks) == (len(tokens) - 1) // T, "the text of this test must have no two equal chunks"
    return [chunks[row.numpy().tobytes()] for row in inputs]


def test_an_epoch_is_a_permutation_of_the_chunks(small: PreparedDataset) -> None:
    batches = loader(small)
    tokens = small.split("train").tokens
    total = (len(tokens) - 1) // T
    assert batches.steps_per_epoch == total // B > 20
    orders = []
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
            batch = batches.batch(step)
            assert batch.inputs.shape == batch.targets.shape == (B, T)
            assert batch.inputs.dtype == batch.targets.dtype == torch.int64
            numbers = chunk_numbers(small, batch.inputs)
            assert batch.chunks == tuple(numbers)
            for row, number in enumerate(numbers):
                expected = tokens[number * T + 1 : (number + 1) * T + 1].astype(np.int64)
                assert batch.targets[row].numpy().tolist() == expected.tolist()
            seen += numbers
        assert len(set(seen)) == len(seen) == batches.steps_per_epoch * B
        orders.append(seen)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_a_batch_depends_on_seed_and_step_alone(small: PreparedDataset) -> None:
    walked = loader(small)
    steps = range(2 * walked.steps_per_epoch + 3)
    batches = [walked.batch(step) for step in steps]
    for step in reversed(steps):
        assert torch.equal(loader(small).batch(step).inputs, batches[step].inputs)
    assert not torch.equal(loader(small, seed=1).batch(0).inputs, batches[0].inputs)


def test_the_order_is_the_same_on_every_machine() -> None:
    """Another order would make interrupted runs continue on other text than they left off."""
    tokens = ShardedArray(np.split(np.arange(401), [55, 300]))
    stream = SimpleNamespace(tokens=tokens, word_starts=ShardedArray([np.ones(401, np.uint8)]), words=401)
    dataset = cast(PreparedDataset, SimpleNamespace(split=lambda name: stream, dir=Path("stream")))
    batches = TrainLoader(dataset, 10, 6, seed=3)
    assert [(batches.batch(step).inputs[:, 0] // 10).tolist() for step in (0, 5, 6)] == GOLDEN


@pytest.mark.parametrize("world_size", [1, 2, 3, 6, 8])
def test_workers_share_the_global_batch(small: PreparedDataset, world_size: int) -> None:
    B = 24 if world_size == 8 else 6
    alone = TrainLoader(small, T, B, 0)
    workers = [TrainLoader(small, T, B, 0, rank, world_size) for rank in range(world_size)]
    for step in (0, 1, alone.steps_per_epoch):
        parts = [worker.batch(step) for worker in workers]
        assert all(len(part.inputs) == B // world_size for part in parts)
        whole = alone.batch(step)
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    for worker in workers:
        assert worker.words_seen(7) == alone.words_seen(7)
        assert worker.valid_tokens(7) == alone.valid_tokens(7) == B * T


def test_chunks_are_read_by_number_and_known_in_advance(small: PreparedDataset) -> None:
    batches = loader(small)
    batch = batches.read([7, 0, 7])
    assert batch.chunks == (7, 0, 7) and chunk_numbers(small, batch.inputs) == [7, 0, 7]
    micros = batches.micro_batches(batch, 2)
    assert [micro.chunks for micro in micros] == [(7, 0), (7,)]
    for step in (0, 1, batches.steps_per_epoch, batches.steps_per_epoch + 2):
        seen = {chunk for before in range(step) for chunk in batches.batch(before).chunks}
        assert batches.chunks_before(step).tolist() == sorted(seen)


def test_words_seen_are_those_in_the_inputs(small: PreparedDataset) -> None:
    batches = loader(small)
    starts = small.split("train").word_starts
    seen = 0
    for step in range(2 * batches.steps_per_epoch + 2):
        assert batches.words_seen(step) == seen
        for number in chunk_numbers(small, batches.batch(step).inputs):
            seen += int(starts[number * T : (number + 1) * T].sum())
    # Nearly all words of the text in an epoch: only what fills no batch is missing.
    missing = small.split("train").words - batches.words_seen(batches.steps_per_epoch)
    assert 0 <= missing <= B * T
    assert loader(small).words_seen(2 * batches.steps_per_epoch + 2) == seen  # asked out of order


def test_durations(small: PreparedDataset) -> None:
    batches = loader(small)
    epoch = batches.steps_per_epoch
    assert batches.steps_for("7 steps") == 7
    assert batches.steps_for("3 epochs") == 3 * epoch
    assert batches.steps_for("0.001 epochs") == 1
    assert batches.epoch_of(batches.steps_for("2 epochs")) == 2.0
    words = batches.words_seen(epoch + 5)
    assert batches.steps_for(f"{words} words") == epoch + 5
    assert batches.steps_for(f"{words + 1} words") == epoch + 6
    assert batches.steps_for(f"{words - 1} words") == epoch + 5
    assert batches.steps_for(f"{batches.words_seen(epoch)} words") == epoch
    assert batches.steps_for("1 words") == 1
    with pytest.raises(UserError, match="'5%' is a share"):
        batches.steps_for("5%")


def test_too_little_text_and_wrong_workers(small: PreparedDataset) -> None:
    with pytest.raises(UserError, match=r"sequences of seq_len=1024, fewer than one batch of batch_size=64"):
        TrainLoader(small, 1024, 64, 0)
    with pytest.raises(UserError, match="multiple of the 4 workers"):
        loader(small, world_size=4)
    total = (len(small.split("train").tokens) - 1) // T
    assert TrainLoader(small, T, total, 0).steps_per_epoch == 1
    with pytest.raises(UserError, match="fewer than one batch"):
        TrainLoader(small, T, total + 1, 0)


def test_batches_are_made_ahead_in_order(small: PreparedDataset) -> None:
    batches = loader(small)
    last = batches.steps_per_epoch + 3
    for step, batch in enumerate(batches.batches(2, last), start=2):
        assert torch.equal(batch.inputs, loader(small).batch(step).inputs)
        assert batches.words_seen(step) == loader(small).words_seen(step)  # beside the thread
    assert step == last - 1


def test_the_thread_ends_with_the_loop(small: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    stream = loader(small).batches(0, 1_000_000)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    broken = loader(small)
    monkeypatch.setattr(broken, "batch", lambda step: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(broken.batches(0, 5))
    assert threading.active_count() == before


def test_states_are_reset_where_documents_begin(small: PreparedDataset) -> None:
    plain, packed = loader(small), TrainLoader(small, T, B, 0, reset_state="document")
    assert [micro.cu_seqlens for micro in plain.micro_batches(plain.batch(0), 4)] == [None, None]
    batch = packed.batch(0)
    assert torch.equal(batch.inputs, plain.batch(0).inputs)
    micros, reset = packed.micro_batches(batch, 4), 0
    assert [micro.inputs.shape for micro in micros] == [(1, 4 * T), (1, 2 * T)]
    for micro, rows in zip(micros, (slice(0, 4), slice(4, 6)), strict=True):
        inputs = batch.inputs[rows].flatten()
        assert torch.equal(micro.inputs[0], inputs) and torch.equal(micro.targets[0], batch.targets[rows].flatten())
        assert micro.cu_seqlens is not None and micro.chunks == batch.chunks[rows]
        reset += len(micro.cu_seqlens) - 1
        begins = [0, *(i for i in range(1, len(inputs)) if i % T == 0 or inputs[i] == small.bos_id), len(inputs)]
        assert micro.cu_seqlens.tolist() == begins
    assert reset > B  # some documents begin within a row
