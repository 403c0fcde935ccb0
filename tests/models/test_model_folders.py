from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CONFIGS
from safetensors.torch import load_file, save_file

from hgrnx.config import HGRN2Config
from hgrnx.errors import UserError
from hgrnx.models import LanguageModel, build_model
from hgrnx.models.folders import assign_weights, load_folder, save_folder

CONFIG = HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16, tie_word_embeddings=False, norm_eps=1e-5)


@pytest.fixture
def model() -> LanguageModel:
    return build_model(CONFIG, 100, seed=3)


@pytest.fixture
def folder(model: LanguageModel, tmp_path: Path) -> Path:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    added = [{"id": i, "content": token} for i, token in enumerate(["<s>", "</s>", "<pad>"])]
    (tokenizer / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"})
    )
    save_folder(model, tmp_path / "model", tokenizer)
    return tmp_path / "model"


def edit_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def edit_weights(folder: Path, drop: str = "", **changes: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(drop, None)
    save_file({**tensors, **changes}, folder / "model.safetensors")


@pytest.mark.parametrize("tie", [True, False])
def test_folder_gives_the_model_back(tmp_path: Path, tie: bool) -> None:
    model = build_model(CONFIG.model_copy(update={"tie_word_embeddings": tie}), 100, seed=3)
    save_folder(model, tmp_path / "model")
    loaded = load_folder(tmp_path / "model")
    assert loaded.config == model.config.model_copy(update={"initializer_range": 32**-0.5})
    assert (loaded.vocab_size, loaded.padded_vocab_size) == (100, 128)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name


def test_config_speaks_flas_language(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    assert values["architectures"] == ["HGRN2ForCausalLM"]
    assert values["vocab_size"] == 100
    assert values["initializer_range"] == pytest.approx(32**-0.5)
    assert (values["bos_token_id"], values["eos_token_id"], values["pad_token_id"]) == (0, 1, 2)
    assert (folder / "tokenizer.json").is_file()


def test_weights_in_other_precision_and_in_parts_are_read(model: LanguageModel, folder: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    loaded = load_folder(folder)
    assert loaded.head_weight.dtype == torch.float32
    assert torch.equal(loaded.head_weight, model.head_weight.bfloat16().float())


def test_vocabulary_of_any_size_is_padded(model: LanguageModel, folder: Path) -> None:
    both = ("model.embeddings.weight", "lm_head.weight")
    assert all(len(load_file(folder / "model.safetensors")[name]) == 100 for name in both)
    edit_config(folder, vocab_size=120, hgrnx_vocab_size=100)  # padded by somebody else
    edit_weights(folder, **{name: model.get_parameter(name)[:120].clone() for name in both})
    loaded = load_folder(folder)
    assert (loaded.vocab_size, loaded.padded_vocab_size) == (100, 128)
    ids = torch.arange(10)[None]
    torch.testing.assert_close(loaded(ids), model(ids))


def test_tied_model_may_carry_its_head_twice(tmp_path: Path) -> None:
    model = build_model(CONFIG.model_copy(update={"tie_word_embeddings": True}), 100)
    save_folder(model, tmp_path)
    edit_weights(tmp_path, **{"lm_head.weight": model.head_weight.detach()[:100].clone()})
    assert torch.equal(load_folder(tmp_path).head_weight, model.head_weight)
    edit_weights(tmp_path, **{"lm_head.weight": model.head_weight.detach()[:100] + 1})
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; hgrnx can load 'hgrn2', 'llama'"),
        ({"use_short_conv": True}, r"attn\.f_conv1d\.weight is missing"),
        ({"attn": {"layers": [1]}}, "attn="),
        ({"intermediate_size": 1000}, "intermediate_size=1000"),
        ({"expand_ratio": 12}, "expand_ratio=12"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hgrnx_vocab_size": 200}, "hgrnx_vocab_size=200"),
        ({"hidden_size": 64, "intermediate_size": None}, r"has shape \[32, 32\], not \[64, 64\]"),
        ({"num_hidden_layers": 3}, r"layers\.2\.attn.*is missing"),
        ({"num_hidden_layers": 1}, r"layers\.1\.attn.*does not belong"),
    ],
)
def test_wrong_config_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_folder(folder)


def test_wrong_tensors_are_refused_by_name(folder: Path) -> None:
    name = "model.layers.1.attn.f_proj.weight"
    edit_weights(folder, **{name: torch.zeros(32, 16)})
    with pytest.raises(UserError, match=rf"{name} has shape \[32, 16\], not \[32, 32\]"):
        load_folder(folder)
    edit_weights(folder, drop=name)
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_folder(folder)
    edit_weights(folder, **{name: torch.full((32, 32), torch.nan)})
    with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
        load_folder(folder)
    edit_weights(folder, **{name: torch.zeros(32, 32), "extra.bias": torch.zeros(3)})
    with pytest.raises(UserError, match=r"extra\.bias does not belong"):
        load_folder(folder)


def test_damaged_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_folder(tmp_path / "nowhere")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        load_folder(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="Pickled weights"):
        load_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_folder(folder)


def test_assign_keeps_precision_and_names_the_place(model: LanguageModel) -> None:
    tensors = {name: torch.full_like(parameter, 0.5).half() for name, parameter in model.named_parameters()}
    assign_weights(model, tensors, "here")
    assert model.head_weight.dtype == torch.float32
    assert (model.head_weight == 0.5).all()
    with pytest.raises(UserError, match="weights in here"):
        assign_weights(model, {}, "here")


@pytest.mark.parametrize(("tie", "conv"), [(True, False), (False, False), (True, True)])
def test_flas_own_model_has_the_same_names_and_shapes(tmp_path: Path, tie: bool, conv: bool) -> None:
    pytest.importorskip("fla", exc_type=ImportError)
    from fla.models.hgrn2 import HGRN2Config as FlaConfig
    from fla.models.hgrn2 import HGRN2ForCausalLM

    changes = {"tie_word_embeddings": tie, "use_short_conv": conv, "conv_size": 3}
    model = build_model(CONFIG.model_copy(update=changes), 100, seed=3)
    save_folder(model, tmp_path)
    fla_model = HGRN2ForCausalLM(FlaConfig.from_pretrained(tmp_path))
    ours = load_file(tmp_path / "model.safetensors")
    if tie:
        ours["lm_head.weight"] = ours["model.embeddings.weight"]
    fla_model.load_state_dict(ours)  # strict: every name and shape
    with torch.no_grad():
        for parameter in fla_model.parameters():
            parameter.add_(1.0)
    fla_model.save_pretrained(tmp_path)
    back = load_folder(tmp_path)
    for name, parameter in model.named_parameters():  # but for the rows of the vocabulary's padding
        torch.testing.assert_close(back.get_parameter(name)[:100], parameter[:100] + 1.0, msg=name)


def test_flas_own_model_has_the_same_size() -> None:
    pytest.importorskip("fla", exc_type=ImportError)
    from fla.models.hgrn2 import HGRN2Config as FlaConfig
    from fla.models.hgrn2 import HGRN2ForCausalLM

    with torch.device("meta"):
        fla_model = HGRN2ForCausalLM(FlaConfig(hidden_size=1024, num_hidden_layers=26, vocab_size=16_000))
    assert sum(parameter.numel() for parameter in fla_model.parameters()) == 366_846_976


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("transformer", {"num_key_value_heads": 1}, "num_key_value_heads=1, but the other settings make it 3"),
        ("transformer", {"head_dim": 8}, "head_dim=8"),
        ("transformer", {"attention_bias": True}, "attention_bias=True is an option of transformers"),
        ("transformer", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters="),
        ("transformer", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_parameters="),
        ("mamba", {"use_bias": True}, "use_bias=True is an option of transformers"),
        ("mamba", {"intermediate_size": 100}, "intermediate_size=100, but the other settings make it 64"),
        ("mamba", {"time_step_rank": 3}, r"dt_proj\.weight has shape"),
        ("lstm", {"dropout": 1.5}, "dropout"),
        ("xlstm", {"slstm_at": [7]}, "slstm_at"),
        ("xlstm", {"slstm_at": []}, r"blocks\.1\..* is missing"),
    ],
)
def test_wrong_configs_of_other_architectures_are_refused(
    tmp_path: Path, architecture: str, changes: dict[str, Any], message: str
) -> None:
    save_folder(build_model(CONFIGS[architecture], 100), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_folder(tmp_path)


def test_a_llama_of_older_transformers_is_read(tmp_path: Path) -> None:
    config = CONFIGS["transformer"].model_copy(update={"rope_theta": 500.0})
    save_folder(build_model(config, 100), tmp_path)
    edit_config(tmp_path, rope_parameters=None, num_key_value_heads=None, head_dim=None, rope_scaling=None)
    assert load_folder(tmp_path).config == config
