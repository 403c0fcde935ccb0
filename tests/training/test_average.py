from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_engine import assert_equal, make_engine, take_step
from torch import Tensor

from hgrnx.models import build_model
from hgrnx.training.average import AveragingEngine
from hgrnx.training.checkpoint import load_checkpoint, load_weights, save_checkpoint


def by_hand(looks: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """The normalised sum of the definition, in float64."""
    shares = [decay ** (len(looks) - 1 - place) for place in range(len(looks))]
    return {
        name: sum(share * look[name].double() for share, look in zip(shares, looks, strict=True)) / sum(shares)
        for name in looks[0]
    }


def test_the_average_is_that_of_the_weights_looked_at() -> None:
    plain, averaging = make_engine(), AveragingEngine(make_engine(), half_life=6, every=2)
    looks = []
    for step in range(9):
        for engine in (plain, averaging):
            take_step(engine, step, learning_rate=1e-2)  # type: ignore[arg-type]
        if step % 2 == 1:
            looks.append(plain.weights())
        if step == 0:  # nothing was looked at yet
            assert_same(averaging.weights(), plain.weights())
    expected = by_hand(looks, 0.5 ** (2 / 6))
    found = averaging.weights()
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=0, atol=1e-6)
        assert weight.dtype == torch.float32
    assert any((found[name] - looks[-1][name]).abs().max() > 1e-3 for name in found)
    # The training itself is not touched.
    assert_same(averaging.engine.weights(), plain.weights())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("saved_at", [1, 3, 4])
def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path, saved_at: int) -> None:
    """Before the first look, between two, and at one."""
    through, first = (AveragingEngine(make_engine(micro=3), 3, 2) for _ in range(2))
    for step in range(7):
        take_step(through, step)  # type: ignore[arg-type]
    for step in range(saved_at):
        take_step(first, step)  # type: ignore[arg-type]
    folder = save_checkpoint(tmp_path, saved_at, first.state(), {}, keep=1)
    assert_same(load_weights(folder), first.weights())
    other = build_model(through.engine._module.model.config, 300, seed=77)  # type: ignore[attr-defined]
    second = AveragingEngine(make_engine(micro=3, model=other), 3, 2)
    second.load_state(load_checkpoint(folder)[0])
    for step in range(saved_at, 7):
        take_step(second, step)  # type: ignore[arg-type]
    assert_equal(second.state(), through.state())
    assert_equal(second.engine.state(), through.engine.state())


def test_a_step_that_is_left_out_does_not_count() -> None:
    spoilt, plain = (AveragingEngine(make_engine(), 3, 2) for _ in range(2))
    for step, scale in enumerate((1.0, float("nan"), 1.0)):
        take_step(spoilt, step, scale=scale)  # type: ignore[arg-type]
        if scale == 1.0:
            take_step(plain, step)  # type: ignore[arg-type]
    assert_equal(spoilt.state(), plain.state())
    assert "weights" in plain.state().optimizer
    spoilt.state().weights.clear()
    for weight in spoilt.state().weights.values():
        weight.fill_(float("nan"))  # a copy
    assert_equal(spoilt.state(), plain.state())
