"""Frozen models to learn from.

Shapes: B rows, T tokens, N = B * T, D model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hgrnx.config import Recipe, load_recipe
from hgrnx.errors import UserError
from hgrnx.models import LanguageModel, empty_model
from hgrnx.models.folders import assign_weights, load_folder
from hgrnx.ops import TeacherSignal


class LiveTeacher:
    """One or more frozen models that run beside the student; an ensemble averages probabilities.

    Not a module: the weights must not be found by the engine, the optimizer or the student's checkpoint.
    """

    def __init__(
        self, models: Sequence[LanguageModel], device: torch.device | str = "cpu", precision: str = "fp32"
    ) -> None:
        """Takes the models over. ``precision="bf16"`` keeps their linear weights, and computes, in bfloat16."""
        if not models:
            raise ValueError("a teacher needs at least one model")
        sizes = {model.vocab_size for model in models}
        if len(sizes) > 1:
            raise UserError(f"The teachers know different numbers of tokens: {sorted(sizes)}. They must agree.")
        self.vocab_size = sizes.pop()
        self.device = torch.device(device)
        self.precision = precision
        self.models = [model.eval().requires_grad_(False).to(device) for model in models]
        self.heads = [model.head_weight.detach() for model in self.models]
        if precision == "bf16":
            # Only what autocast would convert at every use, so the teacher computes just what autocast computes.
            self.heads = [head.bfloat16() for head in self.heads]
            for model in self.models:
                for module in model.modules():
                    if isinstance(module, nn.Linear):
                        module.weight.data = module.weight.data.bfloat16()

    def signal(
        self,
        inputs_BT: Tensor,
        cu_seqlens: Tensor | None = None,
        chunks: Sequence[int] = (),
        temperature: float = 1.0,
    ) -> TeacherSignal:
        """Hidden states [N, D], head [V, D] and share of each model."""
        share = 1.0 / len(self.models)
        bf16 = self.precision == "bf16"
        # no_grad, not inference mode: the student's backward pass must be able to keep these tensors.
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            hiddens_BTD = [model.hidden(inputs_BT, cu_seqlens)[0] for model in self.models]
        return TeacherSignal(
            models=[(hidden.flatten(0, 1), head, share) for hidden, head in zip(hiddens_BTD, self.heads, strict=True)]
        )


def load_teachers(
    references: Sequence[str],
    tokenizer_hash: str,
    vocab_size: int,
    load_weights: Callable[[Path], Mapping[str, Tensor]],
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    runs_dir: Path | None = None,
) -> LiveTeacher:
    """Load every teacher and check that it speaks the student's language.

    Args:
        references: folders of finished runs, or Hugging Face folders; a plain name is a run in ``runs_dir``.
        tokenizer_hash: sha256 of the student's tokenizer.json.
        vocab_size: tokens the student's tokenizer knows.
        load_weights: run folder -> weights by parameter name (its last checkpoint).
        device: where the teachers compute.
        precision: ``fp32`` or ``bf16``.
        runs_dir: where runs live.

    Raises:
        UserError: a teacher is missing, unfinished, damaged, or uses another tokenizer.
    """
    models = []
    for folder in find_teachers(references, tokenizer_hash, runs_dir):
        model = _load_run(folder, vocab_size, load_weights) if _is_run(folder) else load_folder(folder)
        if model.vocab_size != vocab_size:
            raise UserError(
                f"The teacher {folder} has a vocabulary of {model.vocab_size} tokens, the student's tokenizer "
                f"{vocab_size}. If the rest is padding, set hgrnx_vocab_size to {vocab_size} in its config.json."
            )
        models.append(model)
    return LiveTeacher(models, device, precision)


def find_teachers(references: Sequence[str], tokenizer_hash: str, runs_dir: Path | None = None) -> list[Path]:
    """The teachers' folders, found as by :func:`load_teachers`, without a look at their weights.

    Raises:
        UserError: a teacher is missing or unfinished, or uses another tokenizer.
    """
    folders = [_find(reference, runs_dir) for reference in references]
    for folder in folders:
        if _is_run(folder):
            _finished_recipe(folder)
        _check_tokenizer(folder, tokenizer_hash)
    return folders


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()


def _find(reference: str, runs_dir: Path | None) -> Path:
    places = [Path(reference).expanduser()]
    if runs_dir is not None and len(places[0].parts) == 1:
        places.insert(0, runs_dir / reference)
    for folder in places:
        if _is_run(folder) or (folder / "config.json").is_file():
            return folder
    looked = " and ".join(str(folder) for folder in places)
    raise UserError(
        f"distill.teachers: there is no teacher '{reference}' (looked at {looked}). Give the folder of a finished "
        "run (with recipe.yaml) or a Hugging Face folder (with config.json and safetensors)."
    )


def _finished_recipe(folder: Path) -> Recipe:
    recipe = load_recipe(str(folder / "recipe.yaml"))
    if not isinstance(recipe, Recipe):
        raise UserError(f"distill.teachers: {folder} holds the recipe of a whole distillation, not of one run.")
    if not (folder / "result.json").is_file():
        raise UserError(
            f"distill.teachers: the run {folder} is not finished (it has no result.json). Continue it with the "
            "command that started it, or choose a finished run."
        )
    return recipe


def _load_run(folder: Path, vocab_size: int, load_weights: Callable[[Path], Mapping[str, Tensor]]) -> LanguageModel:
    recipe = _finished_recipe(folder)
    model = empty_model(recipe.model, vocab_size).to_empty(device="cpu")
    assign_weights(model, load_weights(folder), str(folder))
    return model


def _check_tokenizer(folder: Path, wanted: str) -> None:
    if _is_run(folder):
        path = folder / "environment.json"
        try:
            given = json.loads(path.read_text(encoding="utf-8"))["tokenizer_hash"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} does not say which tokenizer ('tokenizer_hash') the teacher uses.") from None
    else:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{folder} has no tokenizer.json, so nobody can tell whether teacher and student agree.")
        given = hashlib.sha256(path.read_bytes()).hexdigest()
    if given != wanted:
        raise UserError(
            f"The teacher {folder} uses another tokenizer than the student (sha256 {str(given)[:12]}... in "
            f"{path.name}, {wanted[:12]}... in the student's data). Prepare the data with the teacher's tokenizer, "
            "or choose a teacher trained on this data."
        )
