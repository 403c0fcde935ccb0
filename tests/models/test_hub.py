"""transformers opens our folders: same logits, padding on either side, generation with a state of constant size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CONFIGS, VOCAB, lively
from safetensors.torch import load_file, save_file

from hgrnx.models import LanguageModel
from hgrnx.models.folders import save_folder

transformers = pytest.importorskip("transformers")
assert VOCAB % 64  # our own matrices have padding
OURS = ("hgrn2", "mamba", "lstm", "xlstm")


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LanguageModel, Any]:
    """A model of ours, and what transformers makes of its folder."""
    import hgrnx.models.hub  # noqa: F401

    model = lively(CONFIGS[request.param])
    save_folder(model, tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    return model, opened


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_models_own(pair: tuple[LanguageModel, Any]) -> None:
    model, opened = pair
    with torch.no_grad():
        wanted, given = model(tokens(2, 9)), opened(tokens(2, 9))
    assert given.logits.shape == (2, 9, VOCAB)
    torch.testing.assert_close(given.logits, wanted, atol=1e-4, rtol=1e-4)


def test_loss_and_gradients(pair: tuple[LanguageModel, Any]) -> None:
    model, opened = pair
    x = tokens(2, 9)
    loss = opened(x, labels=x).loss
    wanted = torch.nn.functional.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in opened.parameters())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_bfloat16_weights(architecture: str, tmp_path: Path) -> None:
    """As lm-eval's ``dtype=bfloat16`` has them."""
    import hgrnx.models.hub  # noqa: F401

    model = lively(CONFIGS[architecture])
    save_folder(model, tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        wanted, given = model(tokens(2, 9)), opened(tokens(2, 9)).logits.float()
    assert all(parameter.dtype == torch.bfloat16 for parameter in opened.parameters())
    assert (given - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("architecture", OURS)
class TestOwnClasses:
    @pytest.fixture
    def opened(self, architecture: str, tmp_path: Path) -> Any:
        import hgrnx.models.hub  # noqa: F401

        save_folder(lively(CONFIGS[architecture]), tmp_path)
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    def test_padding_on_either_side_changes_nothing(self, opened: Any) -> None:
        x = tokens(1, 7)
        with torch.no_grad():
            alone = opened(x).logits[0]
            for left, right in ((3, 0), (0, 3), (2, 2)):
                padded = torch.nn.functional.pad(x, (left, right), value=5)
                mask = torch.nn.functional.pad(torch.ones_like(x), (left, right))
                both = torch.cat([padded, tokens(1, 7 + left + right)])
                given = opened(both, attention_mask=torch.cat([mask, torch.ones_like(mask)])).logits
                torch.testing.assert_close(given[0, left : left + 7], alone, atol=1e-5, rtol=1e-4)

    def test_generation_goes_on_from_the_state(self, opened: Any) -> None:
        prompt = tokens(2, 5)
        given = opened.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
        wanted = prompt
        for _ in range(6):  # without a cache: everything again for every token
            with torch.no_grad():
                wanted = torch.cat([wanted, opened(wanted).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(given, wanted)

    def test_generation_of_prompts_of_different_lengths(self, opened: Any) -> None:
        short, long = tokens(1, 3), tokens(1, 6)
        both = torch.cat([torch.nn.functional.pad(short, (3, 0)), long])
        mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
        arguments = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        given = opened.generate(both, attention_mask=mask, **arguments)
        assert torch.equal(given[:1, 3:], opened.generate(short, **arguments))
        assert torch.equal(given[1:], opened.generate(long, **arguments))

    def test_beam_search_reorders_the_state(self, opened: Any) -> None:
        arguments = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
        given = opened.generate(tokens(1, 4), **arguments)
        assert torch.equal(given, opened.generate(tokens(1, 4), use_cache=False, **arguments))

    def test_the_cache_does_not_grow(self, opened: Any) -> None:
        def size(length: int) -> int:
            cache = opened(tokens(1, length)).past_key_values
            assert cache.get_seq_length() == length
            cache = opened(tokens(1, 2), past_key_values=cache).past_key_values
            assert cache.get_seq_length() == length + 2
            leaves = torch.utils._pytree.tree_leaves(cache.state)
            return sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))

        assert size(4) == size(40) > 0


def test_rows_of_the_vocabulary_that_somebody_padded_get_no_logits(tmp_path: Path) -> None:
    import hgrnx.models.hub  # noqa: F401

    model = lively(CONFIGS["hgrn2"])
    save_folder(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "vocab_size": 128, "hgrnx_vocab_size": VOCAB}))
    tensors = {**load_file(tmp_path / "model.safetensors"), "model.embeddings.weight": model.head_weight.detach()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(opened(tokens(2, 9)).logits, model(tokens(2, 9)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("order", ["import fla, hgrnx.models.hub", "import hgrnx.models.hub, fla"])
def test_fla_may_be_imported_before_or_after(order: str, tmp_path: Path) -> None:
    """On a CPU FLA's own class would open the folder and fail in its kernels."""
    pytest.importorskip("fla", exc_type=ImportError)
    save_folder(lively(CONFIGS["hgrn2"]), tmp_path)
    code = (
        f"{order}; import torch, transformers;"
        f"m = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r});"
        "print(type(m).__module__, m(torch.zeros(1, 3, dtype=torch.long)).logits.shape[-1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["hgrnx.models.hub", str(VOCAB)], done.stderr[-2000:]


@pytest.mark.parametrize("architecture", ["hgrn2", "xlstm"])
def test_a_program_that_does_not_know_hgrnx_opens_the_folder(architecture: str, tmp_path: Path) -> None:
    """With ``trust_remote_code``, as the stock commands of lm-eval and others have it."""
    save_folder(lively(CONFIGS[architecture]), tmp_path / "model")
    code = (
        "import torch, transformers;"
        f"m = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True);"
        "print(type(m).__module__, m(torch.zeros(1, 3, dtype=torch.long)).logits.shape[-1])"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["hgrnx.models.hub", str(VOCAB)], done.stderr[-2000:]
