"""The teacher's signal, made before a run: what is missing and only that, here and on a local Ray."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hgrnx.config import DataConfig, Recipe, recipe_from_dict
from hgrnx.console import make_console
from hgrnx.data import signals
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError
from hgrnx.launch import teacher_cache
from hgrnx.launch.teacher_cache import ensure_signal
from hgrnx.paths import Places, resolve_places
from hgrnx.training.run import run_training
from hgrnx.training.teacher_signal import plan_signal

DATA = DataConfig(track="demo", words=3000, vocab_size=400)


def recipe(seed: int = 0, top_k: int | None = 8, weight: float = 0.5, duration: str = "6 steps") -> Recipe:
    made = recipe_from_dict(
        {
            "name": "x",
            "seed": seed,
            "model": {"hidden_size": 32, "num_hidden_layers": 2, "expand_ratio": 16},
            "data": {"track": "demo", "words": 3000, "vocab_size": 400},
            "training": {"duration": duration, "batch_size": 4, "seq_len": 32, "precision": "fp32"},
            "evaluation": {"dev_documents": 2, "pairs_per_file": 1},
            "launch": {"engine": "torch"},
            "distill": {"teachers": ["teacher"], "weight": weight, "top_k": top_k},
        }
    )
    assert isinstance(made, Recipe)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Places, PreparedDataset]:
    places = resolve_places(tmp_path_factory.mktemp("home"))
    dataset = prepare(DATA, places.data, workers=1)
    teacher = recipe(seed=9, duration="1 steps").model_copy(update={"distill": None})
    run_training(teacher, dataset, places.run_dir("teacher"))
    return places, dataset


@pytest.fixture
def places(made: tuple[Places, PreparedDataset], monkeypatch: pytest.MonkeyPatch) -> Places:
    """With three sequences in a shard and no signal yet; without Ray, whatever other tests have started."""
    monkeypatch.setattr(signals, "SHARD_TOKENS", 96)
    monkeypatch.setattr(teacher_cache.ray, "is_initialized", lambda: False)
    shutil.rmtree(made[0].signals, ignore_errors=True)
    return made[0]


@pytest.fixture
def dataset(made: tuple[Places, PreparedDataset]) -> PreparedDataset:
    return made[1]


def ensure(places: Places, dataset: PreparedDataset, **changes: Any) -> Path:
    folder = ensure_signal(recipe(**changes), dataset, places, make_console())
    assert folder is not None
    return folder


def shards(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.bin")}


def test_what_is_there_is_not_made_again(
    places: Places, dataset: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ensure(places, dataset)
    first = shards(folder)
    assert folder.parent == places.signals and len(first) == 8
    said = capsys.readouterr().out
    assert "768 tokens of text, 0.0 MB" in said and "64 bytes a token at top_k=8" in said
    assert "sequence 24/24" in said and "tokens/s" in said
    assert sum(len(content) for content, _ in first.values()) == 768 * 64
    assert ensure(places, dataset) == folder and shards(folder) == first
    assert capsys.readouterr().out == ""
    assert ensure(places, dataset, seed=1) == folder
    both = shards(folder)
    assert first.items() < both.items()
    run_training(recipe(seed=1), dataset, places.run_dir("student"), signals=places.signals)


def test_nothing_is_made_where_nothing_is_read(places: Places, dataset: PreparedDataset) -> None:
    for chosen in (recipe(top_k=None), recipe(weight=0.0), recipe().model_copy(update={"distill": None})):
        assert ensure_signal(chosen, dataset, places, make_console()) is None
    assert not places.signals.exists()


def test_a_damaged_shard_is_named_and_made_anew(
    places: Places, dataset: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = shards(folder := ensure(places, dataset))
    damaged, *others = sorted(whole)
    (folder / damaged).write_bytes(whole[damaged][0][:-7])
    ensure(places, dataset)
    said = capsys.readouterr().out.replace("\n", "")
    assert f"{damaged} has 6,137 bytes instead of 6,144; it is made anew" in said
    again = shards(folder)
    assert again[damaged][0] == whole[damaged][0]
    assert all(again[name] == whole[name] for name in others)


DIE = """
import os, signal, sys
from pathlib import Path
from hgrnx.console import make_console
from hgrnx.config import recipe_from_dict
from hgrnx.data import signals
from hgrnx.data.dataset import PreparedDataset
from hgrnx.launch.teacher_cache import ensure_signal
from hgrnx.paths import resolve_places
import json
signals.SHARD_TOKENS = 96
described, kill_at = signals.write_json, int(sys.argv[4])
def write_json(path, content):
    write_json.count += 1
    if write_json.count == kill_at:  # the shard's numbers are written, what they are is not
        os.kill(os.getpid(), signal.SIGKILL)
    described(path, content)
write_json.count = 0
signals.write_json = write_json
ensure_signal(recipe_from_dict(json.loads(sys.argv[1])), PreparedDataset.open(Path(sys.argv[2])),
              resolve_places(sys.argv[3]), make_console())
"""


def test_a_kill_loses_the_shard_in_work_and_no_other(places: Places, dataset: PreparedDataset) -> None:
    whole = shards(ensure(places, dataset))
    shutil.rmtree(places.signals)
    arguments = [recipe().model_dump_json(), str(dataset.dir), str(places.home), "5"]  # the first is the manifest
    done = subprocess.run([sys.executable, "-c", DIE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = (path for path in places.signals.iterdir() if path.is_dir())
    left = shards(folder)
    assert len(left) == 4 and len(list(folder.glob("0*.json"))) == 3
    ensure(places, dataset)
    ended = shards(folder)
    assert {name: content for name, (content, _) in ended.items()} == {n: content for n, (content, _) in whole.items()}
    kept = [name for name in left if ended[name] == left[name]]
    assert len(kept) == 3


def test_a_disk_without_room_is_refused_before_the_work(
    places: Places, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 49_151, 49_151))
    with pytest.raises(UserError, match=r"needs 0\.00 GB.*HGRNX_SIGNALS"):
        ensure(places, dataset)
    assert not list(places.signals.rglob("*.bin"))
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda folder: usage(10**9, 0, 49_152))
    ensure(places, dataset)


def test_ensembles_and_low_temperatures_are_refused() -> None:
    distill = {"teachers": ("a", "b"), "top_k": 8}
    with pytest.raises(UserError, match="stores the signal of one teacher"):
        recipe_from_dict({"name": "x", "distill": {**distill, "teachers": ["a", "b"]}})
    with pytest.raises(UserError, match=r"below 0\.5, the lowest"):
        recipe_from_dict({"name": "x", "distill": {"teachers": ["a"], "top_k": 8, "temperature": 0.4}})


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_workers_make_what_one_process_makes(
    places: Places, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shards(ensure(places, dataset))
    shutil.rmtree(places.signals)
    monkeypatch.undo()
    monkeypatch.setattr(signals, "SHARD_TOKENS", 96)
    assert ray.is_initialized()
    folder = ensure(places, dataset)
    there = shards(folder)
    assert {name: content for name, (content, _) in there.items()} == {n: content for n, (content, _) in here.items()}
    assert ensure(places, dataset) == folder and shards(folder) == there


def _ensured(content: dict[str, Any], data_dir: str, home: str) -> str:
    """In a trial's driver."""
    made = recipe_from_dict(content)
    assert isinstance(made, Recipe)
    return str(ensure_signal(made, PreparedDataset.open(Path(data_dir)), resolve_places(home), make_console()))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_driver_of_a_trial_has_it_made_outside_of_its_placement_group(
    places: Places, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune's drivers hold no CPU, and what they start stays in their group unless told otherwise."""
    monkeypatch.undo()
    group = placement_group([{"memory": 1024 * 1024}])
    driver = ray.remote(_by_value(_ensured)).options(
        num_cpus=0,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True),
    )
    try:
        content = recipe().model_dump(mode="json")
        folder = Path(ray.get(driver.remote(content, str(dataset.dir), str(places.home)), timeout=120))
        assert folder.parent == places.signals and shards(folder)
    finally:
        remove_placement_group(group)


def _dying(*arguments: Any) -> None:
    """A share whose worker is lost after its first shard, until somebody has left the mark."""
    *share, todo = arguments
    mark = Path(share[2]["HGRNX_HOME"]) / "killed"
    if mark.exists():
        teacher_cache._make_share(*share, todo)
        return
    teacher_cache._make_share(*share, todo[:1])
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_lost_worker_is_replaced_and_an_error_is_told(
    places: Places, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(signals, "SHARD_TOKENS", 96)
    monkeypatch.setattr(teacher_cache, "_SHARES_PER_WORKER", 1)
    with monkeypatch.context() as patched:
        dying = _by_value(_dying)
        patched.setattr(teacher_cache, "_make_share", dying)
        folder = ensure(places, dataset)
    assert (places.home / "killed").exists()
    store = plan_signal(recipe(), dataset, places.runs, places.signals).store()
    store.open()
    assert not len(store.missing(plan_signal(recipe(), dataset, places.runs, places.signals).chunks))
    shutil.rmtree(folder)

    with monkeypatch.context() as patched:
        patched.setattr(teacher_cache, "_make_share", _by_value(_refusing))
        with pytest.raises(UserError, match=r"^the disk is full$"):
            ensure(places, dataset)


def _refusing(*arguments: Any) -> None:
    from hgrnx.errors import UserError

    raise UserError("the disk is full")


def _by_value(function: Any) -> Any:
    """Workers cannot import this file."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return function
