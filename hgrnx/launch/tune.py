"""`hgrnx tune`: what is missing first (text, teacher), then the search, then what it found."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from hgrnx.config import AnyRecipe, Recipe, flatten, run_name, to_yaml
from hgrnx.config.spaces import SearchPlan, space_yaml
from hgrnx.console import make_console
from hgrnx.data.benchmarks import read_minimal_pairs
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.folders import write_json
from hgrnx.data.loader import TrainLoader
from hgrnx.data.progress import prepare_with_progress
from hgrnx.data.run_ledger import LEDGER
from hgrnx.errors import UserError
from hgrnx.launch.capacity import trials_at_once
from hgrnx.launch.cluster import check_resources, connected
from hgrnx.launch.jobs import check_writable
from hgrnx.launch.ray_tune import END, Halving, TrialJob, run_trials
from hgrnx.launch.search_display import shown_search
from hgrnx.launch.search_findings import write_findings
from hgrnx.launch.search_folder import Facts, alone, forget, search_digest
from hgrnx.launch.search_request import RECIPE, SPACE
from hgrnx.launch.search_teacher import with_teacher
from hgrnx.launch.teacher_cache import ensure_signal, measure_live
from hgrnx.launch.tracked import JobTracking
from hgrnx.paths import Places
from hgrnx.report.search_tables import print_findings
from hgrnx.runs import read_json
from hgrnx.search.budget import is_spent, progress
from hgrnx.search.findings import Cost, best_trial, common_reason, measure_cost
from hgrnx.search.propose import propose
from hgrnx.search.trials import Trial, TrialRecord, unusable
from hgrnx.tracking.store_check import shown
from hgrnx.training.ledger import check_plan, plan_ledger

_ALL_FAIL = 5
"""So many trials failing from the start end a search: the rest would fail as well."""


@dataclass(frozen=True)
class SearchResult:
    """Where the pieces of a finished search are."""

    folder: Path
    """Record, table, plots, ``best.yaml``."""
    best: Trial


def run_search(
    plan: SearchPlan, places: Places, *, fresh: bool = False, console: Console | None = None
) -> SearchResult:
    """Do all that ``plan`` asks for; called again, it goes on where it ended or was killed.

    Args:
        fresh: forget the trials of an earlier search of exactly this plan, and their runs.

    Raises:
        UserError: anything the user has to put right; all trials failed.
        Terminated: this process got SIGTERM; the trials that were running have saved checkpoints.
    """
    console = console or make_console()
    recipe, space = plan.recipe, plan.space
    console.print(
        f"[bold]{recipe.name}[/bold], search\n  runs    {places.runs}\n  data    {places.data}\n"
        f"  MLflow  {shown(places.mlflow_uri)}",
        highlight=False,
    )
    for sentence in plan.left_out:
        console.print(f"not searched: {sentence}", highlight=False)
    check_writable(places)
    if recipe.evaluation.minimal_pairs is not None:
        read_minimal_pairs(Path(recipe.evaluation.minimal_pairs))
    dataset = prepare_with_progress(recipe.data, places, console)
    folder = places.run_dir(f"{recipe.name}-search-{search_digest(plan, dataset)}")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder), connected(places, dashboard=True):
        tracking = JobTracking(places)
        if fresh:
            forget(folder, places)
        (folder / RECIPE).write_text(to_yaml(recipe), encoding="utf-8")
        (folder / SPACE).write_text(space_yaml(space), encoding="utf-8")
        search = Search(plan, dataset, places, folder, tracking, console)
        return search.run()


class Search:
    """One search: the source of trials for :func:`~hgrnx.launch.ray_tune.run_trials`, and their judge."""

    def __init__(
        self,
        plan: SearchPlan,
        dataset: PreparedDataset,
        places: Places,
        folder: Path,
        tracking: JobTracking,
        console: Console,
    ) -> None:
        self.plan, self.dataset, self.places, self.folder = plan, dataset, places, folder
        self.tracking, self.console = tracking, console
        self.base: AnyRecipe = plan.recipe
        self.record = TrialRecord(folder / "trials")
        self.facts = Facts(folder / "search.json")
        self.to_continue = self.record.with_status("running")
        self.begun: dict[str, tuple[Trial, float, float]] = {}  # run: trial, when it began, seconds before that
        self.mlflow_runs: dict[str, str] = {}
        self.recipes: dict[str, Recipe] = {}
        self.memory_mb: float | None = None
        self.resources: dict[str, float] = {}
        self.problem: str | None = None
        self.parent = ""

    @property
    def metrics(self) -> list[str]:
        """The metrics of the objectives."""
        return [objective.metric for objective in self.plan.space.objectives]

    def run(self) -> SearchResult:
        """Teacher, trials, findings."""
        check_resources(self.base.launch)
        check_resources(self.plan_recipe({}).launch)
        self.resources = dict(ray.cluster_resources())
        self.parent = self.tracking.start(self.folder, self.folder.name, flatten(self.plan.recipe), self.dataset)
        finished = False
        try:
            self.base = with_teacher(
                self.base, self.dataset, self.places, self.facts, self.tracking, self.parent, self.console
            )
            self._prepare_signal()
            self._announce()
            past = self.record.with_status("finished", "stopped")
            try:
                with self.facts.clock("hours"), self._shown():
                    run_trials(self, self._halving(), past, self.folder / "ray")
            finally:
                self._note_cut_off()
            result = self._conclude()
            finished = True
            return result
        finally:
            self.tracking.finish(self.parent, finished)

    # What Tune asks and tells.

    def next_job(self) -> Any:
        """The next trial to run; None when the machine is full, END when the search is over."""
        if self.problem is not None:
            return END
        if len(self.begun) >= trials_at_once(self.plan_recipe({}).launch, self.resources, self.memory_mb):
            return None
        while self.to_continue:
            job = self._begin(self.to_continue.pop(0), continued=True)
            if job is not None:
                return job
        while not is_spent(self.plan.space.budget, self.record.trials, self.facts.elapsed("hours")):
            parameters = propose(self.plan, self.record.trials)
            if parameters is None:
                return END
            try:
                run = run_name(self._single(self.plan_recipe(parameters)), self.dataset.hash)
                problem = None
            except UserError as error:
                run, problem = f"trial-{len(self.record)}", str(error)
            twin = next((trial for trial in self.record if trial.run == run), None)
            trial = self.record.add(run, parameters)
            if problem is None and twin is not None:
                problem = f"the same recipe as trial {twin.number}"
            if problem is not None:
                self._end(trial, "failed", problem)
                continue
            job = self._begin(trial)
            if job is not None:
                return job
        return END

    def on_scores(self, run: str, record: dict[str, float]) -> None:
        """Note an evaluation of a running trial."""
        trial, began, before = self.begun[run]
        memory = record.get("memory_mb")
        if memory is not None:
            trial.memory_mb = max(memory, trial.memory_mb or 0.0)
            self.memory_mb = max(memory, self.memory_mb or 0.0)
        trial.add_point({key: value for key, value in record.items() if key not in {"step", "memory_mb"}})
        trial.seconds = before + time.monotonic() - began
        self.record.save(trial)
        self.facts.tick("hours")

    def on_end(self, run: str, outcome: str, reason: str | None) -> None:
        """Note how a trial ended."""
        trial, began, before = self.begun.pop(run)
        trial.seconds = before + time.monotonic() - began
        run_dir = self.places.run_dir(run)
        if outcome == "finished":
            outcome, reason = self._finish(trial, run_dir)
        if outcome == "stopped":
            reason = f"behind the others after {trial.words:,} words"
        mlflow_run = self.mlflow_runs.get(run)
        if mlflow_run is not None and outcome == "finished":
            self.tracking.finish_training(mlflow_run, run_dir, True)
        elif mlflow_run is not None:
            self.tracking.finish_early(mlflow_run, run_dir, outcome == "stopped", reason or "")
        self._end(trial, outcome, reason)

    # The parts.

    def plan_recipe(self, parameters: dict[str, Any]) -> AnyRecipe:
        """The whole recipe of a trial, which can be run as it is: its teacher is named in it."""
        return SearchPlan(self.base, self.plan.space, ()).trial_recipe(parameters)

    def _single(self, recipe: AnyRecipe) -> Recipe:
        if isinstance(recipe, Recipe):
            return recipe
        return recipe.student_recipe(recipe.distill.teachers)

    def _prepare_signal(self) -> None:
        """Store what the teacher says once, if the recipe asks for it; measure what a step beside the teacher takes."""
        recipe = self._single(self.base)
        with self.facts.clock("signal_seconds"):
            stored = ensure_signal(recipe, self.dataset, self.places, self.console)
        if stored is not None and self.facts.get("live_ratio") is None:
            trial = self._single(self.plan_recipe({}))
            self.facts.set("live_ratio", measure_live(trial, self.dataset, self.places, self.console))

    def _announce(self) -> None:
        known = self.record.counts()
        if len(self.record):
            self.console.print(
                f"Going on: {known['finished']} trials finished, {known['stopped']} stopped early, "
                f"{known['failed']} failed, {known['running']} to be continued",
                highlight=False,
            )

    def _halving(self) -> Halving | None:
        space = self.plan.space
        if space.scheduler == "none":
            return None
        words = self._trial_words()
        objective = space.objectives[0]
        return Halving(objective.metric, objective.mode, self._grace_words(), words, space.reduction_factor)

    def _trial_words(self) -> int:
        """Words of a trial with the recipe's own batch size; another one changes them by less than a batch."""
        training = self.base.training
        loader = TrainLoader(self.dataset, training.seq_len, training.batch_size, self.base.seed)
        return loader.words_seen(loader.steps_for(training.duration))

    def _grace_words(self) -> int:
        return max(1, int(self._trial_words() * self.plan.space.grace_period))

    def _begin(self, trial: Trial, continued: bool = False) -> TrialJob | None:
        """Start a trial, or go on with it; None where that needs no run, or can't be."""
        run_dir = self.places.run_dir(trial.run)
        if (run_dir / "result.json").is_file():
            outcome, reason = self._finish(trial, run_dir)
            if continued:  # the search was killed just before it took note
                run = self._start_mlflow(trial, run_dir, {})
                if run is not None:
                    self.tracking.finish_training(run, run_dir, True)
            else:
                trial.reused = True
                self.tracking.link(self.parent, f"trial-{trial.number}", run_dir)
            self._end(trial, outcome, reason)
            return None
        try:
            recipe = self._single(self.plan_recipe(trial.parameters))
            ledger = plan_ledger(recipe, self.dataset, trial.run, self.places.runs)
            check_plan(recipe, ledger)
        except UserError as error:
            self._end(trial, "failed", str(error))
            return None
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / LEDGER, ledger.as_dict())
        if self.plan.space.scheduler == "asha":
            evaluation = recipe.evaluation.model_copy(update={"every": f"{self._grace_words()} words"})
            recipe = recipe.model_copy(update={"evaluation": evaluation})
        training = recipe.training.model_copy(update={"keep_checkpoints": 1})
        recipe = recipe.model_copy(update={"training": training})
        mlflow_run = self._start_mlflow(trial, run_dir, flatten(recipe))
        self.begun[trial.run] = (trial, time.monotonic(), trial.seconds)
        return TrialJob(
            trial.number,
            trial.run,
            self.metrics[0],
            recipe.model_dump(mode="json"),
            run_dir,
            self.dataset.dir,
            self.places,
            mlflow_run,
        )

    def _start_mlflow(self, trial: Trial, run_dir: Path, params: dict[str, Any]) -> str | None:
        try:
            run = self.tracking.start(run_dir, run_dir.name, params, self.dataset, parent=self.parent)
        except UserError as error:  # it answered when the search began; the search does not end with it
            self.console.print(f"Warning: MLflow does not have trial {trial.number}: {error}", markup=False)
            return None
        self.mlflow_runs[trial.run] = run
        return run

    def _finish(self, trial: Trial, run_dir: Path) -> tuple[str, str | None]:
        """Read a finished run's values; a run that can't be judged has failed."""
        result = read_json(run_dir / "result.json")
        trial.seconds = max(trial.seconds, result["seconds"])  # a kill may have cut off what was noted
        trial.values = {
            **read_json(run_dir / "eval" / "final.json")["metrics"],
            "seconds": result["seconds"],
            "parameters": result["parameters"]["total"],
            "words": result["words"],
        }
        reason = unusable(trial, self.metrics)
        return ("finished", None) if reason is None else ("failed", reason)

    def _end(self, trial: Trial, outcome: Any, reason: str | None) -> None:
        trial.status, trial.reason = outcome, reason
        self.record.save(trial)
        if not self.console.is_terminal:
            score = trial.score(self.metrics[0])
            shown = f" {self.metrics[0]} {score:.4f}" if score is not None else ""
            self.console.print(
                f"trial {trial.number}: {outcome}{shown} after {trial.words:,} words, {trial.seconds:.0f} s"
                + (f" ({reason})" if reason else ""),
                highlight=False,
                markup=False,
            )
        ended = self.record.with_status("finished", "stopped", "failed")
        failed = self.record.with_status("failed")
        if len(failed) == len(ended) >= min(_ALL_FAIL, self.plan.space.budget.trials or _ALL_FAIL) and not self.begun:
            self.problem = common_reason(failed)

    def _shown(self) -> AbstractContextManager[None]:
        def state() -> str:
            return progress(self.plan.space.budget, self.record.trials, self.facts.elapsed("hours"))

        return shown_search(lambda: list(self.record), self.plan.space, state, self.places.runs, self.console)

    def _note_cut_off(self) -> None:
        """Seconds of the trials that a stop of the search has cut off; in MLflow they do not run any more."""
        for run, (trial, began, before) in self.begun.items():
            trial.seconds = before + time.monotonic() - began
            self.record.save(trial)
            if run in self.mlflow_runs:
                self.tracking.finish(self.mlflow_runs[run], False)

    def _conclude(self) -> SearchResult:
        """Tables, plots, ``best.yaml``, MLflow. Raises :class:`UserError` where no trial has finished."""
        space, objective = self.plan.space, self.plan.space.objectives[0]
        trials = list(self.record)
        best = best_trial(trials, objective)
        if self.problem is not None or best is None:
            failed = self.record.with_status("failed")
            reason = self.problem or (common_reason(failed) if failed else "The budget was too small.")
            raise UserError(
                f"The search found nothing: no trial reached its end. {reason}\nIts records are in "
                f"{self.record.folder}; --fresh starts over once the reason is gone."
            )
        (self.folder / "best.yaml").write_text(to_yaml(self.plan_recipe(best.parameters)), encoding="utf-8")
        cost = self._cost(trials)
        findings = write_findings(self.plan, trials, cost, self.folder)
        figures = {f"best/{metric}": best.values[metric] for metric in self.metrics}
        figures |= {f"trials/{status}": float(count) for status, count in self.record.counts().items()}
        self.tracking.log_search(self.parent, self.folder, findings.rows, figures | findings.figures)
        print_findings(findings.rows, space, findings.shares, findings.early, self.console)
        job = "train" if isinstance(self.base, Recipe) else "distill"
        self.console.print(
            f"\n{cost.sentence()}\n\nBest recipe       {self.folder / 'best.yaml'}\n"
            f"Run it            hgrnx {job} {self.folder / 'best.yaml'}      (finished before: --fresh runs it again)\n"
            f"Table and plots   {self.folder}\n"
            f"All trials        hgrnx ui      (MLflow run '{self.folder.name}')",
            highlight=False,
            soft_wrap=True,
        )
        return SearchResult(self.folder, best)

    def _cost(self, trials: list[Trial]) -> Cost:
        words = int(0.98 * self._trial_words())  # another batch size ends a little earlier
        teacher, signal = (self.facts.get(f"{name}_seconds") or 0.0 for name in ("teacher", "signal"))
        return measure_cost(trials, words, self.facts.elapsed("hours"), teacher, signal, self.facts.get("live_ratio"))
