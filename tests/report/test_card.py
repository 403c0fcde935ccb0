"""The model card says what a stranger needs to know."""

from __future__ import annotations

from pathlib import Path

import yaml

from hgrnx.config import load_recipe
from hgrnx.report.card import model_card


def test_card_has_tags_scores_and_the_whole_recipe(three_runs: dict[str, Path], tmp_path: Path) -> None:
    run = three_runs["student"]
    card = model_card(run, "hgrn2", "my-model")
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["tags"] == ["hgrnx", "babylm", "hgrn2"]
    assert 'from_pretrained("my-model")' in body and "81.5" in body  # the mean of the files' accuracies, %
    recipe = body.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "again.yaml").write_text(recipe)
    assert load_recipe(str(tmp_path / "again.yaml")) == load_recipe(str(run / "recipe.yaml"))


def test_a_run_without_pairs_has_a_card_too(unscored_run: Path) -> None:
    assert "bits per byte" in model_card(unscored_run, "lstm", "x")
