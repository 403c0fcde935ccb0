"""`hgrnx eval --workers`: the scores of one and two workers, of killed workers and killed drivers, on a real Ray."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from eval_data import write_eval_data
from rich.console import Console
from small_model import write_model

from hgrnx.config import GlueConfig
from hgrnx.errors import UserError
from hgrnx.evaluation import shares
from hgrnx.evaluation.shares import Share
from hgrnx.launch import ray_eval
from hgrnx.launch.evaluate_tasks import evaluate_tasks
from hgrnx.launch.task_request import TaskRequest
from hgrnx.paths import resolve_places
from hgrnx.runs import evaluation_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
QUICK = GlueConfig(epochs=2, batch_size=4, max_length=16)
TASKS = ("supplement", "ewok", "bear", "cola", "sst2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_data(tmp_path_factory.mktemp("eval"), items=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares.cut, "__defaults__", (16,))


def score(folder: Path, home: Path, data: Path, *tasks: str, **options: Any) -> tuple[dict[str, Any], str]:
    console = Console(record=True, width=160, file=io.StringIO())
    request = TaskRequest(data, tasks or TASKS, glue=QUICK, seeds=(1, 2))
    content = evaluate_tasks(str(folder), resolve_places(home), request, console, **options)
    return content, console.export_text()


def predictions(folder: Path, home: Path) -> bytes:
    return (evaluation_folder(folder, resolve_places(home)) / "tasks-predictions.json.gz").read_bytes()


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::_Worker"):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.fixture(scope="module")
def alone(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """What this process gives."""
    home = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares.cut, "__defaults__", (16,))
        return score(folder, home, data)[0], predictions(folder, home)


def test_one_worker_gives_the_files_of_this_process(
    folder: Path, data: Path, alone: tuple[dict[str, Any], bytes], tmp_path: Path
) -> None:
    content, shown = score(folder, tmp_path, data, workers=1)
    assert content == alone[0]
    assert predictions(folder, tmp_path) == alone[1], "to the last bit"
    assert "cola, seed 2, epoch 2" in shown and "texts asked" in shown
    wait_until(lambda: not workers(), "a worker is left behind")


def test_two_workers_of_which_one_is_killed_give_the_same_files(
    folder: Path, data: Path, alone: tuple[dict[str, Any], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[bool] = []
    result = ray_eval.Workers._result

    def watched(self: Any, reference: Any, *arguments: Any) -> Any:
        busy = reference not in self._opening and len(self._opening) == 0
        came = result(self, reference, *arguments)
        if came is ray_eval._LOST:
            lost.append(busy)
        return came

    def kill() -> None:
        wait_until(lambda: len(list(tmp_path.rglob("*.json.gz"))) >= 3, "nothing was kept")
        os.kill(workers()[0].pid, signal.SIGKILL)

    monkeypatch.setattr(ray_eval.Workers, "_result", watched)
    thread = threading.Thread(target=kill)
    thread.start()
    content, _ = score(folder, tmp_path, data, workers=2)
    thread.join()
    assert len(lost) == 1, "the kill came while shares were asked"
    assert content == alone[0]
    assert predictions(folder, tmp_path) == alone[1]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json.gz") if "finished" in path.parts}
    wait_until(lambda: not workers(), "a worker is left behind")
    _, shown = score(folder, tmp_path, data, workers=2)
    assert "texts asked" not in shown
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not workers(), "nothing is left to do, so none is started"


def wait_until(done: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def pool(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Share], Any], count: int = 1) -> ray_eval.Workers:
    """Workers that hold no model and ``answer`` shares."""
    import ray

    class Stub:
        def open(self, subject: Any, threads: Any) -> None: ...

        def ask(self, share: Share) -> Any:
            return answer(share)

    monkeypatch.setattr(ray_eval, "_Worker", ray.remote(Stub))
    return ray_eval.Workers(None, count, 1, lambda _: None, lambda _: None)  # type: ignore[arg-type]


def share(name: str) -> Share:
    return Share("bear", name, 0, 1, 2, "d")


def test_what_a_worker_finds_wrong_is_said_and_what_kills_workers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "bear/P1, item 3 (from 0): the model's scores are nan."

    def answer(share: Share) -> str:
        if share.subtask == "fatal":
            os._exit(1)
        if share.subtask == "wrong":
            raise UserError(wrong)
        return share.subtask

    monkeypatch.setattr(ray_eval, "TRIES", 2)
    made = pool(monkeypatch, answer)
    done = []
    try:
        with pytest.raises(UserError) as caught:
            list(made.ask([share("wrong")]))
        assert str(caught.value) == wrong
        with pytest.raises(UserError, match=r"lost too often \(2 times in all\)(.|\n)*goes on from there"):
            for piece, _ in made.ask([share("a"), share("fatal"), share("b")]):
                done.append(piece.subtask)
    finally:
        made.close()
    assert done == ["a"]


def test_weights_that_are_not_those_of_the_driver_are_refused(folder: Path, data: Path) -> None:
    subject = ray_eval.Subject(folder, "other", TaskRequest(data, ("bear",)), ("bear",))
    made = ray_eval.Workers(subject, 1, 1, lambda _: None, lambda _: None)
    try:
        with pytest.raises(UserError, match=r"weights in .* are not the same on all machines"):
            list(made.ask([share("P1")]))
    finally:
        made.close()


def test_more_workers_than_fit_are_refused_at_once(folder: Path, data: Path, tmp_path: Path) -> None:
    for options in ({"workers": 3}, {"workers": 1, "cpus_per_worker": 4}):
        with pytest.raises(UserError, match="the Ray cluster has 2 CPUs and 0 GPUs"):
            score(folder, tmp_path, data, "bear", **options)


def test_the_cluster_of_the_environment_is_used_unless_refused(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def stop(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments[2])
        raise UserError("stopped")

    monkeypatch.setattr(ray_eval, "workers", stop)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    score(folder, tmp_path, data, "bear")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match="stopped"):
        score(folder, tmp_path, data, "bear")
    score(folder, tmp_path, data, "bear", workers=0)
    assert asked == [None]
