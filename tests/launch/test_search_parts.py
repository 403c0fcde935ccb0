"""The parts of a search that need no cluster: rungs, room for trials, the command's settings, boards."""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hgrnx.config import LaunchConfig, Recipe
from hgrnx.errors import UserError
from hgrnx.launch.capacity import trials_at_once
from hgrnx.launch.ray_tune import Halving, HalvingScheduler
from hgrnx.launch.search_display import shown_search, words_so_far
from hgrnx.launch.search_request import last_plan, read_plan
from hgrnx.launch.trial_board import _TrialBoard
from hgrnx.paths import resolve_places
from hgrnx.search.trials import Trial

METRIC = "dev/bits_per_byte"


@dataclass
class TuneTrial:
    trial_id: str


def play(scheduler: HalvingScheduler, name: str, scores: list[float]) -> None:
    """Report scores after 100, 200 ... words, as a trial does, until it is asked to stop."""
    trial: Any = TuneTrial(name)
    scheduler.on_trial_add(None, trial)
    for index, score in enumerate(scores, start=1):
        decision = scheduler.on_trial_result(None, trial, {"words_seen": 100 * index + 3, "score": score})
        assert decision == "CONTINUE"  # Tune must never end a trial by itself


def scheduler(past: list[Trial], stopped: list[str]) -> HalvingScheduler:
    return HalvingScheduler(Halving(METRIC, "min", 100, 900, 3), past, stopped.append)


SCORES = {"a": [3.0, 2.5, 2.0, 1.9, 1.8], "b": [3.1, 2.6], "c": [2.9, 2.4, 1.9], "d": [3.2], "e": [2.8, 2.2, 2.1]}


def test_a_trial_behind_the_others_is_asked_to_stop() -> None:
    stopped: list[str] = []
    asha = scheduler([], stopped)
    play(asha, "a", SCORES["a"])
    assert stopped == []  # nothing to compare it with
    play(asha, "b", SCORES["b"][:1])
    assert stopped == ["b"]
    play(asha, "c", SCORES["c"])
    assert stopped == ["b"]  # the best at every rung
    play(asha, "e", SCORES["e"])
    assert stopped == ["b", "e"]  # ahead at 100 words, behind at 300
    assert [words for words, _ in asha.rungs()] == [900, 300, 100]


def test_rungs_come_back_from_the_record() -> None:
    whole = scheduler([], [])
    for name, scores in SCORES.items():
        play(whole, name, scores)
    past = [
        Trial(
            number, name, {}, "stopped", points=[{"words": 100.0 * i + 3, METRIC: s} for i, s in enumerate(scores, 1)]
        )
        for number, (name, scores) in enumerate(SCORES.items())
    ]
    assert scheduler(past, []).rungs() == whole.rungs()
    # A trial that goes on brings what it has been through itself, and has to pass the rungs of the others.
    half = scheduler(past[:3], [])
    play(half, "d", SCORES["d"])
    play(half, "e", SCORES["e"])
    assert half.rungs() == whole.rungs()


def test_reports_without_a_score_are_no_evaluation() -> None:
    stopped: list[str] = []
    asha = scheduler([], stopped)
    play(asha, "a", [1.0])
    trial: Any = TuneTrial("b")
    asha.on_trial_add(None, trial)
    assert asha.on_trial_result(None, trial, {"words_seen": 500}) == "CONTINUE"
    assert asha.on_trial_result(None, trial, {"outcome": "finished", "words_seen": 500, "score": 9.0}) == "CONTINUE"
    assert stopped == [] and len(asha.rungs()[-1][1]) == 1


@pytest.mark.parametrize(
    ("workers", "cpus", "gpu", "resources", "memory", "count"),
    [
        (2, 1, False, {"CPU": 2.0, "memory": 16e9}, 900.0, 1),
        (2, 1, False, {"CPU": 16.0, "memory": 64e9}, None, 1),  # the first alone: it is measured
        (2, 1, False, {"CPU": 16.0, "memory": 64e9}, 900.0, 8),
        (2, 2, False, {"CPU": 16.0, "memory": 64e9}, 900.0, 4),
        (2, 1, False, {"CPU": 16.0, "memory": 9e9}, 900.0, 3),
        (2, 1, False, {"CPU": 16.0, "memory": 1e9}, 900.0, 1),
        (1, 4, True, {"CPU": 64.0, "GPU": 8.0, "memory": 1e9}, 90_000.0, 8),
        (4, 1, True, {"CPU": 64.0, "GPU": 8.0, "memory": 64e9}, 900.0, 2),
    ],
)
def test_as_many_trials_as_fit(
    workers: int, cpus: int, gpu: bool, resources: dict[str, float], memory: float | None, count: int
) -> None:
    launch = LaunchConfig(num_workers=workers, cpus_per_worker=cpus, use_gpu=gpu)
    assert trials_at_once(launch, resources, memory) == count


def plan(**given: Any) -> Any:
    names = ("track", "space", "recipe", "source", "overrides", "budget", "words", "search", "objectives")
    empty: dict[str, Any] = {"overrides": [], "budget": {}, "objectives": []}
    return read_plan(*({**dict.fromkeys(names), **empty, **given}[name] for name in names))


def test_the_command_changes_the_space() -> None:
    found = plan(
        track="strict-small", budget={"trials": 3, "hours": 0.5}, words=1_000_000, search="random",
        objectives=["pairs/accuracy:max", "seconds:min"], source="texts", overrides=["seed=7"],
    )  # fmt: skip
    assert (found.space.budget.trials, found.space.budget.hours, found.space.search) == (3, 0.5, "random")
    assert [(o.metric, o.mode) for o in found.space.objectives] == [("pairs/accuracy", "max"), ("seconds", "min")]
    assert found.recipe.training.duration == "1000000 words" and found.recipe.seed == 7
    assert found.recipe.data.source == str(Path("texts").resolve())
    assert plan().recipe.name == "demo"  # the default track


def test_another_recipe_is_searched_on_the_track() -> None:
    found = plan(track="strict", recipe="hgrn2-360m")
    assert isinstance(found.recipe, Recipe) and found.recipe.data.track == "strict"


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"track": "strict-smal"}, "no space for the track 'strict-smal'"),
        ({"space": "demmo"}, "Did you mean 'demo'"),
        ({"objectives": ["dev/bits_per_byte"]}, "write METRIC:min"),
        ({"search": "greedy"}, "search: Input should be 'tpe', 'random' or 'grid'"),
        ({"overrides": ["training.learning_rates=1"]}, "did you mean training.learning_rate?"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part.replace("?", r"\?")):
        plan(**given)


def test_resume_takes_the_last_search(tmp_path: Path) -> None:
    from hgrnx.config import to_yaml
    from hgrnx.config.spaces import space_yaml

    places = resolve_places(tmp_path)
    with pytest.raises(UserError, match="There is no search"):
        last_plan(places)
    for age, found in enumerate([plan(overrides=["seed=3"], words=5000), plan(track="strict-small")]):
        folder = places.runs / f"x-search-{age}"
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(to_yaml(found.recipe))
        (folder / "space.yaml").write_text(space_yaml(found.space))
        os.utime(folder / "space.yaml", (1e9 - age, 1e9 - age))
    again = last_plan(places)
    wanted = plan(overrides=["seed=3"], words=5000)
    assert again.recipe == wanted.recipe and again.space == wanted.space


def test_the_board_waits_for_every_judgement() -> None:
    board = _TrialBoard()
    assert board.go_on() is True  # nothing to judge yet
    board.post_scores({"step": 5, "words": 10, METRIC: 2.0})
    board.post_scores({"step": 5, "words": 10, METRIC: 9.0})  # again, by a worker that went back to a checkpoint
    assert board.scores_after(0) == [{"step": 5, "words": 10, METRIC: 2.0}] and board.go_on() is None
    board.decide(1, False)
    assert board.go_on() is True and not board.was_stopped()
    board.post_scores({"step": 9, "words": 20, METRIC: 1.9})
    board.decide(2, True)
    board.decide(2, False)  # a stop is final
    assert board.go_on() is False and board.was_stopped()


def test_words_of_a_run_are_read_from_its_last_whole_line(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert words_so_far(metrics) == 0
    lines = [json.dumps({"step": n, "words": 10 * n, "train/loss": 1.0, "padding": "x" * 50}) for n in range(1, 200)]
    metrics.write_text("\n".join(lines) + '\n{"step": 200, "wor')
    assert words_so_far(metrics) == 1990


def test_a_terminal_shows_a_live_table(tmp_path: Path) -> None:
    trials = [
        Trial(0, "a", {"distill.weight": 0.5}, "finished", values={METRIC: 0.91, "words": 2e6}),
        Trial(1, "b", {"distill.weight": 0.1}),
    ]
    (tmp_path / "b").mkdir()
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140, height=30)
    space = plan().space
    with shown_search(lambda: trials, space, lambda: "2 of 12 trials begun", tmp_path, console):
        (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 1, "words": 1230000}\n')
        deadline = time.monotonic() + 20
        while "1.23M" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.1)
    for part in ("0.91", "running", "1.23M", "2 of 12 trials begun"):
        assert part in out.getvalue()
    quiet = io.StringIO()
    with shown_search(lambda: trials, space, str, tmp_path, Console(file=quiet)):
        pass
    assert quiet.getvalue() == ""
