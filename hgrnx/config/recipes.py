"""Whole recipes: a single run, or a job of teacher, student and twin that makes a recipe for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import Field, model_validator

from hgrnx.config.models import HGRN2Config, ModelConfig
from hgrnx.config.sections import (
    DataConfig,
    DistillConfig,
    EvaluationConfig,
    LaunchConfig,
    Section,
    TrainingConfig,
)

_R = TypeVar("_R", bound="_CommonRecipe")

ADDED_LATER: dict[str, dict[str, Any]] = {
    "model": {"use_short_conv": False, "conv_size": 4, "initializer_gain": 1.0},
    "training": {
        "seq_len_warmup": None,
        "schedule": "linear",
        "decay": "20%",
        "optimizer": "adamw",
        "momentum": 0.95,
        "weight_average": None,
    },
    "distill": {
        "final_weight": None,
        "final_temperature": None,
        "reverse_kl": False,
        "hidden_weight": 0.0,
        "generations": 1,
        "top_k": None,
    },
}
"""Keys that came after the first runs, by section, with the value that means what was done without them.

A key with that value is no part of a run's identity, so that earlier runs are still found. Where a default
changes, this does not.
"""


class _CommonRecipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,60}$")
    """Short name; run folders and MLflow runs start with it."""
    seed: int = Field(default=0, ge=0)
    """Fixes initial weights and data order."""
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _batch_divides(self: _R) -> _R:
        batch, micro = self.training.batch_size, self.launch.micro_batch_size
        least, most = self.launch.min_workers or self.launch.num_workers, self.launch.num_workers
        if least > most:
            raise ValueError(f"launch.min_workers={least} is more than launch.num_workers={most}")
        for workers in range(most, least - 1, -1):
            which = f"launch.num_workers={most}" if least == most else f"{workers} workers (launch.min_workers={least})"
            if batch % workers:
                raise ValueError(f"training.batch_size={batch} must be a multiple of {which}")
            if micro is not None and (batch // workers) % micro:
                raise ValueError(
                    f"launch.micro_batch_size={micro} must divide the {batch // workers} sequences of each worker "
                    f"(training.batch_size={batch} / {which})"
                )
        return self

    @model_validator(mode="after")
    def _muon_has_its_matrices(self: _R) -> _R:
        if self.training.optimizer == "muon" and self.launch.engine == "deepspeed" and self.launch.zero_stage == 3:
            raise ValueError(
                "training.optimizer=muon does not go with launch.zero_stage=3, which cuts every matrix up among the "
                "workers: use launch.zero_stage=2 or less"
            )
        return self


class Recipe(_CommonRecipe):
    """One training run; with ``distill``, from the teachers named there."""

    model: ModelConfig = Field(default_factory=HGRN2Config)
    distill: DistillConfig | None = None

    @model_validator(mode="after")
    def _one_generation(self) -> Recipe:
        if self.distill is not None and self.distill.generations > 1:
            raise ValueError("distill.generations is of a job with a 'student' section; this recipe is a single run")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the resulting weights: everything but where it is computed and how often it is measured."""
        content = self.model_dump(mode="json", exclude={"launch", "evaluation"})
        data = content["data"]
        for key in ("source", "tokenizer", "enforce_budget"):
            del data[key]  # where they lie: what they are is in the dataset's hash
        if data["cleaning"]["decontaminate"]:
            del data["cleaning"]["decontaminate"]["benchmarks"]
        training = content["training"]
        for key in ("checkpoint_every", "keep_checkpoints", "word_milestones", "log_every"):
            del training[key]
        for key in ("max_bad_steps", "max_checkpoint_failures"):
            del training[key]  # they decide whether a run ends, not what it gives
        if training["on_bad_step"] == "stop":
            del training["on_bad_step"], training["max_loss"]
        elif training["on_bad_step"] == "roll_back":
            training["checkpoint_every"] = self.training.checkpoint_every  # where it goes back to
        for section, keys in ADDED_LATER.items():
            content[section] = content[section] and {
                key: value for key, value in content[section].items() if key not in keys or value != keys[key]
            }
        return content


class DistillRecipe(_CommonRecipe):
    """A job: train a teacher, distil it into a student, and train the student's twin without the teacher."""

    teacher: ModelConfig | None = None
    """The teacher's architecture. Absent only where ``distill.teachers`` names existing ones."""
    student: ModelConfig = Field(default_factory=HGRN2Config)
    distill: DistillConfig = DistillConfig()
    twin: bool = True
    """Also train the student's twin: same size, seed, words, no teacher."""

    @model_validator(mode="after")
    def _one_teacher(self) -> DistillRecipe:
        if self.teacher is None and not self.distill.teachers:
            raise ValueError("there is no teacher: give a 'teacher' section, or name runs in distill.teachers")
        if self.teacher is not None and self.distill.teachers:
            raise ValueError("there are two teachers: give either a 'teacher' section or distill.teachers, not both")
        return self

    def teacher_recipe(self) -> Recipe | None:
        """The teacher's run, with a seed of its own so that teacher and student do not start as one model."""
        if self.teacher is None:
            return None
        return self._stage("teacher", self.teacher, seed=self.seed + 1_000)

    def student_recipe(self, teachers: Sequence[str], generation: int = 1) -> Recipe:
        """The student's run, learning from ``teachers`` (run folders or Hugging Face folders).

        Later generations have other seeds, so that teacher and student do not start as one model.
        """
        distill = self.distill.model_copy(update={"teachers": tuple(teachers), "generations": 1})
        stage, seed = "student", self.seed
        if generation > 1:
            stage, seed = f"student-{generation}", self.seed + 1_000 * generation
        return self._stage(stage, self.student, seed=seed, distill=distill)

    def twin_recipe(self) -> Recipe:
        """The undistilled twin's run: the student's recipe without the teacher."""
        return self._stage("twin", self.student, seed=self.seed)

    def _stage(self, stage: str, model: ModelConfig, seed: int, distill: DistillConfig | None = None) -> Recipe:
        return Recipe(
            name=f"{self.name}-{stage}",
            seed=seed,
            data=self.data,
            model=model,
            training=self.training,
            evaluation=self.evaluation,
            launch=self.launch,
            distill=distill,
        )


AnyRecipe = Recipe | DistillRecipe


def to_yaml(recipe: AnyRecipe) -> str:
    """The complete recipe, defaults included, as YAML that :func:`load_recipe` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(recipe: AnyRecipe) -> dict[str, Any]:
    """One flat dict with dotted keys (``training.learning_rate``), for Tune, MLflow and tables."""
    return dict(_flat_items(recipe.model_dump(mode="json"), ""))


def run_name(recipe: Recipe, data_hash: str) -> str:
    """Folder and MLflow name of a run: the recipe's name and a hash of all that decides its weights."""
    content = json.dumps([recipe.identity(), data_hash], sort_keys=True)
    return f"{recipe.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _flat_items(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat_items(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner
