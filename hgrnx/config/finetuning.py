"""How a model is fine-tuned on (Super)GLUE; the defaults are those of the 2024 BabyLM pipeline."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_serializer

from hgrnx.config.sections import Section, TrainingConfig


class FinetuneConfig(Section):
    """How a classifier is fitted: ``finetune_model.sh``'s values, and transformers' where it gives none."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the training rows at most; the learning rate falls linearly to 0 over so many."""
    patience: int = Field(default=3, ge=1)
    """Epochs without improvement after which it stops."""
    min_improvement: float = Field(default=0.001, ge=0)
    """What counts as an improvement for ``patience``; the best epoch is the best by any margin."""
    select_by: Literal["accuracy", "f1", "mcc"] | None = None
    """What the best epoch is best at, on the valid rows; the pipeline's when absent (two classes f1, else accuracy).

    F1 is highest for a weak model that accepts every sentence of CoLA; ``mcc`` there chooses what is reported.
    """
    batch_size: int = Field(default=64, ge=1)
    """Rows of an update."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Of the first update."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the matrices."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16``: float32 weights, bfloat16 autocast."""
    max_length: int = Field(default=128, ge=8)
    """Tokens of a row, BOS and separator included; of two texts the longer one is cut first."""
    separator: str = "\n"
    """Between the two texts of a row, if there are two."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """The first so many training rows only."""

    def training(self) -> TrainingConfig:
        """What the optimizer and its schedule need to know."""
        return TrainingConfig(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            final_learning_rate=0.0,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            precision=self.precision,
        )


GLUE_OVERRIDES: dict[str, FinetuneConfig] = {"wsc": FinetuneConfig(epochs=20, patience=6, learning_rate=1e-5)}
"""What the paper does differently for a task (arXiv 2412.15978); of these values only those written here count."""


class GlueConfig(FinetuneConfig):
    """Fine-tuning on all (Super)GLUE tasks: values for all of them, and per task."""

    tasks: dict[str, FinetuneConfig] = Field(default_factory=dict)
    """By task; keys that are not given are those of :data:`GLUE_OVERRIDES`, then the ones for all tasks."""

    def of(self, task: str) -> FinetuneConfig:
        """Every value as ``task`` uses it."""
        values: dict[str, Any] = self.model_dump(exclude={"tasks"})
        for table in (GLUE_OVERRIDES, self.tasks):
            if task in table:
                values |= table[task].model_dump(exclude_unset=True)
        return FinetuneConfig(**values)

    @field_serializer("tasks")
    def _as_given(self, tasks: dict[str, FinetuneConfig]) -> dict[str, dict[str, Any]]:
        return {task: config.model_dump(mode="json", exclude_unset=True) for task, config in tasks.items()}
