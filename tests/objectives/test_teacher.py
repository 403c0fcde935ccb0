from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hgrnx.config import HGRN2Config, Recipe, to_yaml
from hgrnx.errors import UserError
from hgrnx.models import LanguageModel, build_model
from hgrnx.models.folders import save_folder
from hgrnx.objectives import LiveTeacher, load_teachers

VOCAB = 90
CONFIG = HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16)
TOKENIZER = json.dumps({"added_tokens": []})
HASH = hashlib.sha256(TOKENIZER.encode()).hexdigest()


def load_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights.safetensors")


def load(*references: str | Path, runs_dir: Path | None = None, vocab_size: int = VOCAB) -> LiveTeacher:
    return load_teachers([str(r) for r in references], HASH, vocab_size, load_weights, runs_dir=runs_dir)


@pytest.fixture
def model() -> LanguageModel:
    return build_model(CONFIG, VOCAB, seed=4)


@pytest.fixture
def run(model: LanguageModel, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "teacher-1"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(Recipe(name="teacher", model=CONFIG)))
    (folder / "environment.json").write_text(json.dumps({"tokenizer_hash": HASH}))
    (folder / "result.json").write_text("{}")
    save_file({name: p.detach() for name, p in model.named_parameters()}, folder / "weights.safetensors")
    return folder


@pytest.fixture
def hub_folder(model: LanguageModel, tmp_path: Path) -> Path:
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text(TOKENIZER)
    save_folder(model, tmp_path / "hub", source)
    return tmp_path / "hub"


def test_runs_and_hub_folders_give_the_same_teacher(model: LanguageModel, run: Path, hub_folder: Path) -> None:
    inputs = torch.arange(12).reshape(2, 6)
    wanted = model.hidden(inputs)[0].flatten(0, 1)
    teacher = load(run.name, run, hub_folder, runs_dir=run.parent)
    models = teacher.signal(inputs).models
    assert models is not None and len(models) == 3
    for hidden, weight, share in models:
        torch.testing.assert_close(hidden, wanted)
        assert torch.equal(weight, model.head_weight)
        assert share == pytest.approx(1 / 3)


def test_missing_teacher_is_refused_with_the_places_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no teacher 'nobody'.*runs/nobody"):
        load("nobody", runs_dir=tmp_path / "runs")


def test_unfinished_run_is_refused(run: Path) -> None:
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        load(run)


def test_other_tokenizers_are_refused(run: Path, hub_folder: Path) -> None:
    (run / "environment.json").write_text(json.dumps({"tokenizer_hash": "0" * 64}))
    with pytest.raises(UserError, match="another tokenizer"):
        load(run)
    (run / "environment.json").write_text("{}")
    with pytest.raises(UserError, match=r"environment\.json does not say"):
        load(run)
    (hub_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="another tokenizer"):
        load(hub_folder)
    (hub_folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load(hub_folder)


def test_other_vocabulary_size_is_refused(hub_folder: Path) -> None:
    with pytest.raises(UserError, match="vocabulary of 90 tokens, the student's tokenizer 80"):
        load(hub_folder, vocab_size=80)


def test_weights_that_do_not_fit_are_refused(run: Path) -> None:
    tensors = load_weights(run)
    del tensors["model.norm.weight"]
    save_file(tensors, run / "weights.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        load(run)


def test_recipe_of_a_whole_job_is_refused(run: Path) -> None:
    text = to_yaml(Recipe(name="job", model=CONFIG)).replace("model:", "student:")
    (run / "recipe.yaml").write_text(text.replace("distill: null", "teacher: {}"))
    with pytest.raises(UserError, match="whole distillation"):
        load(run)
