"""Scoring after the fact: runs, their checkpoints, and exported folders of every architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from architectures import CONFIGS
from rich.console import Console

from hgrnx.config import DataConfig, EvaluationConfig, Recipe, to_yaml
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError
from hgrnx.evaluation import evaluate
from hgrnx.export import export_run
from hgrnx.launch.evaluate import evaluate_model
from hgrnx.models import build_model
from hgrnx.models.folders import save_folder
from hgrnx.paths import Places, resolve_places
from hgrnx.training.checkpoint import save_checkpoint, save_weights
from hgrnx.training.engine import EngineState
from hgrnx.training.optim import MOMENTS


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return resolve_places(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def dataset(places: Places) -> PreparedDataset:
    return prepare(DataConfig(track="demo", words=3000, vocab_size=400), places.data)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "agreement"
    folder.mkdir()
    nouns = ("dog", "cat", "king", "sister")
    rows = [{"sentence_good": f"The {noun} sleeps.", "sentence_bad": f"The {noun}s sleeps."} for noun in nouns]
    (folder / "verbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_exported_folder_scores_like_the_model(
    architecture: str, places: Places, dataset: PreparedDataset, pairs: Path, console: Console, tmp_path: Path
) -> None:
    model = build_model(CONFIGS[architecture], dataset.vocab_size).eval()
    save_folder(model, tmp_path / "model", dataset.tokenizer_dir)
    wanted = evaluate(model, dataset, EvaluationConfig(minimal_pairs=str(pairs)), final=True).metrics

    only_pairs = evaluate_model(str(tmp_path / "model"), places, pairs, None, console).metrics
    assert only_pairs == pytest.approx({key: value for key, value in wanted.items() if key.startswith("pairs/")})
    both = evaluate_model(str(tmp_path / "model"), places, pairs, dataset.dir, console).metrics
    assert both == pytest.approx(wanted, rel=1e-5)
    saved = json.loads((tmp_path / "model" / "eval" / "agreement.json").read_text())
    assert saved["metrics"] == both


def test_checkpoints_and_milestones_of_a_run(
    places: Places, dataset: PreparedDataset, pairs: Path, console: Console, tmp_path: Path
) -> None:
    run = places.runs / "run-1"
    losses = {}
    for step in (1, 2, 3):
        model = build_model(CONFIGS["hgrn2"], dataset.vocab_size, seed=step)
        weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
        losses[step] = evaluate(model, dataset, EvaluationConfig(minimal_pairs=str(pairs)), final=True).metrics
        if step == 1:
            save_weights(run / "milestones" / "chck_1M", step, weights, {"words": 1_000_000})
        else:
            save_checkpoint(
                run / "checkpoints", step, EngineState(weights, {moment: {} for moment in MOMENTS}, step), {}, keep=2
            )
    (run / "recipe.yaml").write_text(to_yaml(Recipe(name="run", model=CONFIGS["hgrn2"])))
    facts = {"data": str(dataset.dir), "vocab_size": dataset.vocab_size}
    (run / "environment.json").write_text(json.dumps(facts))

    for name, step, label in (
        ("run-1", 3, "agreement"),
        (str(run / "checkpoints" / "step-00000002"), 2, "agreement-step-00000002"),
        (str(run / "milestones" / "chck_1M"), 1, "agreement-chck_1M"),
    ):
        assert evaluate_model(name, places, pairs, None, console).metrics == pytest.approx(losses[step])
        assert (run / "eval" / f"{label}.json").is_file()
    (tmp_path / "chck_1M").symlink_to(run / "milestones" / "chck_1M")
    exported = export_run(str(tmp_path / "chck_1M"), tmp_path / "out", places, milestones=False)["main"]
    scores = evaluate_model(str(exported), places, pairs, dataset.dir, console).metrics
    assert scores == pytest.approx(losses[1])
    with pytest.raises(UserError, match="--milestones takes a run: run-1"):
        export_run(str(run / "milestones" / "chck_1M"), tmp_path / "more", places, milestones=True)


class TestMessages:
    @pytest.fixture
    def folder(self, dataset: PreparedDataset, tmp_path: Path) -> Path:
        save_folder(build_model(CONFIGS["hgrn2"], dataset.vocab_size), tmp_path / "model", dataset.tokenizer_dir)
        return tmp_path / "model"

    def check(
        self, folder: Path, places: Places, message: str, *, pairs: Path | None, text: Path | None = None
    ) -> None:
        with pytest.raises(UserError, match=message):
            evaluate_model(str(folder), places, pairs, text, Console(quiet=True))

    def test_nothing_to_score_it_on(self, folder: Path, places: Places) -> None:
        self.check(folder, places, "--data.*--text", pairs=None)

    def test_text_of_another_tokenizer(self, folder: Path, places: Places, pairs: Path) -> None:
        other = prepare(DataConfig(track="demo", words=3000, vocab_size=380), places.data)
        self.check(folder, places, "another tokenizer", pairs=pairs, text=other.dir)

    def test_no_model(self, places: Places, pairs: Path) -> None:
        self.check(pairs, places, "neither a run .* nor a Hugging Face folder", pairs=pairs)

    def test_another_architecture(self, folder: Path, places: Places, pairs: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
        self.check(folder, places, "model_type is 'gpt2'; hgrnx can load 'hgrn2'", pairs=pairs)

    def test_no_beginning(self, folder: Path, places: Places, pairs: Path) -> None:
        (folder / "tokenizer_config.json").unlink()
        self.check(folder, places, "names no bos_token", pairs=pairs)

    def test_a_checkpoint_without_its_run(self, places: Places, pairs: Path, tmp_path: Path) -> None:
        save_weights(tmp_path / "a" / "chck_1M", 1, {}, {})
        self.check(tmp_path / "a" / "chck_1M", places, "outside of its run", pairs=pairs)
