"""The processes of the engine tests: ``engine_worker.py FOLDER``.

``FOLDER/jobs.json`` is a list of jobs, done one after the other: ``world_size`` and ``cases``, which are the
arguments of :func:`run_case`. Every rank of a job is a fork of this process, so that the imports are paid
once. Rank 0 leaves ``NAME.json`` (losses of the whole batch and gradient norms, by step) and
``NAME.safetensors`` (weights) in FOLDER.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from ranks import fork_ranks
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist

from hgrnx.config import (
    HGRN2Config,
    LaunchConfig,
    LSTMConfig,
    MambaConfig,
    ModelConfig,
    TrainingConfig,
    TransformerConfig,
    XLSTMConfig,
)
from hgrnx.models import build_model
from hgrnx.objectives import Distillation, LiveTeacher, NextToken, Objective, ObjectiveModule
from hgrnx.ops.cpu import guard_bf16_products
from hgrnx.training import deepspeed_engine
from hgrnx.training.checkpoint import load_checkpoint, save_checkpoint
from hgrnx.training.engine import Engine, build_engine
from hgrnx.training.recompute import recompute_layers

BATCH, LENGTH, VOCABULARY = 24, 16, 300
MODELS: dict[str, ModelConfig] = {
    # Its norms do not divide by 4, so shards over four ranks are padded.
    "hgrn2": HGRN2Config(hidden_size=34, num_hidden_layers=2, expand_ratio=17),
    "transformer": TransformerConfig(
        hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=False
    ),
    "lstm": LSTMConfig(embedding_size=20, hidden_size=30, num_hidden_layers=2, dropout=0.0),
    "mamba": MambaConfig(hidden_size=20, num_hidden_layers=2, state_size=8),
    "xlstm": XLSTMConfig(hidden_size=24, num_hidden_layers=3, num_heads=2, slstm_at=(1,)),
}
KEPT_WHOLE = 300
"""ZeRO-3 cuts up what is larger: the matrices of these models, but not their norms and biases."""


def global_batch(step: int) -> tuple[Tensor, Tensor, int]:
    """Random tokens of a step, with rows of different numbers of valid targets, and their global count."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    for row in range(BATCH):
        targets[row, LENGTH - (row * 5 + step) % LENGTH :] = -100
    return inputs, targets, int((targets != -100).sum())


def training_config(precision: str = "fp32", **changes: Any) -> TrainingConfig:
    """Clipping bites in every step (the norms are above 1), weight decay shows within 20 steps."""
    values: dict[str, Any] = {"batch_size": BATCH, "max_grad_norm": 0.5, "weight_decay": 0.5, **changes}
    return TrainingConfig(precision=precision, **values)  # type: ignore[arg-type]


def make_engine(
    engine: str,
    stage: int = 2,
    precision: str = "fp32",
    micro: int | None = None,
    architecture: str = "hgrn2",
    lively: bool = False,
    recompute: bool = False,
    distil: bool = False,
    **changes: Any,
) -> Engine:
    """An engine around a tiny model, which always starts from the same weights.

    ``lively`` ones are far from the usual beginning, where some parameters hardly matter. ``changes`` are to the
    training's config.
    """
    launch = LaunchConfig(engine=engine, zero_stage=stage, micro_batch_size=micro)  # type: ignore[arg-type]
    model = build_model(MODELS[architecture], VOCABULARY, seed=1)
    if lively:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    if recompute:
        recompute_layers(model)
    objective: Objective = NextToken()
    if distil:
        teacher = LiveTeacher([build_model(MODELS[architecture], VOCABULARY, seed=2)])
        objective = Distillation(teacher, weight=0.5, temperature=2.0)
    built = build_engine(ObjectiveModule(model, objective), training_config(precision, **changes), launch)
    if engine == "deepspeed" and stage == 3:
        assert {parameter.ds_persist for parameter in model.parameters()} == {True, False}  # type: ignore[attr-defined]
    return built


def take_step(engine: Engine, step: int, spoilt: bool = False) -> tuple[float, float]:
    """One step on this rank's rows of the global batch. Returns this rank's share of the loss, and the norm.

    ``spoilt`` makes the gradient of rank 0 NaN.
    """
    inputs, targets, count = global_batch(step)
    share = BATCH // engine.world_size
    rows = share // engine.micro_steps
    loss = 0.0
    for micro in range(engine.micro_steps):
        first = engine.rank * share + micro * rows
        output = engine.forward(inputs[first : first + rows], targets[first : first + rows])
        factor = float("nan") if spoilt and engine.rank == 0 else 1.0
        engine.backward(output.loss_sum * factor, count, micro == engine.micro_steps - 1)
        loss += float(output.loss_sum.detach()) / count
    return loss, engine.step(1e-3)


def run_case(
    folder: Path,
    name: str,
    engine: str,
    stage: int = 0,
    precision: str = "fp32",
    micro: int | None = None,
    steps: int = 20,
    start: int = 0,
    load: str | None = None,
    save_at: int | None = None,
    spoil_at: int | None = None,
    **model: Any,
) -> None:
    """Take ``steps`` steps from ``start``, after loading the checkpoint ``load``; save one before ``save_at``.

    ``model`` are those of :func:`make_engine`.
    """
    built = make_engine(engine, stage, precision, micro, **model)
    if load is not None:
        built.load_state(load_checkpoint(Path(load))[0])
    losses, norms = [], []
    for step in range(start, start + steps):
        if step == save_at:
            state = built.state()
            if built.rank == 0:
                save_checkpoint(folder / f"{name}-checkpoints", step, state, {}, keep=1)
        loss, norm = take_step(built, step, spoilt=step == spoil_at)
        losses.append(loss)
        norms.append(norm)
    total = torch.tensor(losses, dtype=torch.float64)
    if built.world_size > 1:
        dist.all_reduce(total)
    weights = built.weights()
    if built.rank == 0:
        save_file(weights, folder / f"{name}.safetensors")
        result = {"losses": total.tolist(), "norms": norms, "micro_steps": built.micro_steps}
        (folder / f"{name}.json").write_text(json.dumps(result))
    built.close()


def run_rank(world_size: int, rank: int, cases: list[dict[str, Any]], folder: Path) -> None:
    if world_size > 1:
        meet = f"file://{folder}/meet-{world_size}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    for case in cases:
        run_case(folder, **case)
    if dist.is_initialized():
        dist.destroy_process_group()


def main() -> None:
    torch.set_num_threads(1)
    guard_bf16_products()
    os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed_engine.KEPT_WHOLE = KEPT_WHOLE
    # Once, here, instead of in every process.
    for name in ("torch._dynamo", "deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.stage3"):
        importlib.import_module(name)

    folder = Path(sys.argv[1])
    for job in json.loads((folder / "jobs.json").read_text()):
        fork_ranks(job["world_size"], lambda rank: run_rank(job["world_size"], rank, job["cases"], folder))  # noqa: B023


if __name__ == "__main__":
    main()
