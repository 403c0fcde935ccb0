"""Points of a learning curve: scores of one step's weights, each asked once, however many processes ask."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_data import write_eval_data
from tokenizers import Tokenizer

from hgrnx.config import EvaluationConfig
from hgrnx.errors import UserError
from hgrnx.evaluation import points, results
from hgrnx.evaluation.points import check_best, read_point, score_point, write_curve, zero_shot_tasks
from hgrnx.evaluation.results import read_scores, run_task, task_metrics
from hgrnx.evaluation.scorer import Scorer
from hgrnx.evaluation.task import Task
from hgrnx.models import LanguageModel


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_data(tmp_path_factory.mktemp("eval"))


def tasks_of(data: Path, *names: str) -> list[Task]:
    return zero_shot_tasks(EvaluationConfig(tasks=names, data=str(data)))


def curve(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / points.CURVE).read_text().splitlines()]


def test_a_point_has_what_a_whole_evaluation_says(
    model: LanguageModel, tokenizer: Tokenizer, data: Path, tmp_path: Path
) -> None:
    tasks = tasks_of(data, "supplement", "ewok", "bear")
    score_point(model, tokenizer, 0, tasks, tmp_path, 20, 2000)
    score_point(model, tokenizer, 0, tasks[:1], tmp_path, 7, 700)
    found = read_point(tmp_path, 20)
    for task in tasks:
        whole = run_task(task, Scorer(model, tokenizer, 0), tmp_path / "apart").score
        assert whole.overall is not None
        assert found[f"tasks/{task.name}/accuracy_ties_half"] == whole.overall.accuracy_ties_half
        assert found[f"tasks/{task.name}/stderr"] == whole.overall.stderr > 0
        for row in whole.groups:
            assert found[f"tasks/{task.name}/{row.name}/accuracy"] == row.accuracy
    both = [found["tasks/supplement/accuracy"], found["tasks/ewok/accuracy"]]
    assert found["tasks/mean/accuracy"] == pytest.approx(sum(both) / 2)
    folder = points.point_folder(tmp_path, 20)
    assert {path.name for path in folder.iterdir()} == {"tasks.json", "tasks.csv", "tasks-predictions.json.gz"}

    write_curve(tmp_path)
    write_curve(tmp_path)
    assert [(record["step"], record["words"]) for record in curve(tmp_path)] == [(7, 700), (20, 2000)]
    assert {key: curve(tmp_path)[1][key] for key in found} == found
    assert "tasks/mean/accuracy" not in curve(tmp_path)[0]  # of one task there is no mean
    before = (tmp_path / points.CURVE).read_bytes()
    write_curve(tmp_path)
    assert (tmp_path / points.CURVE).read_bytes() == before  # times included: sent twice it is one point


def test_what_was_asked_of_these_weights_is_not_asked_again(
    model: LanguageModel, tokenizer: Tokenizer, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = tasks_of(data, "supplement")
    asked: list[str] = []
    score = task.score

    def counted(subtask: str, scorer: Any, items: slice) -> Any:
        asked.append(subtask)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return score(subtask, scorer, items)

    monkeypatch.setattr(task, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        score_point(model, tokenizer, 0, [task], tmp_path, 5, 500)
    assert read_point(tmp_path, 5) == {}
    score_point(model, tokenizer, 0, [task], tmp_path, 5, 500)
    assert sorted(asked) == sorted([*task.subtasks, asked[2]])
    score_point(model, tokenizer, 0, [task], tmp_path, 5, 500)
    assert len(asked) == 6
    with torch.no_grad():
        model.head_weight.mul_(1.5)
    score_point(model, tokenizer, 0, [task], tmp_path, 5, 500)  # another past of the same step
    assert len(asked) == 11
    content = read_scores(points.point_folder(tmp_path, 5))
    assert content is not None and content["weights"] == results.weights_hash(model)
    score_point(model, tokenizer, 0, [task, *tasks_of(data, "ewok")], tmp_path, 5, 500)
    assert len(asked) == 11 and "tasks/ewok/accuracy" in read_point(tmp_path, 5)


class Ranks:
    """Threads instead of processes, with a gather that waits for all."""

    def __init__(self, world: int) -> None:
        self.values: list[Any] = [None] * world
        self.barrier = threading.Barrier(world, timeout=60)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found

    def run(self, work: Any) -> list[BaseException | None]:
        errors: list[BaseException | None] = [None] * len(self.values)

        def attempt(rank: int) -> None:
            try:
                work(rank)
            except BaseException as error:
                errors[rank] = error

        threads = [threading.Thread(target=attempt, args=(rank,)) for rank in range(len(self.values))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors


def test_ranks_share_the_subtasks_and_stop_together(
    model: LanguageModel, tokenizer: Tokenizer, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = tasks_of(data, "supplement")
    asked: list[tuple[int, str]] = []
    score, ranks = task.score, Ranks(2)

    def counted(subtask: str, scorer: Any, items: slice) -> Any:
        asked.append((threading.get_ident(), subtask))
        return score(subtask, scorer, items)

    def work(rank: int) -> None:
        gather = lambda value: ranks.gather(rank, value)
        score_point(model, tokenizer, 0, [task], tmp_path / "two", 1, 10, rank=rank, world_size=2, gather=gather)

    monkeypatch.setattr(task, "score", counted)
    assert ranks.run(work) == [None, None]
    assert sorted(subtask for _, subtask in asked) == sorted(task.subtasks)
    assert len({thread for thread, _ in asked}) == 2
    score_point(model, tokenizer, 0, [task], tmp_path / "one", 1, 10)
    assert read_point(tmp_path / "two", 1) == read_point(tmp_path / "one", 1)

    def broken(subtask: str, scorer: Any, items: slice) -> Any:
        if subtask == task.subtasks[1]:  # the second rank's
            raise UserError("item 3 has no score")
        return score(subtask, scorer, items)

    monkeypatch.setattr(task, "score", broken)
    with torch.no_grad():
        model.head_weight.mul_(1.5)
    for error in ranks.run(work):
        assert isinstance(error, UserError) and "step 1: item 3" in str(error)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"tasks": ("blimpp",)}, "Did you mean 'blimp'"),
        ({"tasks": ("blimp", "cola")}, "cola must be fine-tuned on"),
        ({"tasks": ("blimp_fast",)}, "blimp_fast: there is no folder"),
    ],
)
def test_wrong_tasks_are_refused(data: Path, config: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        zero_shot_tasks(EvaluationConfig(data=str(data), **config))
    with pytest.raises(UserError, match="does not exist"):
        zero_shot_tasks(EvaluationConfig(data=str(data / "nowhere"), tasks=("blimp",)))


def test_best_must_be_a_metric_that_the_data_give(data: Path, dataset: Any) -> None:
    def check(best: str, pairs: Path | None = dataset.pairs_dir, **settings: Any) -> None:
        config = EvaluationConfig(data=str(data), best=best, **settings)
        check_best(config, pairs, zero_shot_tasks(config))

    check("dev/bits_per_byte", None)
    check("pairs/accuracy")
    check("pairs/islands/accuracy")
    for best in ("tasks/bear/Arts/accuracy", "tasks/mean/accuracy", "tasks/ewok/social-relations/accuracy"):
        check(best, tasks=("bear", "ewok", "supplement"))
    with pytest.raises(UserError, match="did you mean pairs/islands/accuracy"):
        check("pairs/island/accuracy")
    with pytest.raises(UserError, match="there are no minimal pairs"):
        check("pairs/accuracy", None)
    with pytest.raises(UserError, match="did you mean tasks/bear/Geographic/accuracy"):
        check("tasks/bear/Geography/accuracy", tasks=("bear",))


def test_names_are_those_that_a_point_will_have(
    model: LanguageModel, tokenizer: Tokenizer, data: Path, tmp_path: Path
) -> None:
    for task in tasks_of(data, "blimp", "bear", "ewok"):
        content = {"tasks": {task.name: run_task(task, Scorer(model, tokenizer, 0), tmp_path).score.as_dict()}}
        real = {f"tasks/{name}" for name in task_metrics({**content, "macro": None})}
        assert set(points._names_of(task)) == {name for name in real if not name.endswith(("stderr", "ties"))}
