"""A job in MLflow: one parent run, a child for each stage and one for the comparison."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.run_ledger import LEDGER, dataset_texts
from hgrnx.errors import UserError
from hgrnx.evaluation.points import CURVE
from hgrnx.paths import Places
from hgrnx.report.dynamics import DYNAMICS
from hgrnx.report.tables import summary_rows
from hgrnx.runs import read_json
from hgrnx.tracking import mlflow
from hgrnx.training.best import BEST

EXPERIMENT = "hgrnx"


class JobTracking:
    """The driver's side of MLflow. The store must answer when a job starts; later it may go away."""

    def __init__(self, places: Places, experiment: str = EXPERIMENT) -> None:
        """Set up or reach the store. Raises :class:`UserError` when it can't be used, before any work is done."""
        self.uri = places.mlflow_uri
        self.experiment = experiment
        mlflow.init_store(self.uri)

    def start(
        self,
        folder: Path,
        name: str,
        params: Mapping[str, Any],
        dataset: PreparedDataset,
        parent: str | None = None,
    ) -> str:
        """Begin the MLflow run of ``folder``, or go on in the one it had; returns its id."""
        return mlflow.start_run(
            self.uri,
            self.experiment,
            name,
            params=params,
            tags={"folder": folder, "data_hash": dataset.hash},
            parent_id=parent,
            dataset={
                "name": dataset.dir.name,
                "hash": dataset.hash,
                "source": str(dataset.dir),
                "profile": {
                    **{split: split_size(dataset, split) for split in ("train", "dev")},
                    "words": {text.name: text.words for text in dataset_texts(dataset.manifest)},
                },
            },
            run_dir=folder,
        )

    def link(self, parent: str, label: str, run_dir: Path) -> None:
        """Note on the job that a stage was finished by an earlier one, and send what MLflow still lacks of it."""
        run = mlflow.stored_run_id(run_dir)
        with _only_warn():
            mlflow.set_tags(self.uri, parent, {f"{label}.run": run_dir.name, f"{label}.mlflow_run": run or ""})
        if run is not None:
            mlflow.replay(self.uri, run, run_dir)

    def finish_training(self, run: str, run_dir: Path, finished: bool) -> None:
        """Close a stage's run with its artifacts: recipe, environment, scores and where the checkpoints are."""
        if finished:
            missing = mlflow.replay(self.uri, run, run_dir)
            if missing:
                print(f"MLflow lacks {missing} records of {run_dir.name}; the next call of this job sends them.")
            with _only_warn():
                self._log_artifacts(run, run_dir)
            self.log_dynamics(run, run_dir)
        self.finish(run, finished)

    def log_dynamics(self, run: str, run_dir: Path) -> None:
        """The benchmark scores over the training, where there are any."""
        if (run_dir / DYNAMICS).is_file():
            with _only_warn():
                mlflow.log_figure(self.uri, run, run_dir / DYNAMICS)
                mlflow.log_artifact(self.uri, run, run_dir / CURVE, "eval")

    def finish_early(self, run: str, run_dir: Path, stopped: bool, reason: str) -> None:
        """Close the run of a trial that was stopped (``KILLED`` in MLflow) or has failed, with its curve so far."""
        mlflow.replay(self.uri, run, run_dir)
        with _only_warn():
            mlflow.set_tags(self.uri, run, {"reason": reason})
            mlflow.finish_run(self.uri, run, "KILLED" if stopped else "FAILED")

    def log_search(
        self, run: str, folder: Path, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]
    ) -> None:
        """The table, the plots, the best recipe and the headline figures of a search, on its run."""
        with _only_warn():
            mlflow.log_table(self.uri, run, rows, "trials.json")
            mlflow.log_metrics(self.uri, run, metrics)
            names = ("best.yaml", "space.yaml", "summary.md")
            mlflow.log_artifacts(self.uri, run, [folder / name for name in names if (folder / name).is_file()])
            for plot in sorted(folder.glob("*.png")):
                mlflow.log_figure(self.uri, run, plot)

    def _log_artifacts(self, run: str, run_dir: Path) -> None:
        mlflow.log_artifacts(self.uri, run, [run_dir / name for name in ("recipe.yaml", "environment.json", LEDGER)])
        final = run_dir / "eval" / "final.json"
        mlflow.log_artifact(self.uri, run, final, "eval")
        for name, table in read_json(final)["tables"].items():
            if table:
                mlflow.log_table(self.uri, run, table, f"eval/{name}.json")
        tags = {
            "checkpoint": (run_dir / "checkpoints").resolve().as_uri(),
            "ledger.words": read_json(run_dir / LEDGER)["words"],
        }
        if (run_dir / BEST / "best.json").is_file():
            best = read_json(run_dir / BEST / "best.json")
            tags |= {f"best.{key}": best[key] for key in ("metric", "value", "step", "words")}
        mlflow.set_tags(self.uri, run, tags)

    def log_comparison(self, parent: str, folder: Path, runs: Mapping[str, Path], dataset: PreparedDataset) -> None:
        """The table and the plots, on the job's run and on a child called ``evaluation``."""
        metrics = {
            f"{label}/{name}": value
            for label, run_dir in runs.items()
            for name, value in read_json(run_dir / "eval" / "final.json")["metrics"].items()
        }
        aside = folder / "evaluation"
        aside.mkdir(exist_ok=True)
        with _only_warn():
            child = self.start(aside, f"{folder.name}-evaluation", {}, dataset, parent=parent)
            for run in (parent, child):
                mlflow.log_table(self.uri, run, summary_rows(runs), "summary.json")
                mlflow.log_artifact(self.uri, run, folder / "summary.md")
                for plot in sorted(folder.glob("*.png")):
                    mlflow.log_figure(self.uri, run, plot)
            mlflow.log_metrics(self.uri, child, metrics)
            mlflow.finish_run(self.uri, child)

    def log_files(self, run: str, files: Iterable[Path]) -> None:
        """Keep files among the artifacts of a run, in the place of earlier ones of the same names."""
        with _only_warn():
            mlflow.log_artifacts(self.uri, run, files)

    def finish(self, run: str, finished: bool) -> None:
        """Close a run as finished or failed."""
        with _only_warn():
            mlflow.finish_run(self.uri, run, "FINISHED" if finished else "FAILED")


@contextmanager
def _only_warn() -> Iterator[None]:
    """A finished training must not fail, nor its real error be hidden, because MLflow went away meanwhile."""
    try:
        yield
    except UserError as error:
        print(f"MLflow did not take everything; the next call of this job sends it again. {error}", file=sys.stderr)


def log_evaluation(
    places: Places, run_dir: Path, metrics: Mapping[str, float], files: Iterable[Path], figure: Path
) -> None:
    """Add scores, their files and a figure to the MLflow run of ``run_dir``; nothing where it has none."""
    run = mlflow.stored_run_id(run_dir)
    if run is None:
        return
    with _only_warn():
        mlflow.log_metrics(places.mlflow_uri, run, metrics)
        mlflow.log_artifacts(places.mlflow_uri, run, files, "eval")
        if figure.is_file():
            mlflow.log_figure(places.mlflow_uri, run, figure)


def split_size(dataset: PreparedDataset, split: str) -> dict[str, int]:
    """Words and documents of a split, for MLflow's dataset profile."""
    part = dataset.split(split)
    return {"words": part.words, "documents": part.documents}
