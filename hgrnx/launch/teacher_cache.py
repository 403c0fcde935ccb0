"""The teacher once: what it says about a run's text is stored before the run, by all workers of the cluster."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hgrnx.config import Recipe, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.folders import exclusive, explained
from hgrnx.data.signals import VARIABLE, SignalLayout, SignalStore
from hgrnx.errors import UserError
from hgrnx.launch.cluster import check_resources
from hgrnx.paths import Places, resolve_places
from hgrnx.training.teacher_cost import live_ratio
from hgrnx.training.teacher_signal import make_shards, plan_signal

_RETRIES = 3
_SHARES_PER_WORKER = 3  # a worker that is slow, or lost, leaves the others something to do
_LINES_EVERY_S = 10.0


def ensure_signal(recipe: Recipe, dataset: PreparedDataset, places: Places, console: Console) -> Path | None:
    """Make what is missing of the stored signal that ``recipe`` learns from, and return its folder.

    Makes nothing (None) unless the recipe names a teacher, ``distill.top_k`` and a weight above 0. The work is done on
    the connected Ray cluster, whose workers must reach the same places, or without one in this process. What was
    finished before, for this run or another of the same teacher and text, is taken over.

    Raises:
        UserError: the teacher cannot be used, the disk has no room, or workers were lost too often. What is finished
            stays.
    """
    if recipe.distill is None or recipe.distill.top_k is None or recipe.distill.weight == 0:
        return None
    plan = plan_signal(recipe, dataset, places.runs, places.signals)
    with exclusive(plan.folder, VARIABLE):
        store = plan.store()
        for problem in store.repair():
            console.print(f"Teacher's signal: {problem}; it is made anew", highlight=False)
        missing = store.missing(plan.chunks).tolist()
        if missing:
            layout = store.layout
            _check_room(places.signals, layout, len(missing), console)
            size = layout.shard_chunks
            shards = [missing[first : first + size] for first in range(0, len(missing), size)]
            with _progress(console, len(missing), layout.seq_len) as show:
                if ray.is_initialized():
                    _make_on_ray(recipe, dataset, places, store, shards, show)
                else:
                    _make_here(recipe, dataset, places, store, shards, show)
            store.open()
            assert not len(store.missing(plan.chunks))
    return plan.folder


def _check_room(signals: Path, layout: SignalLayout, chunks: int, console: Console) -> None:
    tokens = chunks * layout.seq_len
    need = tokens * layout.bytes_per_token
    with explained(signals, VARIABLE):
        free = shutil.disk_usage(signals).free
    console.print(
        f"Teacher's signal: {tokens:,} tokens of text, {need / 1e6:,.1f} MB in {signals} "
        f"({layout.bytes_per_token} bytes a token at top_k={layout.k})",
        highlight=False,
    )
    if need > free:
        raise UserError(
            f"The teacher's signal needs {need / 1e9:,.2f} GB, and the disk of {signals} has {free / 1e9:,.2f} GB "
            f"free. Make distill.top_k or training.duration smaller, free some space, or set {VARIABLE} to a folder on "
            "a larger disk. Without distill.top_k the teacher runs beside the student and nothing is stored."
        )


def _make_here(
    recipe: Recipe,
    dataset: PreparedDataset,
    places: Places,
    store: SignalStore,
    shards: Sequence[Sequence[int]],
    show: Callable[[int], None],
) -> None:
    done = 0

    def count(chunks: int) -> None:
        nonlocal done
        done += chunks
        show(done)

    make_shards(recipe, dataset, places.runs, store, shards, count)


def _make_on_ray(
    recipe: Recipe,
    dataset: PreparedDataset,
    places: Places,
    store: SignalStore,
    shards: Sequence[Sequence[int]],
    show: Callable[[int], None],
) -> None:
    launch = recipe.launch
    check_resources(launch.model_copy(update={"num_workers": 1}))
    have = ray.cluster_resources()
    workers = int(have["GPU"] if launch.use_gpu else have["CPU"] // launch.cpus_per_worker)
    shares = min(len(shards), workers * _SHARES_PER_WORKER)
    task = ray.remote(_make_share).options(
        num_cpus=launch.cpus_per_worker,
        num_gpus=int(launch.use_gpu),
        max_retries=_RETRIES,
        # Anywhere, also when the driver of a trial asks, which sits in a placement group without CPUs.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
    )
    content = recipe.model_dump(mode="json")
    waiting = [
        task.remote(content, str(dataset.dir), places.environment(), shards[share::shares]) for share in range(shares)
    ]
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=0.5)
            ray.get(ready)
            show(sum(len(chunks) for chunks in shards if store.written(chunks)))
    except RayError as error:
        if isinstance(error, RayTaskError):
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        raise UserError(
            f"Workers that ran the teacher were lost more than {_RETRIES} times ({type(error).__name__}). What they "
            "finished of its signal is kept: the same command goes on from there."
        ) from error
    finally:
        for unfinished in waiting:
            ray.cancel(unfinished, force=True)


def _make_share(
    content: dict[str, Any], data_dir: str, environment: dict[str, str], shards: Sequence[Sequence[int]]
) -> None:
    """In a worker."""
    recipe, dataset, places = _open(content, data_dir, environment)
    # Planned anew: a worker that sees another teacher than the driver must not write into its store.
    store = plan_signal(recipe, dataset, places.runs, places.signals).store()
    make_shards(recipe, dataset, places.runs, store, shards)


def measure_live(recipe: Recipe, dataset: PreparedDataset, places: Places, console: Console) -> float | None:
    """How many times as long a step with the live teacher is as one with the stored signal of ``recipe``, on a worker.

    None, and a warning, where that worker is lost or has too little memory: it holds teacher, student and optimizer.
    """
    import torch

    launch = recipe.launch
    task = ray.remote(_measure_live).options(num_cpus=launch.cpus_per_worker, num_gpus=int(launch.use_gpu))
    try:
        content = recipe.model_dump(mode="json")
        return float(ray.get(task.remote(content, str(dataset.dir), places.environment())))
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
        if not isinstance(cause, RayError | torch.OutOfMemoryError):
            raise
        console.print(
            f"Warning: how long a step with the teacher itself takes was not measured ({type(cause).__name__}).",
            highlight=False,
        )
        return None


def _measure_live(content: dict[str, Any], data_dir: str, environment: dict[str, str]) -> float:
    recipe, dataset, places = _open(content, data_dir, environment)
    return live_ratio(recipe, dataset, places.runs, places.signals)


def _open(
    content: dict[str, Any], data_dir: str, environment: dict[str, str]
) -> tuple[Recipe, PreparedDataset, Places]:
    """What a task needs, in its worker."""
    os.environ.update(environment)
    import torch

    recipe = recipe_from_dict(content)
    assert isinstance(recipe, Recipe)
    torch.set_num_threads(recipe.launch.cpus_per_worker)
    return recipe, PreparedDataset.open(Path(data_dir)), resolve_places()


@contextmanager
def _progress(console: Console, chunks: int, seq_len: int) -> Iterator[Callable[[int], None]]:
    """A function that is told how many of the chunks are done: a bar on a terminal, plain lines elsewhere."""
    title = "teacher's signal"
    started = last = time.monotonic()
    shown = 0

    def rate(done: int) -> str:
        return f"{done * seq_len / (time.monotonic() - started):,.0f} tokens/s"

    if not console.is_terminal:

        def line(done: int) -> None:
            nonlocal last, shown
            now = time.monotonic()
            if done == shown or (done < chunks and now - last < _LINES_EVERY_S):
                return
            last, shown = now, done
            left = int((now - started) / done * (chunks - done))
            console.print(
                f"{title}: sequence {done:,}/{chunks:,} | {rate(done)} | {left // 60}:{left % 60:02d} left",
                highlight=False,
            )

        yield line
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} sequences"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=chunks, rate="")
        yield lambda done: progress.update(task, completed=done, rate=rate(done))
