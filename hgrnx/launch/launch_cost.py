"""What launching costs: steps of a recipe in a plain process, on Ray with DeepSpeed, and with checkpoints."""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgrnx.config import Recipe, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.launch.cluster import connected
from hgrnx.launch.probe import cut_short, first_steps
from hgrnx.paths import Places
from hgrnx.tracking.tracker import read_metrics

STEPS = 36
"""Of a turn."""
WARM_UP = 6
"""Steps at the beginning of a turn that do not count."""
CHECKPOINT_EVERY = 10
_ASKED_EVERY = 100
"""Steps between two checkpoints, for which their cost is told: between few, it can be measured sooner."""


@dataclass(frozen=True)
class Way:
    """One way of running the steps."""

    name: str
    on_ray: bool
    training: Mapping[str, Any]
    launch: Mapping[str, Any]


_WHOLE, _OFTEN = {"checkpoint_every": "1 epoch"}, {"checkpoint_every": f"{CHECKPOINT_EVERY} steps"}
PLAIN = Way("plain loop", False, _WHOLE, {"engine": "torch"})
SAVING = Way(f"plain loop, a checkpoint every {CHECKPOINT_EVERY} steps", False, _OFTEN, {"engine": "torch"})
ON_RAY = Way("Ray and DeepSpeed ZeRO-1", True, _WHOLE, {"engine": "deepspeed", "zero_stage": 1})
WAYS = (PLAIN, SAVING, Way("Ray, torch", True, _WHOLE, {"engine": "torch"}), ON_RAY)


def time_ways(
    recipe: Recipe,
    dataset: PreparedDataset,
    places: Places,
    threads: int,
    rounds: int,
    steps: int = STEPS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[list[float]]]:
    """Seconds of every counted step, by name of the way and round: from line to line of the metrics.

    Each turn is a run of its own, with one worker of ``threads`` threads; the ways take turns.

    Raises:
        UserError: a run failed.
    """
    found: dict[str, list[list[float]]] = {way.name: [] for way in WAYS}
    run_dir = places.run_dir("bench-launch")
    for turn in range(rounds):
        for place in range(len(WAYS)):
            shutil.rmtree(run_dir, ignore_errors=True)
            way = WAYS[(turn + place) % len(WAYS)]
            chosen = recipe.model_copy(
                update={
                    "training": recipe.training.model_copy(update=way.training),
                    "launch": recipe.launch.model_copy(
                        update={"num_workers": 1, "cpus_per_worker": threads, **way.launch}
                    ),
                }
            )
            if way.on_ray:
                first_steps(chosen, dataset, run_dir, places, steps, way.name)
            else:
                _in_a_process(cut_short(chosen, steps), dataset, run_dir, threads)
            records = [record for record in read_metrics(run_dir / "metrics.jsonl") if "train/loss" in record]
            times = [record["time"] for record in records if WARM_UP <= record["step"] <= steps]
            found[way.name].append([later - earlier for earlier, later in zip(times, times[1:], strict=False)])
            on_progress(turn * len(WAYS) + place + 1, rounds * len(WAYS))
    shutil.rmtree(run_dir)
    return found


def measure_launch(
    recipe: Recipe,
    dataset: PreparedDataset,
    places: Places,
    threads: int,
    rounds: int,
    on_progress: Callable[[int, int], None],
    steps: int = STEPS,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the table of ``hgrnx bench launch``, and what they say."""
    with connected(places, dashboard=True):
        seconds = time_ways(recipe, dataset, places, threads, rounds, steps, on_progress)
    return rows_of(seconds, recipe.training.batch_size * recipe.training.seq_len), sentences(seconds)


def rows_of(seconds: Mapping[str, Sequence[Sequence[float]]], tokens: int) -> list[dict[str, Any]]:
    """A row a way: of each round the mean of its steps, which has every checkpoint in it; the median of the rounds."""
    rows = []
    for name, rounds in seconds.items():
        means = [statistics.fmean(steps) for steps in rounds]
        middle = statistics.median(means)
        spread = (max(means) - min(means)) / 2 / middle
        rows.append({"name": name, "seconds": middle, "spread": spread, "tokens_per_second": tokens / middle})
        rows[-1] |= {"cpu_seconds": None, "memory_mb": None, "share_of_peak": None, "rounds": means}
    return rows


def sentences(seconds: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """What Ray with DeepSpeed, and what checkpoints cost; each the median of the rounds, with all of them."""
    middle = {name: [statistics.median(steps) for steps in rounds] for name, rounds in seconds.items()}
    mean = {name: [statistics.fmean(steps) for steps in rounds] for name, rounds in seconds.items()}
    launched = [ours / plain - 1 for ours, plain in zip(middle[ON_RAY.name], middle[PLAIN.name], strict=True)]
    one = [
        (saving - plain) * CHECKPOINT_EVERY for saving, plain in zip(mean[SAVING.name], mean[PLAIN.name], strict=True)
    ]
    share = [cost / (_ASKED_EVERY * plain) for cost, plain in zip(one, mean[PLAIN.name], strict=True)]
    return [
        f"{ON_RAY.name}: a step (the median one) takes {_percent(launched)} of the plain loop's more.",
        f"A checkpoint takes {statistics.median(one):.2f} s; every {_ASKED_EVERY} steps: {_percent(share)}.",
    ]


def _percent(values: Sequence[float]) -> str:
    every = ", ".join(f"{100 * value:+.1f}" for value in values)
    return f"{100 * statistics.median(values):+.1f}% (rounds: {every})"


def _in_a_process(recipe: Recipe, dataset: PreparedDataset, run_dir: Path, threads: int) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_train, args=(recipe.model_dump(mode="json"), dataset.dir, run_dir, threads)
    )
    process.start()
    process.join()
    if process.exitcode != 0:
        raise UserError(
            f"The plain loop ended with status {process.exitcode}; what it said stands above (-9: killed, most likely "
            "for want of memory). Try it with a smaller training.batch_size or launch.micro_batch_size."
        )


def _train(recipe: dict[str, Any], data_dir: Path, run_dir: Path, threads: int) -> None:
    import torch

    from hgrnx.training.run import run_training

    torch.set_num_threads(threads)
    chosen = recipe_from_dict(recipe)
    assert isinstance(chosen, Recipe)
    run_training(chosen, PreparedDataset.open(data_dir), run_dir, go_on=lambda: False)
