from __future__ import annotations

from pathlib import Path

import pytest

from hgrnx.data.folders import WORK, building, exclusive
from hgrnx.errors import UserError


def build(final: Path, content: str) -> None:
    with exclusive(final), building(final, "key") as folder:
        (folder / "x").write_text(content)
        assert not final.exists() or (final / "x").read_text() != content


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_appears_and_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        build(tmp_path / "a", content)
        assert (tmp_path / "a" / "x").read_text() == content
        assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [UserError, OSError])
def test_an_error_leaves_the_old_one(tmp_path: Path, error: type[Exception]) -> None:
    build(tmp_path / "a", "one")
    with pytest.raises(UserError), exclusive(tmp_path / "a"), building(tmp_path / "a", "key") as folder:
        (folder / "x").write_text("two")
        raise error
    assert (tmp_path / "a" / "x").read_text() == "one"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(("key", "found"), [("key", True), ("other", False)])
def test_an_interrupted_one_is_continued(tmp_path: Path, key: str, found: bool) -> None:
    with pytest.raises(KeyboardInterrupt), building(tmp_path / "a", "key") as folder:
        (folder / "x").write_text("one")
        raise KeyboardInterrupt
    with building(tmp_path / "a", key) as folder:
        assert (folder / "x").exists() == found
        (folder / WORK / "y").write_text("on the way")
    assert (tmp_path / "a" / "x").exists() == found
    assert names(tmp_path) == ["a"]
    assert not (tmp_path / "a" / WORK).exists()


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    build(tmp_path / "a", "one")
    (tmp_path / "a").rename(tmp_path / ".a.old")
    with exclusive(tmp_path / "a"):
        assert (tmp_path / "a" / "x").read_text() == "one"
    assert names(tmp_path) == ["a"]


def test_killed_before_the_old_one_was_removed(tmp_path: Path) -> None:
    build(tmp_path / "a", "new")
    (tmp_path / ".a.old").mkdir()
    with exclusive(tmp_path / "a"):
        assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "new"
