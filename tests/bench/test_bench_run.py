"""`hgrnx bench` at sizes where only the plumbing is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hgrnx.bench.distill import FLADistillation, NaiveDistillation
from hgrnx.bench.model import SIZES, SMALL
from hgrnx.bench.peers import fla_hgrn2, peers
from hgrnx.bench.run import Bench
from hgrnx.console import make_console
from hgrnx.errors import UserError
from hgrnx.models import build_model
from hgrnx.objectives import Distillation, LiveTeacher, NextToken

MEASURE: dict[str, Callable[[Bench, Path], Path]] = {
    "op": lambda bench, _: bench.op(1, 32, 2, 16, ["fp32"]),
    "model": lambda bench, _: bench.model("hgrn2", 1, 32, ["fp32"]),
    "distill": lambda bench, _: bench.distill(1, 32, "fp32"),
    "data": lambda bench, text: bench.data(text, "strict-small", 32),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "data")) for kind in MEASURE])
def test_every_kind_measures_and_keeps_what_it_measured(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {"model": "transformers", "data": "datasets"}.get(kind)
    if needed:
        pytest.importorskip(needed)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("".join(f"line {i} <s>  of a\ttext\n\n" for i in range(2_000)))
    path = MEASURE[kind](Bench(tmp_path, make_console(), rounds=1), tmp_path / "text")
    stored = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert len(stored["cases"]) >= 2
    for case in stored["cases"]:
        assert case["seconds"] > 0 and case["name"] in printed
        if kind != "data":
            assert case["tokens_per_second"] == pytest.approx(32 / case["seconds"])
    assert stored["settings"]["rounds"] == 1
    assert stored["settings"]["environment"]["versions"]["torch"] == torch.__version__
    assert path.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize("architecture", [name for name in SIZES if name != "hgrn2"])
def test_other_architectures(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path = Bench(tmp_path, make_console(), rounds=1).model(architecture, 1, 8, ["fp32"])
    names = [case["name"] for case in json.loads(path.read_text())["cases"]]
    assert names[0] == f"{architecture}, fp32"
    assert len(names) == (2 if architecture in ("transformer", "mamba") else 1)


@pytest.mark.parametrize("architecture", ["transformer", "mamba"])
def test_peers_have_our_size_and_loss(architecture: str) -> None:
    """Our own weights, in a peer, give our loss: it computes the same thing."""
    pytest.importorskip("transformers")
    config = SIZES[architecture].model_copy(update={"hidden_size": 64, "num_hidden_layers": 2})
    model = build_model(config, 64, seed=0)
    (peer,) = peers(config, 64, 16, torch.device("cpu"))
    peer.model.load_state_dict({name: x for name, x in model.state_dict().items()}, strict=True)
    tokens = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    ours = NextToken()(model, *batch)
    torch.testing.assert_close(peer.loss(peer.model.eval(), *batch), ours.loss_sum / ours.count, rtol=1e-5, atol=0)


def test_flas_hgrn2_has_our_size() -> None:
    pytest.importorskip("fla")
    config = SMALL.model_copy(update={"hidden_size": 64, "num_hidden_layers": 2})
    names = {name: x.shape for name, x in fla_hgrn2(config, 64, 16).model.named_parameters()}
    assert names == {name: x.shape for name, x in build_model(config, 64).named_parameters()}


def test_nonsense_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make_console())
    with pytest.raises(UserError, match="architecture 'rwkv'"):
        bench.model("rwkv", 1, 8, ["fp32"])
    for precisions in (["fp8"], []):
        with pytest.raises(UserError, match="precision '(fp8)?' is none of"):
            bench.op(1, 8, 1, 8, precisions)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="there is none"):
            Bench(tmp_path, make_console(), use_gpu=True)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flas_losses_are_ours_at_temperature_1() -> None:
    pytest.importorskip("fla")
    config = SMALL.model_copy(update={"hidden_size": 128, "num_hidden_layers": 2})
    student = build_model(config, 320, seed=0).cuda()
    teacher = LiveTeacher([build_model(config, 320, seed=1)], "cuda")
    tokens = torch.randint(0, 320, (2, 129), generator=torch.Generator().manual_seed(0)).cuda()
    batch = (tokens[:, :-1], tokens[:, 1:])
    ours, flas = Distillation(teacher, 0.5, 1.0)(student, *batch), FLADistillation(teacher)(student, *batch)
    torch.testing.assert_close(ours.loss_sum, flas.loss_sum, rtol=1e-3, atol=0)
