"""Memory and time of a recipe on this machine, from a few real steps with random tokens.

The steps run in processes of their own, as many as the recipe has workers, which exchange and shard as the recipe's
engine does. On a GPU one process stands for all. What they leave out: evaluation, checkpoints and start.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from hgrnx.config import (
    SIGNAL_TEMPERATURES,
    AnyRecipe,
    DistillRecipe,
    ModelConfig,
    Recipe,
    parse_duration,
    recipe_from_dict,
)
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.errors import UserError
from hgrnx.models import build_model, empty_model
from hgrnx.objectives import Distillation, LiveTeacher, NextToken, ObjectiveModule, StoredTeacher, Teacher
from hgrnx.objectives.base import Objective
from hgrnx.ops.cpu import keep_freed_memory
from hgrnx.training.engine import build_engine
from hgrnx.training.memory import peak_memory_mb
from hgrnx.training.recompute import recompute_layers

_STEPS = 5
_BYTES_PER_PARAMETER = 16  # weight, gradient and AdamW's two averages in float32


@dataclass(frozen=True)
class Estimate:
    """What one stage of a recipe will need."""

    stage: str
    parameters: int
    memory_mb: float
    """Peak of one worker; on a GPU of its memory, with nothing sharded, else of the process."""
    tokens_per_second: float
    """Of all workers together."""
    steps: int | None
    """None where only the data, which are not prepared yet, can tell."""
    seconds: float | None
    """Of training."""


def estimate(recipe: AnyRecipe, dataset: PreparedDataset | None, memory_gb: float | None) -> Iterator[Estimate]:
    """Yield an estimate for each stage of ``recipe`` that differs from those before it.

    Args:
        dataset: the recipe's dataset where it is prepared; without it, time is known for durations in steps only.
        memory_gb: memory of this machine, where it is known; a stage whose weights alone do not fit is refused.

    Raises:
        UserError: a stage does not fit this machine, or a GPU is asked for and not there.
    """
    for stage, single, teachers in _stages(recipe):
        vocab_size = dataset.vocab_size if dataset is not None else single.data.vocab_size
        workers, launch = single.launch.num_workers, single.launch
        parameters = empty_model(single.model, vocab_size).parameter_counts()["total"]
        least_gb = parameters * _BYTES_PER_PARAMETER / 1e9 * (1 if launch.use_gpu else workers)
        if not launch.use_gpu and memory_gb is not None and least_gb > memory_gb:
            raise UserError(
                f"{stage}: {parameters / 1e6:,.0f}M parameters need {least_gb:,.1f} GB for weights, gradients and "
                f"optimizer in {workers} workers before anything is computed; this machine has {memory_gb} GB."
            )
        processes = 1 if launch.use_gpu else workers
        content = single.model_dump(mode="json")
        try:
            with (
                tempfile.TemporaryDirectory(prefix="hgrnx-") as meeting,
                ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool,
            ):
                place = Path(meeting) / "workers"
                jobs = [
                    pool.submit(_try_steps, content, teachers, vocab_size, place, rank, processes)
                    for rank in range(processes)
                ]
                tried = [job.result() for job in jobs]
        except BrokenProcessPool:
            raise UserError(
                f"{stage}: a process was ended while it tried a step, most likely for want of memory. "
                "Set launch.micro_batch_size to a smaller number."
            ) from None
        seconds_per_step = statistics.mean(seconds for seconds, _ in tried)
        tokens = single.training.batch_size * single.training.seq_len
        steps = _steps(single, dataset)
        yield Estimate(
            stage,
            parameters,
            max(memory for _, memory in tried),
            tokens / seconds_per_step,
            steps,
            None if steps is None else steps * seconds_per_step,
        )


def _stages(recipe: AnyRecipe) -> Iterator[tuple[str, Recipe, list[ModelConfig]]]:
    """Label, recipe and the teachers' architectures; a teacher that exists already counts as the student's equal."""
    if isinstance(recipe, DistillRecipe):
        single = recipe.teacher_recipe()
        if single is not None:
            yield "teacher", single, []
        teachers = [recipe.teacher] if recipe.teacher is not None else [recipe.student] * len(recipe.distill.teachers)
        for generation in range(1, recipe.distill.generations + 1):
            student = recipe.student_recipe((), generation)
            yield student.name.removeprefix(f"{recipe.name}-"), student, teachers
            teachers = [recipe.student]
        if recipe.twin and recipe.student != recipe.teacher:
            yield "twin", recipe.twin_recipe(), []
    else:
        named = recipe.distill.teachers if recipe.distill is not None else ()
        yield recipe.name, recipe, [recipe.model] * len(named)


def _steps(recipe: Recipe, dataset: PreparedDataset | None) -> int | None:
    if dataset is None:
        amount, unit = parse_duration(recipe.training.duration)
        return int(amount) if unit == "steps" else None
    loader = TrainLoader(dataset, recipe.training.seq_len, recipe.training.batch_size, recipe.seed)
    return loader.steps_for(recipe.training.duration)


class _AnySignal:
    """Stands for a teacher's stored signal: of what it says, time and memory do not depend."""

    def __init__(self, seq_len: int, k: int) -> None:
        self.seq_len, self.k = seq_len, k

    def read(self, chunks: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size = len(chunks), self.seq_len
        rest_BTR = np.zeros((*size, len(SIGNAL_TEMPERATURES)), np.float32)
        ids_BTk = np.tile(np.arange(self.k, dtype=np.uint32), (*size, 1))
        return rest_BTR, np.zeros((*size, self.k), np.float16), ids_BTk


def _try_steps(
    content: dict[str, Any], teachers: list[ModelConfig], vocab_size: int, meeting: Path, rank: int, processes: int
) -> tuple[float, float]:
    """Median seconds of a step, and peak memory in MB, of one of ``processes`` that meet at the file ``meeting``."""
    recipe = recipe_from_dict(content)
    assert isinstance(recipe, Recipe)
    share = recipe.training.batch_size // recipe.launch.num_workers
    micro = recipe.launch.micro_batch_size or share
    launch = recipe.launch.model_copy(update={"num_workers": processes})
    training = recipe.training.model_copy(update={"batch_size": share * processes})
    torch.set_num_threads(launch.cpus_per_worker)
    if not launch.use_gpu:
        keep_freed_memory()
    if processes > 1:
        dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=processes)
    try:
        objective: Objective = NextToken()
        if recipe.distill is not None and teachers:
            device = "cuda" if launch.use_gpu else "cpu"
            if recipe.distill.top_k is not None:
                signal = _AnySignal(training.seq_len, min(recipe.distill.top_k, vocab_size))
                teacher: Teacher = StoredTeacher(signal, vocab_size, device)
            else:
                models = [build_model(config, vocab_size, seed=seed) for seed, config in enumerate(teachers, start=1)]
                teacher = LiveTeacher(models, device, training.precision)
            objective = Distillation(teacher, recipe.distill.weight, recipe.distill.temperature)
        model = build_model(recipe.model, vocab_size)
        if launch.activation_checkpointing:
            recompute_layers(model)
        engine = build_engine(ObjectiveModule(model, objective), training, launch)
        tokens_BT = torch.randint(0, vocab_size, (micro, training.seq_len + 1), device=engine.device)
        times = []
        for _ in range(1 + _STEPS):
            start = time.perf_counter()
            for index in range(engine.micro_steps):
                output = engine.forward(tokens_BT[:, :-1], tokens_BT[:, 1:], None, range(micro))
                last = index == engine.micro_steps - 1
                engine.backward(output.loss_sum, training.batch_size * training.seq_len, last_micro=last)
            engine.step(1e-4)  # its result, the norm of the gradient, waits for the device
            times.append(time.perf_counter() - start)
        found = statistics.median(times[1:]), peak_memory_mb(engine.device)
        engine.close()
        return found
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
