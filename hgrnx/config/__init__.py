"""A run as a typed, frozen value: pydantic models, YAML and dotted overrides.

Two kinds of recipe share their sections. A :class:`Recipe` is one training run. A :class:`DistillRecipe` is
a job of several runs (teacher, student, and a twin of the student without distillation) and makes a
:class:`Recipe` for each.
"""

from hgrnx.config.durations import Duration, parse_duration
from hgrnx.config.files import load_recipe, recipe_from_dict, section_from, shipped_recipes
from hgrnx.config.finetuning import FinetuneConfig, GlueConfig
from hgrnx.config.models import (
    ARCHITECTURES,
    HGRN2Config,
    LSTMConfig,
    MambaConfig,
    ModelConfig,
    TransformerConfig,
    XLSTMConfig,
)
from hgrnx.config.recipes import AnyRecipe, DistillRecipe, Recipe, flatten, run_name, to_yaml
from hgrnx.config.sections import (
    SIGNAL_TEMPERATURES,
    CleaningConfig,
    DataConfig,
    DecontaminationConfig,
    DistillConfig,
    EvaluationConfig,
    LaunchConfig,
    NearDuplicatesConfig,
    TrainingConfig,
)

__all__ = [
    "ARCHITECTURES",
    "SIGNAL_TEMPERATURES",
    "AnyRecipe",
    "CleaningConfig",
    "DataConfig",
    "DecontaminationConfig",
    "DistillConfig",
    "DistillRecipe",
    "Duration",
    "EvaluationConfig",
    "FinetuneConfig",
    "GlueConfig",
    "HGRN2Config",
    "LSTMConfig",
    "LaunchConfig",
    "MambaConfig",
    "ModelConfig",
    "NearDuplicatesConfig",
    "Recipe",
    "TrainingConfig",
    "TransformerConfig",
    "XLSTMConfig",
    "flatten",
    "load_recipe",
    "parse_duration",
    "recipe_from_dict",
    "run_name",
    "section_from",
    "shipped_recipes",
    "to_yaml",
]
