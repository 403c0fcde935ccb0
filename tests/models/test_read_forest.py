"""Every architecture reads rows that share their beginnings as it reads each alone."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, lively, tokens

from hgrnx.models import LanguageModel
from hgrnx.ops import Forest

#        0 ─┬─ 1 ── 2 ─┬─ 3
#           │          └─ 4
#           └─ 5              6 stands alone, 7 and 8 go on from it
FOREST = Forest.of([0, 2, 5, 6, 15, 16, 20, 23, 30, 31], [-1, 0, 1, 2, 2, 0, -1, 6, 6])
ROWS = ((0, 1, 2, 3), (0, 1, 2, 4), (0, 5), (6, 7), (6, 8))


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return lively(CONFIGS[request.param])


def places(row: tuple[int, ...]) -> list[int]:
    bounds = FOREST.cu_seqlens.tolist()
    return [place for segment in row for place in range(bounds[segment], bounds[segment + 1])]


def test_rows_are_read_as_if_alone(model: LanguageModel) -> None:
    ids = tokens(31)
    with torch.no_grad():
        hidden_TD = model.read_forest(ids, FOREST)
        for row in map(places, ROWS):
            alone, _ = model.hidden(ids[row][None])
            torch.testing.assert_close(hidden_TD[row], alone[0], rtol=1e-4, atol=1e-4)


def test_bfloat16(model: LanguageModel) -> None:
    """Close to float32 where rows go on from others, too."""
    ids = tokens(31)
    with torch.no_grad():
        exact = model.read_forest(ids, FOREST)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.read_forest(ids, FOREST)
    assert 0 < (rough - exact).abs().max() < 0.2 * exact.abs().max()


def test_the_cost_of_a_segment_grows_with_the_state() -> None:
    costs = {name: lively(config).segment_cost() for name, config in CONFIGS.items()}
    assert costs["hgrn2"] == costs["transformer"] == 0, "their states are not moved"
    assert 0 < costs["lstm"] < costs["mamba"] < costs["xlstm"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reads_what_a_cpu_reads(model: LanguageModel) -> None:
    ids = tokens(31)
    with torch.no_grad():
        wanted = model.read_forest(ids, FOREST)
        given = model.cuda().read_forest(ids.cuda(), FOREST)
    torch.testing.assert_close(given.cpu(), wanted, rtol=2e-2, atol=2e-2)  # products may be TF32
