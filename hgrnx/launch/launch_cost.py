"""What launching costs: steps of a recipe in a plain process, on Ray with DeepSpeed, and with checkpoints.

All ways run at the same time and are stopped (SIGSTOP) but for one, which goes on for some steps: what is compared lies
seconds apart, on machines whose speed drifts within minutes.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hgrnx.config import Recipe, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.launch.cluster import connected
from hgrnx.launch.ray_train import train_on_ray
from hgrnx.launch.trial_board import TrialBoard
from hgrnx.paths import Places
from hgrnx.tracking.tracker import read_metrics

CHECKPOINT_EVERY = 10
STEPS = CHECKPOINT_EVERY
"""Of a turn: it has one checkpoint in it, wherever it begins."""
WARM_UP = 6
"""Steps at the beginning of a run that do not count."""
_ASKED_EVERY = 100
"""Steps between two checkpoints, for which their cost is told: between few, it can be measured sooner."""
_POLL_S = 0.01
_END_S = 10.0
"""What has not ended by then ends with this process, or with the cluster."""


@dataclass(frozen=True)
class Way:
    """One way of running the steps."""

    name: str
    on_ray: bool
    training: Mapping[str, Any]
    launch: Mapping[str, Any]


_WHOLE, _OFTEN = {"checkpoint_every": "100%"}, {"checkpoint_every": f"{CHECKPOINT_EVERY} steps"}
PLAIN = Way("plain loop", False, _WHOLE, {"engine": "torch"})
SAVING = Way(f"plain loop, a checkpoint every {CHECKPOINT_EVERY} steps", False, _OFTEN, {"engine": "torch"})
_ZERO_1 = {"engine": "deepspeed", "zero_stage": 1}
ON_RAY = Way("Ray and DeepSpeed ZeRO-1", True, _WHOLE, _ZERO_1)
WAYS = (PLAIN, SAVING, Way("plain loop, DeepSpeed ZeRO-1", False, _WHOLE, _ZERO_1), ON_RAY)


def time_ways(
    recipe: Recipe,
    dataset: PreparedDataset,
    places: Places,
    threads: int,
    rounds: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[list[float]]]:
    """Seconds of every counted step, by name of the way and round: from line to line of the metrics.

    Each way is one run with one worker of ``threads`` threads; the ways take turns of :data:`STEPS` steps.

    Raises:
        UserError: a run failed, or was over too soon.
    """
    found: dict[str, list[list[float]]] = {way.name: [] for way in WAYS}
    with _running(recipe, dataset, places, threads) as runs:
        for turn in range(rounds):
            for place in range(len(runs)):
                run = runs[(turn + place) % len(runs)]
                found[run.way.name].append(run.turn())
                on_progress(turn * len(runs) + place + 1, rounds * len(runs))
    return found


@contextmanager
def _running(recipe: Recipe, dataset: PreparedDataset, places: Places, threads: int) -> Iterator[list[_Run]]:
    """The runs of all ways, warm and stopped."""
    runs: list[_Run] = []
    try:
        for way in WAYS:
            runs.append(_Run(way, recipe, dataset, places, threads))
            runs[-1].warm_up()
        yield runs
    finally:
        for run in runs:
            run.end()


class _Run:
    """The run of one way, which goes on in turns."""

    def __init__(self, way: Way, recipe: Recipe, dataset: PreparedDataset, places: Places, threads: int) -> None:
        self.way = way
        self._run_dir = places.run_dir(f"bench-launch-{WAYS.index(way)}")
        shutil.rmtree(self._run_dir, ignore_errors=True)
        evaluation = {"every": "100%", "tasks": ()}
        # Nothing is replaced: its end is told from outside.
        launch = {"num_workers": 1, "cpus_per_worker": threads, "max_failures": 0, **way.launch}
        chosen = recipe.model_copy(
            update={
                "training": recipe.training.model_copy(update={"log_every": 1, **way.training}),
                "evaluation": recipe.evaluation.model_copy(update=evaluation),
                "launch": recipe.launch.model_copy(update=launch),
            }
        )
        self._metrics = self._run_dir / "metrics.jsonl"
        self._read: tuple[int, list[float]] = 0, []
        self._error: UserError | None = None
        target = self._on_ray if way.on_ray else self._in_a_process
        self._thread = threading.Thread(target=target, args=(chosen, dataset, places, threads), daemon=True)
        self._thread.start()

    def warm_up(self) -> None:
        """Go through the first steps, which do not count, and stop."""
        self._wait_for(WARM_UP)
        self._process = self._worker()
        self._process.suspend()

    def turn(self) -> list[float]:
        """Go on, and stop after :data:`STEPS` steps; the first one, in which it was stopped, does not count."""
        before = len(self._times())
        self._process.resume()
        times = self._wait_for(before + 1 + STEPS)[before : before + 1 + STEPS]
        self._process.suspend()
        return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]

    def end(self) -> None:
        """End the run; nothing of it is left."""
        with suppress(psutil.NoSuchProcess, UserError):  # it may not have come to its first step
            self._worker().kill()
        self._thread.join(_END_S)
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def _times(self) -> list[float]:
        """When each step ended; reads the file only where it has grown, to take no time from the run."""
        size = self._metrics.stat().st_size if self._metrics.exists() else 0
        if size != self._read[0]:
            self._read = size, [record["time"] for record in read_metrics(self._metrics) if "train/loss" in record]
        return self._read[1]

    def _wait_for(self, steps: int) -> list[float]:
        while len(times := self._times()) < steps:
            if not self._thread.is_alive():
                raise self._error or UserError(
                    f"{self.way.name}: the run was over after {len(times)} steps, and {steps} are needed. Give a "
                    "recipe with a longer training.duration, or fewer --rounds."
                )
            time.sleep(_POLL_S)
        return times

    def _worker(self) -> psutil.Process:
        """The process that writes the metrics."""
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if any(file.path == str(self._metrics) for file in process.open_files()):
                    return process
        raise UserError(f"{self.way.name}: its worker is not on this machine. Unset RAY_ADDRESS.")

    def _on_ray(self, recipe: Recipe, dataset: PreparedDataset, places: Places, threads: int) -> None:
        try:
            board = TrialBoard.remote()  # so that nothing is shown
            train_on_ray(
                recipe, dataset, self._run_dir, places, title=self.way.name, mlflow_run=None, trial_board=board
            )
        except UserError as error:
            self._error = error

    def _in_a_process(self, recipe: Recipe, dataset: PreparedDataset, places: Places, threads: int) -> None:
        process = multiprocessing.get_context("spawn").Process(
            target=_train, args=(recipe.model_dump(mode="json"), dataset.dir, self._run_dir, threads), daemon=True
        )
        process.start()
        process.join()
        if process.exitcode != 0:
            self._error = UserError(
                f"The plain loop ended with status {process.exitcode}; what it said stands above (-9: killed, most "
                "likely for want of memory). Try it with a smaller training.batch_size or launch.micro_batch_size."
            )


def measure_launch(
    recipe: Recipe,
    dataset: PreparedDataset,
    places: Places,
    threads: int,
    rounds: int,
    on_progress: Callable[[int, int], None],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the table of ``hgrnx bench launch``, and what they say."""
    with connected(places, dashboard=True):
        seconds = time_ways(recipe, dataset, places, threads, rounds, on_progress)
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


def _train(recipe: dict[str, Any], data_dir: Path, run_dir: Path, threads: int) -> None:
    import torch

    from hgrnx.training.run import run_training

    torch.set_num_threads(threads)
    chosen = recipe_from_dict(recipe)
    assert isinstance(chosen, Recipe)
    run_training(chosen, PreparedDataset.open(data_dir), run_dir)
