"""`hgrnx reproduce --dry-run`: the runs of an experiment, and what they cost here, or on one H100."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from hgrnx.config import Recipe
from hgrnx.config.experiments import ExperimentPlan
from hgrnx.data.dataset import PreparedDataset, open_dataset
from hgrnx.doctor.estimate import estimate
from hgrnx.errors import UserError
from hgrnx.launch.experiment_plan import ASSUMED_TOKENS_PER_WORD, plan_costs, room
from hgrnx.paths import Places
from hgrnx.report.summary import count, duration
from hgrnx.tracking.environment import describe_environment

H100_FLOPS = 989e12
"""Dense bfloat16 products per second on one H100 SXM, by its data sheet."""
ASSUMED_UTILISATION = 0.2
"""24,000 tokens/s, published for an HGRN2 of 1.3B on one H100 (flash-linear-attention, issue 32), are a fifth of it."""


def print_plan(plan: ExperimentPlan, places: Places, console: Console) -> None:
    """Print arms, parameters, words, FLOPs and time of an experiment; a few steps of each kind of model are tried here.

    Where the recipes want a GPU and there is none, time is computed for one H100 from FLOPs and an assumed utilisation.

    Raises:
        UserError: the arms are not equal though the experiment says so.
    """
    costs = plan_costs(plan, places)
    on_gpu = any(arm.recipes[plan.seeds[0]].launch.use_gpu for arm in plan.arms.values())
    speeds = {} if on_gpu and not torch.cuda.is_available() else _speeds(plan, places)
    table = Table(title=f"{plan.title}: {plan.config.question}", title_justify="left")
    table.add_column("arm")
    for column in ("parameters", "embeddings", "other", "runs", "words", "TFLOP a run", "time a run", "tokens/s"):
        table.add_column(column, justify="right")
    total_flops = total_seconds = 0.0
    for name, arm in plan.arms.items():
        cost, speed = costs[name], speeds.get(name)
        seconds = cost.tokens / speed if speed else cost.flops / (H100_FLOPS * ASSUMED_UTILISATION)
        total_flops += cost.flops * len(plan.seeds)
        total_seconds += seconds * len(plan.seeds)
        table.add_row(
            arm.title,
            *(count(cost.parameters[key]) for key in ("total", "embedding", "other")),
            str(len(plan.seeds)),
            count(cost.words),
            f"{cost.flops / 1e12:,.1f}",
            duration(seconds),
            f"{speed:,.0f}" if speed else "–",
        )
    console.print(table)
    runs = len(plan.arms) * len(plan.seeds)
    console.print(
        f"{runs} runs, {total_flops / 1e15:,.3f} PFLOP, {duration(total_seconds)} one after the other; evaluation and "
        "start are not in it.",
        highlight=False,
    )
    if speeds:
        here = {"CPU": describe_environment()["cpu_cores"], "GPU": torch.cuda.device_count()}
        at_once = min(room(arm.recipes[plan.seeds[0]], here) for arm in plan.arms.values())
        console.print(
            "Time from the tokens/s of a few steps tried here just now, random tokens, one run by itself; "
            f"this machine has room for {at_once} at a time.",
            highlight=False,
        )
    else:
        hours = total_seconds / 3600
        console.print(
            f"Time computed for one H100 ({H100_FLOPS / 1e12:.0f} TFLOP/s in bfloat16) at an assumed utilisation of "
            f"{ASSUMED_UTILISATION:.0%}: {hours:,.1f} H100 hours. No run of ours has measured that utilisation. The "
            "LSTM and xLSTM's sLSTM blocks go token by token and will be far below it.",
            highlight=False,
        )
    if any(cost.assumed for cost in costs.values()):
        console.print(
            f"Data that are not prepared yet count with {ASSUMED_TOKENS_PER_WORD} tokens a word.", highlight=False
        )
    if plan.tasks:
        console.print(f"Scored on {', '.join(plan.tasks)}.", highlight=False)


def _speeds(plan: ExperimentPlan, places: Places) -> dict[str, float]:
    """Tokens per second by arm; arms that compute the same are tried once."""
    memory_gb = describe_environment()["memory_gb"]
    tried: dict[str, float] = {}
    speeds: dict[str, float] = {}
    for name, arm in plan.arms.items():
        recipe = arm.recipes[plan.seeds[0]]
        if recipe.distill is not None:  # a teacher that does not exist yet counts as the student's equal
            distill = recipe.distill.model_copy(update={"teachers": arm.teachers})
            recipe = recipe.model_copy(update={"distill": distill})
        key = _computes(recipe)
        if key not in tried:
            (found,) = estimate(recipe, _dataset(recipe, places), memory_gb)
            tried[key] = found.tokens_per_second
        speeds[name] = tried[key]
    return speeds


def _computes(recipe: Recipe) -> str:
    """What decides the speed of a step."""
    shape = recipe.training.model_dump_json(include={"batch_size", "seq_len", "precision"})
    teachers = len(recipe.distill.teachers) if recipe.distill is not None else 0
    return f"{recipe.model.model_dump_json()} {shape} {recipe.launch.model_dump_json()} {teachers}"


def _dataset(recipe: Recipe, places: Places) -> PreparedDataset | None:
    try:
        return open_dataset(recipe.data, places.data)
    except UserError:
        return None
