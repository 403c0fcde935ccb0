"""The paper's models have the paper's sizes, and the small ones are comparable."""

from __future__ import annotations

import pytest

from hgrnx.config import DistillRecipe, ModelConfig, Recipe, load_recipe
from hgrnx.models import empty_model

MILLIONS = {
    "hgrn2-360m": 366.8,
    "hgrn2-1b": 990.5,
    "transformer-360m": 401.9,
    "lstm-300m": 283.5,
    "mamba-350m": 350.4,
    "xlstm-340m": 338.2,
}
SMALL = [
    "strict-small-cpu",
    "strict-small-muon",
    "transformer-small-cpu",
    "lstm-small-cpu",
    "mamba-small-cpu",
    "xlstm-small-cpu",
]


def model_of(name: str) -> ModelConfig:
    recipe = load_recipe(name)
    return recipe.student if isinstance(recipe, DistillRecipe) else recipe.model


@pytest.mark.parametrize("name", MILLIONS)
def test_a_recipe_has_the_papers_number_of_parameters(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    counts = empty_model(recipe.model, recipe.data.vocab_size).parameter_counts()
    assert recipe.data.vocab_size == 16_000
    assert round(counts["total"] / 1e6, 1) == MILLIONS[name]


def test_the_papers_transformer_with_one_matrix_for_embedding_and_head() -> None:
    tied = model_of("transformer-360m").model_copy(update={"tie_word_embeddings": True})
    assert round(empty_model(tied, 16_000).parameter_counts()["total"] / 1e6, 1) == 385.5


@pytest.mark.parametrize("name", SMALL)
def test_small_models_are_comparable(name: str) -> None:
    counts = empty_model(model_of(name), 8_000).parameter_counts()
    assert 4.9e6 < counts["other"] < 5.4e6
    assert counts["embedding"] == 8_000 * 256
    if name != "strict-small-cpu":
        assert f"({counts['other'] / 1e6:.1f}M besides the embeddings)" in recipe_text(name)
        assert f"{counts['total'] / 1e6:.1f}M parameters" in recipe_text(name)


def recipe_text(name: str) -> str:
    from importlib import resources

    return (resources.files("hgrnx") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
