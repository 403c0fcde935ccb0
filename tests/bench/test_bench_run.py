"""`hgrnx bench` at sizes where only the plumbing is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hgrnx.bench.distill import NaiveDistillation
from hgrnx.bench.model import SMALL
from hgrnx.bench.run import KINDS, run_bench
from hgrnx.console import make_console
from hgrnx.errors import UserError
from hgrnx.models import build_model
from hgrnx.objectives import Distillation, LiveTeacher


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "data")) for kind in KINDS])
def test_every_kind_measures_and_keeps_what_it_measured(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "model":
        pytest.importorskip("transformers")
    if kind == "data":
        pytest.importorskip("datasets")
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "a.txt").write_text("".join(f"line {i} <s>  of a\ttext\n\n" for i in range(2_000)))
    path = run_bench(
        kind,
        tmp_path,
        make_console(),
        batch_size=1,
        seq_len=32,
        heads=2,
        head_size=16,
        rounds=1,
        source=tmp_path / "text",
    )
    stored = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert len(stored["cases"]) >= 2
    for case in stored["cases"]:
        assert case["seconds"] > 0 and case["name"] in printed
        if kind != "data":
            assert case["tokens_per_second"] == pytest.approx(32 / case["seconds"])
    assert stored["settings"]["environment"]["versions"]["torch"] == torch.__version__
    assert path.with_suffix(".png").stat().st_size > 1000


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of op, model"):
        run_bench("speed", tmp_path, make_console(), batch_size=1, seq_len=8)
    with pytest.raises(UserError, match="precision 'fp8'"):
        run_bench("op", tmp_path, make_console(), batch_size=1, seq_len=8, precisions=("fp8",))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="there is none"):
            run_bench("op", tmp_path, make_console(), batch_size=1, seq_len=8, use_gpu=True)


def test_the_naive_peer_computes_the_same_loss() -> None:
    """A peer that did something else would make the comparison worthless."""
    config = SMALL.model_copy(update={"hidden_size": 64, "num_hidden_layers": 2})
    student = build_model(config, 300, seed=0)
    teacher = LiveTeacher([build_model(config, 300, seed=1)])
    tokens = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = (tokens[:, :-1], tokens[:, 1:])
    ours, naive = Distillation(teacher, 0.5, 2.0)(student, *batch), NaiveDistillation(teacher)(student, *batch)
    torch.testing.assert_close(ours.loss_sum, naive.loss_sum, rtol=1e-5, atol=0)
    for name in ("cross_entropy", "kl"):
        torch.testing.assert_close(ours.metrics[name], naive.metrics[name], rtol=1e-4, atol=1e-5)
