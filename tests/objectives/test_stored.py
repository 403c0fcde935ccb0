"""A stored teacher says what the live one would."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hgrnx.config import SIGNAL_TEMPERATURES, HGRN2Config
from hgrnx.models import LanguageModel, build_model
from hgrnx.objectives import Distillation, LiveTeacher, ObjectiveModule, StoredTeacher
from hgrnx.objectives.stored import TopK, rest_weights, top_k_of

VOCAB = 90
CONFIG = HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16)


class Memory:
    """A store that keeps its one batch in memory."""

    def __init__(self, top_k: TopK, batch: int, values: str) -> None:
        rest, top, ids = (x.reshape(batch, -1, x.shape[1]).numpy() for x in top_k)
        self.arrays = rest, top.astype(values), ids.astype(np.uint16)

    def read(self, chunks: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rest, top, ids = (array[list(chunks)] for array in self.arrays)
        return rest, top, ids


def model(seed: int) -> LanguageModel:
    made = build_model(CONFIG, VOCAB, seed)
    with torch.no_grad():  # far from the uniform distribution of a fresh model
        for parameter in made.parameters():
            parameter.mul_(6)
        made.head_weight[VOCAB:] = 9.0  # the vocabulary's padding must not matter
    return made


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, VOCAB, (4, 14), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def stored(teacher: LiveTeacher, k: int, values: str) -> StoredTeacher:
    inputs, _ = batch()
    models = teacher.signal(inputs).models
    assert models is not None
    hidden, head, _ = models[0]
    return StoredTeacher(Memory(top_k_of(hidden, head, VOCAB, k), len(inputs), values), VOCAB)


def losses(teacher: LiveTeacher | StoredTeacher, T: float, rows: list[int], precision: str = "fp32") -> list[Tensor]:
    student = model(0)
    inputs, targets = (x[rows] for x in batch())
    objective = ObjectiveModule(student, Distillation(teacher, 0.7, T))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        output = objective(inputs, targets, None, rows)
    output.loss_sum.backward()
    gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    return [output.loss_sum.detach(), output.metrics["kl"], gradient]


@pytest.mark.parametrize("T", [0.5, 1.0, 1.7, 2.0, 3.0])
@pytest.mark.parametrize(("values", "off"), [("float32", 1e-6), ("float16", 1e-4)])
def test_all_entries_stored_are_the_live_teacher(T: float, values: str, off: float) -> None:
    live = LiveTeacher([model(1)])
    for rows in ([0, 1, 2, 3], [2, 0]):
        for ours, true in zip(losses(stored(live, VOCAB, values), T, rows), losses(live, T, rows), strict=True):
            assert (ours - true).norm() <= 3 * off * true.norm() if ours.ndim else abs(ours - true) <= off * abs(true)


@pytest.mark.parametrize("k", [VOCAB, 8])
def test_a_bfloat16_teacher_rounds_as_the_live_one(k: int) -> None:
    """Its logits are bfloat16's, and the stored ones are exactly these."""
    live = LiveTeacher([model(1)], precision="bf16")
    reader = stored(live, k, "float32")
    ours, true = (losses(teacher, 2.0, [0, 1, 2, 3], "bf16") for teacher in (reader, live))
    if k == VOCAB:
        torch.testing.assert_close(ours[:2], true[:2], rtol=1e-4, atol=0)
        assert (ours[2] - true[2]).norm() < 1e-3 * true[2].norm()
    else:
        assert ours[1] < true[1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    V=st.integers(1, 300), k=st.integers(1, 300), T=st.sampled_from(SIGNAL_TEMPERATURES), scale=st.floats(0.01, 40),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_stored_probabilities_are_the_teachers(V: int, k: int, T: float, scale: float, seed: int) -> None:
    """At a stored temperature, to rounding, whatever the logits: of each entry, and of all that are not stored."""
    k = min(k, V)
    generator = torch.Generator().manual_seed(seed)
    hidden, head = (scale**0.5 * torch.randn(rows, 6, generator=generator) for rows in (7, V + 2))
    probs = ((hidden @ head.T)[:, :V].double() / T).softmax(1)
    signal = StoredTeacher(Memory(top_k_of(hidden, head, V, k), 1, "float32"), V).signal(
        torch.zeros(1, 7), chunks=[0], temperature=T
    )
    assert signal.top_k is not None
    ids, top, rest = signal.top_k
    ours = torch.cat([top.double() / T, rest[:, None].double()], 1).softmax(1)
    torch.testing.assert_close(ours[:, :k], probs.gather(1, ids.long()), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours[:, k], probs.scatter(1, ids.long(), 0).sum(1), rtol=1e-3, atol=1e-6)
    assert (ours[:, :k].diff() <= 1e-12).all() and ids.sort(1).values.diff().ne(0).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(T=st.floats(SIGNAL_TEMPERATURES[0], 200), seed=st.integers(0, 99), spread=st.floats(0.5, 4))
def test_between_the_temperatures_the_rest_is_known_to_two_percent(T: float, seed: int, spread: float) -> None:
    logits = spread * torch.randn(500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits = logits.sort(descending=True).values[20:]
    at_infinity, *others = rest_weights(T)
    known = torch.stack([(logits / t).logsumexp(0) for t in SIGNAL_TEMPERATURES])
    found = at_infinity * np.log(len(logits)) + float((known * torch.tensor(others, dtype=torch.float64)).sum())
    assert abs(found - float((logits / T).logsumexp(0))) < 0.02


def test_weights_of_the_temperatures() -> None:
    for index, T in enumerate(SIGNAL_TEMPERATURES):
        weights = rest_weights(T)
        assert weights[1 + index] == 1 and sum(map(abs, weights)) == 1
    for T in (0.55, 1.1, 2.5, 5.0, 7.0, 1e6):
        assert sum(rest_weights(T)) == pytest.approx(1, abs=1e-12)
        assert 2 <= sum(weight != 0 for weight in rest_weights(T)) <= 4
    assert rest_weights(1e12)[0] == pytest.approx(1)


def test_the_chunks_must_be_those_of_the_inputs() -> None:
    teacher = stored(LiveTeacher([model(1)]), 4, "float16")
    with pytest.raises(AssertionError, match="chunks"):
        teacher.signal(batch()[0], chunks=[0, 1])
