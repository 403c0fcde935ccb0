"""HGRN2 as flash-linear-attention computes it against ours: the same weights, the loss and the gradients of all.

The tests are here because FLA's model runs on a GPU or in Triton's interpreter only. The gates are mild (f mostly
between 0.3 and 0.8): where f is small, FLA's gradient of the gates cancels.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hgrnx.config import HGRN2Config
from hgrnx.models import LanguageModel, build_model
from hgrnx.models.folders import load_folder, save_folder
from hgrnx.objectives import NextToken
from hgrnx.objectives.base import IGNORE_INDEX

pytest.importorskip("fla", exc_type=ImportError)

VOCAB = 90
IN_CHUNKS = 70  # up to 64 tokens FLA's layer takes its recurrent kernels
# On a GPU FLA's products may round their factors to TF32.
LOSS, GRADIENTS = (1e-4, 2e-2) if torch.cuda.is_available() else (1e-6, 3e-5)


@pytest.fixture(autouse=True)
def interpreted_fla(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter nothing can be timed, and Python's range counts in numbers that lack a tensor's methods."""
    if device == "cuda":
        return
    import fla.ops.common.chunk_h
    import triton.language as tl
    from triton.runtime.autotuner import Autotuner

    def tensor_range(*bounds: Any) -> Iterator[Any]:
        return (tl.program_id(0) * 0 + i for i in builtins.range(*bounds))

    monkeypatch.setattr(Autotuner, "_bench", lambda *_, **__: 0.0)  # so that the first configuration wins
    monkeypatch.setattr(fla.ops.common.chunk_h, "range", tensor_range, raising=False)


def our_model(tie: bool, bounds: bool = True) -> LanguageModel:
    """Every parameter matters, the lower bounds too."""
    config = HGRN2Config(
        hidden_size=32,
        num_hidden_layers=2,
        expand_ratio=16,
        tie_word_embeddings=tie,
        use_lower_bound=bounds,
        norm_eps=1e-2,  # large enough to tell the norms that use it from the one that does not
    )
    model = build_model(config, VOCAB, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def fla_model(folder: Path, device: str) -> Any:
    from fla.models.hgrn2 import HGRN2ForCausalLM

    return HGRN2ForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).train()


def tokens(length: int) -> Tensor:
    return torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(2))


def ours(model: LanguageModel, ids: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss per token, and gradients by name without the vocabulary's padding."""
    model.zero_grad()
    targets = torch.cat((ids[:, 1:], ids.new_full((1, 1), IGNORE_INDEX)), 1)
    output = NextToken()(model, ids, targets, cu_seqlens)
    loss = output.loss_sum / output.count
    loss.backward()
    vocabulary = {"model.embeddings.weight", "lm_head.weight"}
    grads = {name: p.grad[:VOCAB] if name in vocabulary else p.grad for name, p in model.named_parameters()}
    return loss.detach(), grads


def flas(model: Any, ids: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    device = model.lm_head.weight.device
    model.config.fuse_cross_entropy = device.type == "cuda"  # which that kernel asks for
    packed = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens.to(device)}
    loss = model(ids.to(device), labels=ids.to(device), **packed).loss
    loss.backward()
    return loss.detach().cpu(), {name: p.grad.cpu() for name, p in model.named_parameters()}


def assert_alike(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert found[1].keys() == expected[1].keys()
    torch.testing.assert_close(found[0], expected[0], rtol=LOSS, atol=0.0)
    for name, grad in expected[1].items():
        assert grad.norm() > 1e-4, name
        error = ((found[1][name] - grad).norm() / grad.norm()).item()
        assert error < GRADIENTS, f"{name}: {error}"


@pytest.mark.parametrize(("length", "tie", "bounds"), [(20, True, True), (IN_CHUNKS, True, True), (20, False, False)])
def test_fla_trains_our_folder_as_we_do(tmp_path: Path, device: str, tie: bool, bounds: bool, length: int) -> None:
    model = our_model(tie, bounds)
    save_folder(model, tmp_path)
    assert_alike(flas(fla_model(tmp_path, device), tokens(length)), ours(model, tokens(length)))


def test_we_train_flas_folder_as_it_does(tmp_path: Path, device: str) -> None:
    from fla.models.hgrn2 import HGRN2Config as FlaConfig
    from fla.models.hgrn2 import HGRN2ForCausalLM

    torch.manual_seed(0)
    config = FlaConfig(hidden_size=32, num_hidden_layers=2, expand_ratio=16, vocab_size=VOCAB, norm_eps=1e-2)
    theirs = HGRN2ForCausalLM(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    theirs.save_pretrained(tmp_path)
    expected = flas(theirs.to(device).train(), tokens(IN_CHUNKS))
    assert_alike(ours(load_folder(tmp_path), tokens(IN_CHUNKS)), expected)


def test_packed_documents(tmp_path: Path, device: str) -> None:
    model = our_model(tie=True)
    save_folder(model, tmp_path)
    offsets = torch.tensor([0, 3, 68, IN_CHUNKS])
    packed = ours(model, tokens(IN_CHUNKS), offsets)
    assert_alike(flas(fla_model(tmp_path, device), tokens(IN_CHUNKS), offsets), packed)
    assert packed[0] != ours(model, tokens(IN_CHUNKS))[0]
