"""`hgrnx reproduce`: an experiment's runs on Ray, as many at a time as there is room for, their scores, the report.

Every run is an ordinary one: found again by its name, not repeated when it is finished, continued when it is not. So
the same command goes on where it was stopped.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

from hgrnx.config.experiments import ExperimentPlan
from hgrnx.data.folders import write_json
from hgrnx.errors import Terminated, UserError
from hgrnx.evaluation.catalogue import Plan, plan_tasks
from hgrnx.launch.cluster import connected
from hgrnx.launch.dependencies import do_in_order
from hgrnx.launch.evaluate_tasks import evaluate_tasks
from hgrnx.launch.experiment_plan import PlannedRun, experiment_folder, prepare_runs, room
from hgrnx.launch.experiment_report import write_report
from hgrnx.launch.jobs import check_writable, run_stage
from hgrnx.launch.milestones import score_milestones
from hgrnx.launch.sigterm import heeded
from hgrnx.launch.task_request import TaskRequest
from hgrnx.launch.tracked import JobTracking
from hgrnx.paths import Places
from hgrnx.report.experiment_files import FAILURES, PLAN
from hgrnx.report.summary import duration
from hgrnx.report.task_scores import TITLES
from hgrnx.runs import read_json


def run_experiment(
    plan: ExperimentPlan,
    places: Places,
    console: Console,
    *,
    data: Path | None = None,
    at_once: int | None = None,
    command: str = "",
) -> Path:
    """Run what is missing of an experiment, score it and write its report.

    Args:
        data: folder of the benchmark tasks' files, where the experiment is scored on any.
        at_once: runs at a time; as many as the cluster has room for when None.
        command: what was typed, for the report.

    Returns:
        The experiment's folder: ``experiment.json``, ``report.html`` and ``report.md``.

    Raises:
        UserError: before anything is run, with all problems at once; at the end, naming the runs that failed. Those
            that did not are finished and in the report.
        Terminated: this process got SIGTERM; the runs that were training have saved checkpoints.
    """
    check_writable(places)
    problems = []
    tasks: Plan | None = None
    try:
        tasks = plan_tasks(plan.tasks, data) if plan.tasks else None
    except UserError as error:
        problems.append(f"{error}\n  Name the folder of the tasks' files with --data DIR.")
    try:
        runs = prepare_runs(plan, places, console)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    folder = experiment_folder(plan, runs, places)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, describe(plan, runs, data, command))
    tracking = JobTracking(places, f"hgrnx {plan.title}")
    with connected(places), heeded() as told:
        return _Work(plan, runs, places, tracking, console, folder, tasks, data, told).run(at_once)


def describe(plan: ExperimentPlan, runs: Sequence[PlannedRun], data: Path | None, command: str) -> dict[str, Any]:
    """``experiment.json``: what the report needs to know of an experiment besides its runs' own files."""
    arms: dict[str, Any] = {}
    for name, arm in plan.arms.items():
        mine = [run for run in runs if run.arm == name]
        arms[name] = {
            "title": arm.title,
            "family": arm.family,
            "key": arm.key,
            "value": arm.value,
            "teachers": list(arm.teachers),
            "parameters": dict(mine[0].cost.parameters),
            "words": mine[0].cost.words,
            "tokens": mine[0].cost.tokens,
            "flops": mine[0].cost.flops,
            "dev_documents": mine[0].recipe.evaluation.final_dev_documents,
            "runs": {str(run.seed): run.run_dir.name for run in mine},
        }
    return {
        "name": plan.name,
        "scale": plan.scale,
        "title": plan.config.title,
        "question": plan.config.question,
        "paper": plan.config.paper,
        "command": command,
        "data": str(data) if data is not None else None,
        "seeds": list(plan.seeds),
        "tasks": list(plan.tasks),
        "comparisons": [list(pair) for pair in plan.comparisons],
        "arms": arms,
    }


@dataclass
class _Work:
    """One call of an experiment: runs are trained as there is room for them, and scored one after the other beside."""

    plan: ExperimentPlan
    runs: list[PlannedRun]
    places: Places
    tracking: JobTracking
    console: Console
    folder: Path
    tasks: Plan | None
    data: Path | None
    told: threading.Event
    """SIGTERM came."""
    over: threading.Event = field(default_factory=threading.Event)
    """Whatever the reason, nothing more is to be scored."""
    failures: dict[str, str] = field(default_factory=dict)
    """By run name."""
    done: int = 0
    busy: float = 0.0
    """CPUs of the runs that are being trained."""
    scorer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "hgrnx-scores"))
    scored: list[Future[None]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    """For what several runs change, the report included."""

    def run(self, at_once: int | None) -> Path:
        facts = {"experiment": self.plan.name, "scale": self.plan.scale, "seeds": list(self.plan.seeds)}
        parent = self.tracking.start(self.folder, self.folder.name, facts, self.runs[0].dataset)
        self._say(f"{len(self.runs)} runs; {self.folder}")
        finished = False
        (self.folder / FAILURES).unlink(missing_ok=True)  # of an earlier call: all is tried again
        try:
            most = at_once or min(room(run.recipe, ray.cluster_resources()) for run in self.runs)
            by_name = {run.run_dir.name: run for run in self.runs}
            needs = {name: run.teachers for name, run in by_name.items()}
            do_in_order(needs, most, lambda name: self._train(by_name[name], parent))
            for waiting in self.scored:
                waiting.result()
            self._report(parent)
            finished = not self.failures
        finally:
            self.over.set()  # after an error or Ctrl-C: scoring ends with the share it is at
            self.scorer.shutdown(wait=False, cancel_futures=True)
            self.tracking.finish(parent, finished)
        self.console.print(
            f"\nReport {self.folder / 'report.html'}\n       {self.folder / 'report.md'}", highlight=False
        )
        if self.failures:
            lines = "\n".join(f"  {name}: {message}" for name, message in self.failures.items())
            raise UserError(
                f"{len(self.failures)} of {len(self.runs)} runs failed; the report is of the others:\n{lines}"
            )
        return self.folder

    def _train(self, run: PlannedRun, parent: str) -> None:
        """Train a run where that is missing, and have it scored."""
        name = run.run_dir.name
        cpus = run.recipe.launch.num_workers * run.recipe.launch.cpus_per_worker
        with self._failing_alone(run):
            for teacher in run.teachers:
                if not (self.places.run_dir(teacher) / "result.json").is_file():
                    raise UserError(f"its teacher {teacher} has failed")
            with self._busy(cpus):
                trained = run_stage(
                    run.label,
                    run.recipe,
                    run.run_dir,
                    run.ledger,
                    run.dataset,
                    self.places,
                    self.tracking,
                    parent,
                    self.console,
                )
            if not trained:
                self.tracking.link(parent, name, run.run_dir)
            how = "trained" if trained else "finished before"
            if self.tasks is None:
                self._finish(run, how, {}, parent)
                return
            if trained:
                self._say(f"{run.label}: trained, to be scored")
            self.scored.append(self.scorer.submit(self._score, run, how, self.tasks, parent))

    def _score(self, run: PlannedRun, how: str, tasks: Plan, parent: str) -> None:
        with self._failing_alone(run):
            torch.set_num_threads(self._free_cores())
            score_milestones(
                run.run_dir,
                tasks.tasks,
                lambda name: self._say(f"{run.label}: scored {name}"),
                on_share=self._check_going_on,
            )
            request = TaskRequest(self.data, tuple(self.plan.tasks))
            quiet = Console(file=io.StringIO())
            scores = evaluate_tasks(str(run.run_dir), self.places, request, quiet, on_share=self._check_going_on)
            self._finish(run, how, scores, parent)

    def _finish(self, run: PlannedRun, how: str, scores: Mapping[str, Any], parent: str) -> None:
        with self.lock:
            self.done += 1
            self._say(f"{run.label}: {how}{_headline(run.run_dir, scores)}")
            self._report(parent)

    @contextmanager
    def _failing_alone(self, run: PlannedRun) -> Iterator[None]:
        """The others can still be finished, and a learning rate that is too high is a result."""
        try:
            self._check_going_on()
            yield
        except UserError as error:
            if self.told.is_set():  # then it is none of this run
                raise Terminated(
                    f"{self.plan.title} was stopped by SIGTERM. The same command goes on from the last checkpoints."
                ) from None
            if self.over.is_set():
                raise
            with self.lock:
                self.failures[run.run_dir.name] = str(error)
                write_json(self.folder / FAILURES, self.failures)
                self._say(f"{run.label}: failed: {error}")

    def _check_going_on(self) -> None:
        if self.told.is_set() or self.over.is_set():
            raise Terminated

    @contextmanager
    def _busy(self, cpus: int) -> Iterator[None]:
        with self.lock:
            self.busy += cpus
        try:
            yield
        finally:
            with self.lock:
                self.busy -= cpus

    def _free_cores(self) -> int:
        """This machine's share of the CPUs of the cluster on which nothing is being trained; one at least.

        Workers are given a low priority by Ray: scoring on all cores would hold up what is trained on them.
        """
        all_cpus = max(1.0, ray.cluster_resources().get("CPU", 1.0))
        return max(1, round((os.cpu_count() or 1) * (1 - self.busy / all_cpus)))

    def _report(self, parent: str) -> None:
        files = write_report(self.folder, self.places)
        self.tracking.log_files(parent, [self.folder / PLAN, *files])

    def _say(self, text: str) -> None:
        self.console.print(f"{self.plan.title} [{self.done}/{len(self.runs)}] {text}", highlight=False, markup=False)


def _headline(run_dir: Path, scores: Mapping[str, Any]) -> str:
    result = read_json(run_dir / "result.json")
    metrics = read_json(run_dir / "eval" / "final.json")["metrics"]
    parts = [f"{metrics['dev/bits_per_byte']:.4f} bits per byte"] if "dev/bits_per_byte" in metrics else []
    parts += [f"minimal pairs {100 * metrics['pairs/accuracy']:.1f}"] if "pairs/accuracy" in metrics else []
    for task, tables in scores.get("tasks", {}).items():
        if tables["overall"] is not None:
            parts.append(f"{TITLES[task]} {100 * tables['overall']['accuracy_ties_half']:.1f}")
    return "".join(f", {part}" for part in [*parts, duration(result["seconds"])])
