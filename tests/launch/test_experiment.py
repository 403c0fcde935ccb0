"""`hgrnx reproduce` and `hgrnx report` on a real local Ray: two arms, a few steps, stopped in the middle, reported."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from eval_data import write_eval_data
from experiment_page import Page
from rich.console import Console

from hgrnx.config.experiments import ExperimentPlan, plan_experiment
from hgrnx.errors import Terminated, UserError
from hgrnx.launch import experiment as running
from hgrnx.launch.experiment import run_experiment
from hgrnx.launch.experiment_plan import plan_costs, prepare_runs, room
from hgrnx.launch.experiment_report import find_experiment, report_experiment
from hgrnx.paths import Places, resolve_places
from hgrnx.training.checkpoint import last_saved_step

SHORT = [
    "data.words=6000",
    "data.vocab_size=400",
    "training.duration=12 steps",
    "training.batch_size=8",
    "training.seq_len=32",
    "training.log_every=1",
    "evaluation.dev_documents=10",
    "evaluation.pairs_per_file=4",
    "evaluation.every=6 steps",
]


def short(name: str = "table2", *overrides: str, arms: tuple[str, ...] = ("hgrn2", "transformer")) -> ExperimentPlan:
    return plan_experiment(name, "demo", seeds=[0], arms=arms, overrides=[*SHORT, *overrides])


def console() -> Console:
    return Console(record=True, width=200, file=io.StringIO())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return resolve_places(tmp_path_factory.mktemp("home"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
class TestOnRay:
    """In order: the first run of two, a stop, the second, a call with nothing left to do."""

    def test_stopped_continued_and_not_repeated(self, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
        plan, screen = short(), console()
        stage = running.run_stage

        def stop_at_second(label: str, *rest: object) -> bool:
            if "transformer" in label:
                raise KeyboardInterrupt
            return stage(label, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(running, "run_stage", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(plan, places, screen, at_once=1, command="hgrnx reproduce table2 ...")
        folder = find_experiment("table2-demo", places)
        half = (folder / "report.md").read_text()
        assert "1 of 2 runs finished" in half and "Transformer, seed 0: not started" in half
        first = next(places.runs.glob("table2-demo-hgrn2-s0-*"))
        before = (first / "metrics.jsonl").stat().st_mtime_ns
        monkeypatch.setattr(running, "run_stage", stage)
        assert run_experiment(plan, places, screen, at_once=1, command="hgrnx reproduce table2 ...") == folder
        assert (first / "metrics.jsonl").stat().st_mtime_ns == before
        shown = screen.export_text()
        assert "hgrn2 (seed 0): finished before" in shown and "[2/2] transformer (seed 0): trained" in shown
        whole = (folder / "report.md").read_text()
        assert "2 of 2 runs finished" in whole and "HGRN2 − Transformer | minimal pairs" in whole

    def test_mlflow_has_one_experiment_with_a_parent(self, places: Places) -> None:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(places.mlflow_uri)
        found = client.get_experiment_by_name("hgrnx table2-demo")
        assert found is not None
        runs = {run.info.run_name: run for run in client.search_runs([found.experiment_id])}
        folder = find_experiment("table2-demo", places)
        parent = runs.pop(folder.name)
        assert len(runs) == 2 and parent.info.status == "FINISHED"
        assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
        names = {item.path for item in client.list_artifacts(parent.info.run_id)}
        assert names >= {"report.html", "report.md", "experiment.json"}

    def test_sigterm_ends_all_runs_after_a_checkpoint(self, tmp_path: Path) -> None:
        places = resolve_places(tmp_path)
        plan = short(
            "table2", "training.duration=100000 steps", "training.checkpoint_every=90%", "evaluation.every=90%"
        )

        def lines() -> list[int]:
            return [path.read_text().count("\n") for path in places.runs.glob("*/metrics.jsonl")]

        def stop() -> None:
            until = time.monotonic() + 120
            while (len(lines()) < 2 or min(lines()) < 3) and time.monotonic() < until:
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(Terminated, match=r"table2-demo was stopped by SIGTERM\. The same command goes on"):
            run_experiment(plan, places, console(), at_once=2)
        stopper.join()
        runs = list(places.runs.glob("table2-demo-*-s0-*"))
        assert [last_saved_step(run / "checkpoints") > 2 for run in runs] == [True, True]
        assert not list(places.runs.glob("*/failures.json")), "to be stopped is not to fail"

    def test_the_next_run_is_trained_while_one_is_scored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        places, screen = resolve_places(tmp_path / "home"), console()
        data = write_eval_data(tmp_path / "eval")
        plan = dataclasses.replace(short(), tasks=("supplement",))
        stage, evaluate = running.run_stage, running.evaluate_tasks
        both_trained = threading.Event()

        def note(label: str, *rest: object) -> bool:
            trained = stage(label, *rest)  # type: ignore[arg-type]
            if "transformer" in label:
                both_trained.set()
            return trained

        def wait(name: str, *rest: object, **options: object) -> dict[str, object]:
            assert both_trained.wait(120), "the second run waits for the scores of the first"
            return evaluate(name, *rest, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(running, "run_stage", note)
        monkeypatch.setattr(running, "evaluate_tasks", wait)
        folder = run_experiment(plan, places, screen, at_once=1, data=data)
        for run in places.runs.glob("table2-demo-*-s0-*"):
            scores = json.loads((run / "eval" / "tasks.json").read_text())
            assert scores["tasks"]["supplement"]["overall"] is not None
        shown = screen.export_text()
        assert shown.index("transformer (seed 0): trained, to be scored") < shown.index("[1/2] hgrn2 (seed 0): trained")
        assert "[2/2] transformer (seed 0): trained" in shown and "BLiMP Supplement" in shown
        assert "2 of 2 runs finished" in (folder / "report.md").read_text()

    def test_sigterm_ends_scoring_after_a_share(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        places = resolve_places(tmp_path / "home")
        data = write_eval_data(tmp_path / "eval")
        plan = dataclasses.replace(short(arms=("hgrn2",)), tasks=("supplement",))
        evaluate = running.evaluate_tasks

        def tell(*rest: object, **options: object) -> dict[str, object]:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # of the main thread, which the signal goes to
            return evaluate(*rest, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(running, "evaluate_tasks", tell)
        with pytest.raises(Terminated, match=r"table2-demo was stopped by SIGTERM\. The same command goes on"):
            run_experiment(plan, places, console(), data=data)
        (run,) = places.runs.glob("table2-demo-hgrn2-s0-*")
        assert (run / "result.json").is_file() and not (run / "eval" / "tasks.json").exists()
        assert len(list((run / "eval" / "finished").glob("*/supplement/*"))) == 1, "what was asked is kept"
        assert not list(places.runs.glob("*/failures.json")), "to be stopped is not to fail"
        monkeypatch.setattr(running, "evaluate_tasks", evaluate)
        run_experiment(plan, places, console(), data=data)
        assert (run / "eval" / "tasks.json").is_file()

    def test_a_run_whose_workers_are_told_to_leave_again_and_again_stops_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage = running.run_stage

        def leave(label: str, *rest: object) -> bool:
            if "hgrn2" in label:
                raise Terminated("told to leave again and again")
            return stage(label, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(running, "run_stage", leave)
        with pytest.raises(UserError, match="1 of 2 runs failed.*\n.*hgrn2.*again and again"):
            run_experiment(short(), resolve_places(tmp_path), console(), at_once=2)

    @pytest.mark.long
    def test_students_follow_their_teacher_and_a_failed_run_stops_no_other(self, places: Places) -> None:
        plan = short("distill", "arms.twin.training.learning_rate=1e30", arms=("student-2", "twin"))
        with pytest.raises(UserError, match="1 of 3 runs failed.*\n.*training loss is") as error:
            run_experiment(plan, places, console(), at_once=2)
        assert "distill-demo-twin-s0" in str(error.value)
        folder = find_experiment("distill-demo", places)
        record = json.loads((folder / "experiment.json").read_text())
        student = places.runs / record["arms"]["student-2"]["runs"]["0"]
        assert (student / "result.json").is_file()
        assert record["arms"]["teacher"]["runs"]["0"] in (student / "recipe.yaml").read_text()
        assert "Next token only, seed 0: failed: " in (folder / "report.md").read_text()

    def test_the_page_says_what_the_files_say(self, places: Places) -> None:
        folder = find_experiment("table2-demo", places)
        report_experiment("table2-demo", places, console())
        page = Page((folder / "report.html").read_text())
        plan = json.loads((folder / "experiment.json").read_text())
        for arm in plan["arms"].values():
            run = places.runs / arm["runs"]["0"]
            metrics = json.loads((run / "eval" / "final.json").read_text())["metrics"]
            row = next(row for row in page.rows if row[0] == arm["title"])
            pairs = f"{100 * metrics['pairs/accuracy_ties_half']:.1f} ({100 * metrics['pairs/accuracy_stderr']:.1f})"
            assert row[1:3] == [pairs, f"{metrics['dev/bits_per_byte']:.4f}"]
        assert page.unclosed == [] and not page.fetched


def test_problems_come_before_anything_is_run(tmp_path: Path) -> None:
    places = resolve_places(tmp_path)
    unequal = short("table2", "arms.hgrn2.model.hidden_size=128")
    with pytest.raises(UserError, match="equal within 3%.*hgrn2 has"):
        run_experiment(unequal, places, console())
    plan = plan_experiment("data", "cpu", overrides=["data.source=/nowhere"])
    with pytest.raises(UserError) as error:
        run_experiment(plan, places, console(), data=tmp_path)
    for part in ("There are no benchmarks", "--data DIR", "babylm: ", "pile: "):
        assert part in str(error.value)
    assert list(places.runs.iterdir()) == []


def test_cost_is_arithmetic(tmp_path: Path) -> None:
    places = resolve_places(tmp_path)
    plan = short("distill", arms=("student-2", "twin"))
    assumed = plan_costs(plan, places)
    assert assumed["twin"].assumed and assumed["twin"].tokens == pytest.approx(12 * 8 * 32)
    teacher, student, twin = (run.cost for run in prepare_runs(plan, places, console()))
    assert not twin.assumed and twin.tokens == 12 * 8 * 32 and twin.flops == teacher.flops
    assert student.flops == pytest.approx(4 / 3 * twin.flops)  # and a forward of a teacher of the same size
    known = plan_costs(plan, places)
    assert known["student-2"] == student and known["twin"] == twin


def test_room_is_what_the_cluster_has() -> None:
    recipe = short("table2", "launch.num_workers=2").arms["hgrn2"].recipes[0]
    assert [room(recipe, {"CPU": cpus}) for cpus in (1, 2, 5, 16)] == [1, 1, 2, 8]
    on_gpu = recipe.model_copy(update={"launch": recipe.launch.model_copy(update={"use_gpu": True})})
    assert room(on_gpu, {"CPU": 64, "GPU": 8}) == 4 and room(on_gpu, {"CPU": 4, "GPU": 8}) == 2
