"""Which stored signal of a teacher a run learns from, and how a part of it is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrnx.config import SIGNAL_TEMPERATURES, DistillConfig, Recipe, load_recipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.folders import file_sha256
from hgrnx.data.loader import TrainLoader
from hgrnx.data.signals import SignalStore, StoredSignal, Values
from hgrnx.errors import UserError
from hgrnx.objectives import StoredTeacher, find_teachers, load_teachers
from hgrnx.objectives.stored import top_k_of
from hgrnx.ops.cpu import guard_bf16_products, keep_freed_memory
from hgrnx.training.engine import choose_device
from hgrnx.training.weights import last_checkpoint, last_weights


@dataclass(frozen=True)
class SignalPlan:
    """The stored signal that a run needs: where it is, and the chunks of the training text that the run reads."""

    folder: Path
    settings: dict[str, Any]
    """All that decides what the teacher says and how it is stored: the folder's name has a hash of it."""
    chunks: np.ndarray
    """int64, each once, ascending."""

    def store(self) -> SignalStore:
        return SignalStore(self.folder, self.settings)


def plan_signal(
    recipe: Recipe, dataset: PreparedDataset, runs: Path, signals: Path, values: Values = "float16"
) -> SignalPlan:
    """The signal for ``recipe``, which names one teacher and ``distill.top_k``.

    Raises:
        UserError: the teacher is missing, unfinished, damaged, or uses another tokenizer; the text is too short.
    """
    distill = _distill(recipe)
    assert distill.top_k is not None
    (teacher,) = find_teachers(distill.teachers, dataset.tokenizer_hash, runs)
    settings = {
        "teacher": _teacher_hash(teacher),
        "dataset": dataset.hash,
        "seq_len": recipe.training.seq_len,
        "reset_state": recipe.training.reset_state,
        "precision": recipe.training.precision,
        "vocab_size": dataset.vocab_size,
        "k": min(distill.top_k, dataset.vocab_size),
        "values": values,
        "temperatures": list(SIGNAL_TEMPERATURES),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    loader = _loader(recipe, dataset)
    chunks = loader.chunks_before(loader.steps_for(recipe.training.duration))
    return SignalPlan(signals / f"{teacher.name}-top{settings['k']}-{digest[:12]}", settings, chunks)


def stored_teacher(recipe: Recipe, dataset: PreparedDataset, runs: Path, signals: Path) -> StoredTeacher:
    """The teacher of ``recipe`` from its stored signal.

    Raises:
        UserError: the signal is not there, not of all the text that the run reads, or damaged.
    """
    plan = plan_signal(recipe, dataset, runs, signals)
    found = plan.folder.is_dir()
    store = plan.store() if found else None
    if store is not None:
        store.open()
    missing = len(plan.chunks) if store is None else len(store.missing(plan.chunks))
    if store is None or missing:
        raise UserError(
            f"distill.top_k: the teacher's signal in {plan.folder} lacks {missing:,} of the {len(plan.chunks):,} "
            "sequences that this run reads. Start the run with hgrnx distill, hgrnx train or hgrnx tune: they make it."
        )
    return StoredTeacher(store, dataset.vocab_size, choose_device(recipe.launch))


def make_shards(
    recipe: Recipe,
    dataset: PreparedDataset,
    runs: Path,
    store: SignalStore,
    shards: Iterable[Sequence[int]],
    on_progress: Callable[[int], None] = lambda chunks: None,
) -> None:
    """Run the teacher of ``recipe`` on the chunks of each shard, and write it; ``on_progress`` hears of each chunk.

    Raises:
        UserError: the teacher cannot be loaded, or says something that is no number.
    """
    device = choose_device(recipe.launch)
    precision = recipe.training.precision
    if device.type == "cpu":
        keep_freed_memory()
        if precision == "bf16":
            guard_bf16_products()
    teacher = load_teachers(
        _distill(recipe).teachers, dataset.tokenizer_hash, dataset.vocab_size, last_weights, device, precision, runs
    )
    loader = _loader(recipe, dataset)
    layout = store.layout
    rows = recipe.launch.micro_batch_size or max(1, recipe.training.batch_size // recipe.launch.num_workers)
    for chunks in shards:
        if store.written(chunks):  # by this task, before its worker was lost
            continue
        signal = layout.empty(len(chunks))
        done = 0
        for micro in loader.micro_batches(loader.read(chunks), rows):
            inputs = micro.inputs.to(device)
            said = teacher.signal(inputs, None if micro.cu_seqlens is None else micro.cu_seqlens.to(device))
            assert said.models is not None
            ((hidden_ND, head_VD, _),) = said.models
            top_k = top_k_of(hidden_ND, head_VD, layout.vocab_size, layout.k)
            if not torch.isfinite(top_k.top_Nk[:, 0]).all():
                raise UserError("The teacher's logits are not finite: train it again, or choose another.")
            place = slice(done, done + len(micro.chunks))
            for to, numbers in zip(signal, top_k, strict=True):
                to[place] = numbers.cpu().numpy().reshape(to[place].shape)
            done = place.stop
            on_progress(len(micro.chunks))
        store.write(chunks, StoredSignal(*signal))


def _teacher_hash(folder: Path) -> str:
    """Of the teacher's weights and its architecture."""
    run = folder / "recipe.yaml"
    if run.is_file():
        files = [last_checkpoint(folder) / "model.safetensors"]
        recipe = load_recipe(str(run))
        assert isinstance(recipe, Recipe)  # find_teachers has seen to it
        described = recipe.model.model_dump(mode="json")
    else:
        files = sorted(folder.glob("*.safetensors"))
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps([described, *map(file_sha256, files)], sort_keys=True).encode()).hexdigest()


def _loader(recipe: Recipe, dataset: PreparedDataset) -> TrainLoader:
    """Of all workers' batches together."""
    training = recipe.training
    return TrainLoader(dataset, training.seq_len, training.batch_size, recipe.seed, reset_state=training.reset_state)


def _distill(recipe: Recipe) -> DistillConfig:
    assert recipe.distill is not None
    return recipe.distill
