from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrnx.errors import UserError
from hgrnx.training import checkpoint
from hgrnx.training.checkpoint import latest_checkpoint, load_checkpoint, load_weights, save_checkpoint
from hgrnx.training.engine import EngineState
from hgrnx.training.optim import MOMENTS


def state_of(step: int) -> EngineState:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(5, 7, generator=generator), "b": torch.randn(3, generator=generator)}
    return EngineState(weights, {m: {n: w.square() for n, w in weights.items()} for m in MOMENTS}, step)


def assert_equal(found: EngineState, expected: EngineState) -> None:
    assert found.optimizer_step == expected.optimizer_step
    assert found.optimizer.keys() == expected.optimizer.keys()
    pairs = [(found.weights, expected.weights)] + [(found.optimizer[m], expected.optimizer[m]) for m in MOMENTS]
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Checkpoints of the steps 10, 20, 30."""
    for step in (10, 20, 30):
        save_checkpoint(tmp_path / "checkpoints", step, state_of(step), {"seconds": step / 2}, keep=3)
    return tmp_path / "checkpoints"


def test_what_was_saved_is_loaded(saved: Path) -> None:
    folder = latest_checkpoint(saved)
    assert folder == saved / "step-00000030"
    state, meta = load_checkpoint(folder)
    assert_equal(state, state_of(30))
    assert meta == {"seconds": 15.0, "step": 30}
    assert torch.equal(load_weights(folder)["a.weight"], state_of(30).weights["a.weight"])
    assert sorted(os.listdir(folder)) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert (saved / "LAST").read_text() == "step-00000030\n"


def test_names_with_slashes_survive(tmp_path: Path) -> None:
    state = EngineState({"a/b": torch.ones(2)}, {m: {"a/b": torch.zeros(2)} for m in MOMENTS}, 1)
    assert_equal(load_checkpoint(save_checkpoint(tmp_path, 1, state, {}, keep=1))[0], state)


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_are_kept(saved: Path) -> None:
    save_checkpoint(saved, 40, state_of(40), {}, keep=2)
    assert sorted(os.listdir(saved)) == ["LAST", "step-00000030", "step-00000040"]
    save_checkpoint(saved, 50, state_of(50), {}, keep=1)
    assert sorted(os.listdir(saved)) == ["LAST", "step-00000050"]


def test_saving_after_a_rollback_drops_the_abandoned_future(saved: Path) -> None:
    save_checkpoint(saved, 15, state_of(15), {}, keep=2)
    assert sorted(os.listdir(saved)) == ["LAST", "step-00000010", "step-00000015"]
    assert latest_checkpoint(saved) == saved / "step-00000015"


def test_the_same_step_is_replaced(saved: Path) -> None:
    save_checkpoint(saved, 30, state_of(99), {"again": True}, keep=3)
    state, meta = load_checkpoint(saved / "step-00000030")
    assert_equal(state, state_of(99))
    assert meta["again"]
    assert len(os.listdir(saved)) == 4


def test_leftovers_of_a_killed_save_are_removed_and_strangers_stay(saved: Path) -> None:
    (saved / "step-00000040.tmp-0a1b2c3d").mkdir()
    (saved / "step-00000040.tmp-0a1b2c3d" / "model.safetensors").write_bytes(b"half")
    (saved / "LAST.tmp-0a1b2c3d").write_text("step")
    (saved / "notes.txt").write_text("mine")
    save_checkpoint(saved, 40, state_of(40), {}, keep=1)
    assert sorted(os.listdir(saved)) == ["LAST", "notes.txt", "step-00000040"]


def test_without_last_the_newest_whole_one_is_found(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    for content in (None, "", "../../etc", "step-00000077\n"):
        if content is None:
            (saved / "LAST").unlink()
        else:
            (saved / "LAST").write_text(content)
        caplog.clear()
        assert latest_checkpoint(saved) == saved / "step-00000030"
        assert "Continuing from" in caplog.text


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "empty"])
def test_a_damaged_checkpoint_is_passed_over(
    saved: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved / "step-00000030" / file
    if damage == "flipped":
        flip(path, path.stat().st_size * 2 // 3)
    elif damage == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"step-00000030.*{file}"):
        load_checkpoint(path.parent)
    assert latest_checkpoint(saved) == saved / "step-00000020"
    assert file in caplog.text
    assert "step-00000020" in caplog.text


def test_every_flipped_byte_of_the_head_is_noticed(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, state_of(1), {"seconds": 1.5, "recipe": {"seed": 3}}, keep=1)
    head = folder / "state.json"
    content = head.read_bytes()
    for position in range(len(content)):
        flip(head, position)
        if json.loads(content) != _json_or_none(head):
            with pytest.raises(UserError, match=r"state\.json"):
                load_checkpoint(folder)
        head.write_bytes(content)
    load_checkpoint(folder)


def _json_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_none_whole_is_an_error_that_names_them_all(saved: Path) -> None:
    for step in (10, 20, 30):
        flip(saved / f"step-{step:08d}" / "model.safetensors", -1)
    with pytest.raises(UserError, match=r"step-00000030.*step-00000020.*step-00000010.*--fresh"):
        latest_checkpoint(saved)


def test_a_last_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "LAST").write_text("step-00000010\n")
    with pytest.raises(UserError, match="step-00000010"):
        latest_checkpoint(tmp_path)


def test_a_newer_format_is_refused_not_passed_over(saved: Path) -> None:
    head = json.loads((saved / "step-00000030" / "state.json").read_text())
    head["format"] = 2
    head["sha256"] = checkpoint._own_sha256(head)
    (saved / "step-00000030" / "state.json").write_text(json.dumps(head))
    with pytest.raises(UserError, match="format 2"):
        latest_checkpoint(saved)


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "mkdir"])
def test_an_error_of_the_disk_leaves_the_previous_one(saved: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match=r"step-00000040: No space left on device.*Make room"):
        save_checkpoint(saved, 40, state_of(40), {}, keep=1)
    monkeypatch.undo()
    found = latest_checkpoint(saved)
    assert found is not None
    # With the folder in place and only LAST missing, the earlier one counts.
    assert_equal(load_checkpoint(found)[0], state_of(30))
    assert not [name for name in os.listdir(saved) if ".tmp-" in name]


def test_a_place_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write the checkpoint"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, state_of(1), {}, keep=1)


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("save_and_die.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("deaths"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    findings: dict[str, Any] = json.loads(done.stdout)
    return findings


def test_killed_at_any_call_the_previous_checkpoint_stays_until_the_new_one_counts(
    deaths: dict[str, Any],
) -> None:
    found = deaths["later"]["found"]
    assert len(found) > 20
    assert found == sorted(found) and set(found) == {1, 2}
    assert deaths["later"]["left"] == ["LAST", "step-00000002"]


def test_killed_while_replacing_the_same_step_it_stays(deaths: dict[str, Any]) -> None:
    assert set(deaths["again"]["found"]) == {1}
    assert deaths["again"]["left"] == ["LAST", "step-00000001"]


def test_killed_at_random_instants_nothing_reported_is_lost(deaths: dict[str, Any]) -> None:
    found = deaths["times"]["found"]
    assert found == sorted(found)
    assert found[-1] > 3


def test_a_full_disk_says_what_and_where_and_leaves_the_previous_one(deaths: dict[str, Any]) -> None:
    assert "step-00000002: " in deaths["full"]["error"]
    assert "Make room" in deaths["full"]["error"]
    assert deaths["full"]["found"] == 1
    assert deaths["full"]["left"] == ["LAST", "step-00000001"]
