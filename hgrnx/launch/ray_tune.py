"""Trials on Ray Tune: each a Ray Train run behind a driver that needs no CPU of its own.

A trial that is to be stopped is told so at its next evaluation and ends by itself, so that its workers and their
placement are given back as those of any run. Tune's own record of an experiment is not used: what is known of the
trials lies in the search's files, from which searcher and scheduler are filled again.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from hgrnx.config import Recipe, recipe_from_dict
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import Terminated, UserError
from hgrnx.launch.ray_train import train_on_ray
from hgrnx.launch.sigterm import heeded
from hgrnx.launch.teacher_cache import ensure_signal
from hgrnx.launch.trial_board import TrialBoard
from hgrnx.paths import Places
from hgrnx.search.trials import Trial

_POLL_S = 0.2
_LOST_DRIVERS = 2
_LEFT = "left"
# A bundle can't be empty, and any CPU of a driver would be missing to the workers that it waits for.
_DRIVER = [{"memory": 1024 * 1024}]


class _End:
    """No further trial will come."""


END = _End()


@dataclass(frozen=True)
class TrialJob:
    """All that a driver, on any node, needs to run a trial."""

    number: int
    run: str
    metric: str
    """What ASHA judges by."""
    recipe: dict[str, Any]
    run_dir: Path
    data_dir: Path
    places: Places
    mlflow_run: str | None


@dataclass(frozen=True)
class Halving:
    """ASHA's settings. Words are its time."""

    metric: str
    mode: str
    grace_words: int
    max_words: int
    reduction_factor: int


class TrialSource(Protocol):
    """The search, as Tune meets it. Everything is called in the process that started it."""

    def next_job(self) -> TrialJob | _End | None:
        """The next trial; None when none may begin now."""

    def on_scores(self, run: str, record: dict[str, float]) -> None:
        """An evaluation of a running trial."""

    def on_end(self, run: str, outcome: str, reason: str | None) -> None:
        """A trial ended: ``finished``, ``stopped`` or ``failed`` for a reason."""


def run_trials(source: TrialSource, halving: Halving | None, past: Sequence[Trial], folder: Path) -> None:
    """Run what ``source`` gives on the connected cluster until it gives no more.

    Args:
        halving: ASHA's settings; None runs every trial to its end.
        past: trials that ended before; ASHA compares with them.
        folder: for Tune's own files; removed at the end.

    Raises:
        UserError: an error of the search itself.
        Terminated: this process got SIGTERM; the trials that were running have saved checkpoints and have no end.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # how a trial ended is a result without a score
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose banner comes at any verbosity
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the search, as it ends any job
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    judge = _Judge.remote()  # type: ignore[attr-defined]
    with heeded() as told:
        searcher = _Source(source, told)
        scheduler = FIFOScheduler()
        if halving is not None:
            scheduler = HalvingScheduler(halving, past, lambda trial: ray.get(judge.stop.remote(searcher.runs[trial])))
        tuner = tune.Tuner(
            tune.with_resources(lambda config: _drive(config["job"], judge), tune.PlacementGroupFactory(_DRIVER)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                callbacks=[_Scores(searcher), _Leave(told, judge)],
                failure_config=tune.FailureConfig(max_failures=_LOST_DRIVERS),
                verbose=0,
            ),
        )
        tuner.fit()
    if searcher.error is not None:
        raise searcher.error
    shutil.rmtree(folder, ignore_errors=True)
    if told.is_set():
        raise Terminated("The search was stopped by SIGTERM. The same command goes on with its trials.")


@ray.remote(num_cpus=0)
class _Judge:
    """Which runs the scheduler has stopped, and whether all shall leave."""

    def __init__(self) -> None:
        self.stopped: set[str] = set()
        self.leaving = False

    def stop(self, run: str) -> None:
        self.stopped.add(run)

    def is_stopped(self, run: str) -> bool:
        return run in self.stopped

    def leave(self) -> None:
        self.leaving = True

    def is_leaving(self) -> bool:
        return self.leaving


class _Source(Searcher):
    """Hands Tune the jobs of the search, and the search the ends of the trials."""

    def __init__(self, source: TrialSource, told: threading.Event) -> None:
        super().__init__()
        self.source = source
        self.told = told
        self.runs: dict[str, str] = {}
        self.error: UserError | None = None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """An error of the search itself, as of a full disk, ends it; Tune would bury it in a trace of its own."""
        try:
            yield
        except UserError as error:
            self.error = self.error or error

    def suggest(self, trial_id: str) -> Any:
        job: Any = END
        if self.error is None and not self.told.is_set():
            with self.guarded():
                job = self.source.next_job()
        if isinstance(job, _End):
            return Searcher.FINISHED
        if job is None:
            return None
        self.runs[trial_id] = job.run
        return {"job": job}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        outcome, reason = (result or {}).get("outcome"), (result or {}).get("reason")
        if outcome == _LEFT:  # it has no end yet
            return
        if error or outcome is None:
            outcome, reason = "failed", f"its driver was lost {_LOST_DRIVERS + 1} times"
        with self.guarded():
            self.source.on_end(self.runs[trial_id], outcome, reason)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # Tune expects a file; nothing is read from it

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search goes on from its own files")

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Scores(tune.Callback):
    """Tells the search of every evaluation."""

    def __init__(self, searcher: _Source) -> None:
        self.searcher = searcher

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if "record" in result and "outcome" not in result:
            with self.searcher.guarded():
                self.searcher.source.on_scores(self.searcher.runs[trial.trial_id], result["record"])

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Leave(tune.Callback):
    """Lets the drivers know that the search was told to stop."""

    def __init__(self, told: threading.Event, judge: Any) -> None:
        self.told, self.judge = told, judge
        self.passed_on = False

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if self.told.is_set() and not self.passed_on:
            self.passed_on = True
            self.judge.leave.remote()

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class _Past:
    trial_id: str


class HalvingScheduler(AsyncHyperBandScheduler):
    """ASHA that asks a trial to stop (``stop``, with Tune's id) instead of killing it, and knows trials of before."""

    def __init__(self, halving: Halving, past: Sequence[Trial], stop: Callable[[str], None]) -> None:
        super().__init__(
            time_attr="words_seen",
            metric="score",
            mode=halving.mode,
            max_t=halving.max_words,
            grace_period=halving.grace_words,
            reduction_factor=halving.reduction_factor,
            stop_last_trials=False,
        )
        self.stop = stop
        for trial in past:
            for point in trial.points:
                if halving.metric in point:
                    score = self._metric_op * point[halving.metric]
                    self._brackets[0].on_result(_Past(trial.run), point["words"], score)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "outcome" in result:
            return TrialScheduler.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.stop(trial.trial_id)
        return TrialScheduler.CONTINUE

    def rungs(self) -> list[tuple[float, dict[str, float]]]:
        """Words and recorded scores (more is better) of every rung, the last first."""
        return [(milestone, dict(recorded)) for milestone, recorded in self._brackets[0]._rungs]

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _drive(job: TrialJob, judge: Any) -> dict[str, Any]:
    """In an actor of Tune: start the Train run, report its evaluations, bring the decisions back."""
    board = _cleared_board()
    ended: dict[str, Any] = {}
    told = threading.Event()
    thread = threading.Thread(target=_train, args=(job, board, told, ended), daemon=True)
    thread.start()
    reported = 0
    while True:
        running = thread.is_alive()  # before the look at the board, so that nothing is left there at the end
        for record in ray.get(board.scores_after.remote(reported)):
            reported += 1
            judged = {"score": record[job.metric]} if job.metric in record else {}
            # Returns when Tune has judged the result.
            tune.report({"words_seen": record["words"], "record": record, **judged})
            ray.get(board.decide.remote(reported, ray.get(judge.is_stopped.remote(job.run))))
        if not running:
            return ended
        if not told.is_set() and ray.get(judge.is_leaving.remote()):
            told.set()
        thread.join(_POLL_S)


_board: Any = None
"""Of the trials of this driver, one after the other."""


def _cleared_board() -> Any:
    global _board
    try:
        if _board is not None:
            ray.get(_board.clear.remote())
            return _board
    except RayError:
        pass  # it was lost with its node
    _board = TrialBoard.remote()
    return _board


def _train(job: TrialJob, board: Any, told: threading.Event, ended: dict[str, Any]) -> None:
    """Fills ``ended`` with how the run ended; errors are told there, because the search goes on."""
    recipe = recipe_from_dict(job.recipe)
    assert isinstance(recipe, Recipe)
    try:
        dataset = PreparedDataset.open(job.data_dir)
        # The search has stored what its first recipe needs; another batch or sequence length may need more.
        ensure_signal(recipe, dataset, job.places, Console(quiet=True))
        train_on_ray(
            recipe,
            dataset,
            job.run_dir,
            job.places,
            title=f"trial {job.number}",
            mlflow_run=job.mlflow_run,
            trial_board=board,
            told=told,
        )
        ended["outcome"] = "stopped" if ray.get(board.was_stopped.remote()) else "finished"
    except UserError as error:
        left = isinstance(error, Terminated) and told.is_set()
        ended.update(outcome=_LEFT if left else "failed", reason=str(error))
    except Exception as error:
        ended.update(outcome="failed", reason=f"{type(error).__name__}: {error}")
