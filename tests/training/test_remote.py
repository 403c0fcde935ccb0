"""Checkpoints copied to another file system: whole, in order, beside the training, and brought back."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from test_faults import At, assert_equal, dataset, events, flip, recipe, whole  # noqa: F401 (fixtures)

from hgrnx.config import Recipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.errors import UserError
from hgrnx.training import remote
from hgrnx.training.checkpoint import read_meta
from hgrnx.training.events import EVENTS, EventLog, read_events
from hgrnx.training.notice import Left
from hgrnx.training.remote import Remote, Uploader
from hgrnx.training.run import run_training


def sent_to(store: Path) -> Recipe:
    made = recipe()
    return made.model_copy(update={"launch": made.launch.model_copy(update={"upload_to": store.as_uri()})})


def copies(store: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] or path.name for path in store.glob("run/*"))


def test_another_machine_goes_on_where_the_first_one_left(
    dataset: PreparedDataset,  # noqa: F811
    whole: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    with pytest.raises(Left):
        run_training(sent_to(store), dataset, tmp_path / "first" / "run", asked=At({}, leave=9))
    shutil.rmtree(tmp_path / "first")
    assert copies(store)[-1:] == ["step-00000009"] and (store / "run" / "LAST").exists()
    run_training(sent_to(store), dataset, tmp_path / "second" / "run", asked=lambda: False)
    assert_equal(tmp_path / "second" / "run", whole)
    assert not (tmp_path / "second" / "run" / "upload").exists()
    assert copies(store)[-1] == "step-00000012"
    # The finished run, once more elsewhere: nothing is computed again, and nothing is missing.
    run_training(sent_to(store), dataset, tmp_path / "third" / "run", asked=lambda: False)
    assert_equal(tmp_path / "third" / "run", whole)
    assert (tmp_path / "third" / "run" / "eval" / "final.json").is_file()


def test_a_damaged_copy_is_passed_over_and_told(
    dataset: PreparedDataset,  # noqa: F811
    whole: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    store, run_dir = tmp_path / "store", tmp_path / "first" / "run"
    with pytest.raises(Left):
        run_training(sent_to(store), dataset, run_dir, asked=At({}, leave=8))
    shutil.rmtree(run_dir)
    names = sorted(path.name for path in store.glob("run/step-*"))
    if len(names) == 1:  # 4 had no time to be sent before 8 came
        pytest.skip("only one copy was made")
    flip(store / "run" / names[-1] / "optimizer.safetensors")
    run_training(sent_to(store), dataset, run_dir, asked=lambda: False)
    assert_equal(run_dir, whole)
    assert events(run_dir) == ["checkpoint_passed_over", "resumed"]
    for path in store.glob("run/step-*"):
        flip(path / "model.safetensors")
    shutil.rmtree(run_dir)
    with pytest.raises(UserError, match="None of the checkpoints in file:.* is whole"):
        run_training(sent_to(store), dataset, run_dir)


def test_a_store_that_is_away_ends_nothing_and_is_sent_to_later(
    dataset: PreparedDataset,  # noqa: F811
    whole: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "_WAITS_S", (0.05, 0.05))
    store, run_dir = tmp_path / "store", tmp_path / "run"
    chosen = sent_to(store)

    def away() -> None:
        shutil.rmtree(store, ignore_errors=True)
        store.write_text("")  # where a folder should be

    run_training(chosen, dataset, run_dir, asked=At({1: away}))
    assert_equal(run_dir, whole)
    assert set(events(run_dir)) == {"upload_failed"}
    store.unlink()
    run_training(chosen, dataset, tmp_path / "again" / "run", asked=At({2: away, 10: store.unlink}))
    assert copies(store)[-1] == "step-00000012"


def test_a_slow_store_holds_up_no_step(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    free = threading.Event()
    copy = shutil.copyfileobj
    monkeypatch.setattr(remote.shutil, "copyfileobj", lambda *a: (free.wait(30), copy(*a))[1])
    uploader = Uploader(Remote((tmp_path / "store").as_uri(), "run"), tmp_path / "run", 2, EventLog(None))
    source = tmp_path / "source"
    shutil.copytree(whole / "checkpoints", source)
    started = time.monotonic()
    for folder in sorted(source.glob("step-*")) * 3:
        uploader.add(folder)
    shutil.rmtree(source)  # as the next checkpoints would
    assert time.monotonic() - started < 15
    free.set()
    uploader.close(30)
    last = max((tmp_path / "store" / "run").glob("step-*"))
    assert read_meta(last)["step"] == 12
    assert (tmp_path / "store" / "run" / "LAST").read_text().strip() == last.name


def test_names_in_a_store_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    store = tmp_path / "store" / "run" / "step-00000001-0a1b2c3d"
    store.mkdir(parents=True)
    (store / "state.json").write_text("{}")
    (store.parent / "LAST").write_text("../../secret\n")
    with pytest.raises(UserError, match="whole"):
        Remote((tmp_path / "store").as_uri(), "run").fetch(tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == ["run", "store"]
    assert os.listdir(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/x", "relative/folder", "/absolute"])
def test_keys_in_the_uri_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="upload_to"):
        recipe().launch.model_validate({"upload_to": uri})


def test_an_unknown_kind_of_store_is_a_message() -> None:
    with pytest.raises(UserError, match="launch.upload_to=nosuch://x cannot be used"):
        Remote("nosuch://x", "run")


def test_events_of_a_file_that_is_cut_short(tmp_path: Path) -> None:
    log = EventLog(tmp_path / EVENTS)
    log.add("one", "first", step=1)
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"event": "tw')
    assert [event["event"] for event in read_events(tmp_path / EVENTS)] == ["one"]
