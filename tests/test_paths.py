"""Where things live: one home, parts moved by variables, and what an explicit home means for these."""

from __future__ import annotations

from pathlib import Path

import pytest

from hgrnx.errors import UserError
from hgrnx.paths import inside, resolve_places

PARTS = ("HGRNX_HOME", "HGRNX_RUNS", "HGRNX_DATA", "HGRNX_SIGNALS", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PARTS:
        monkeypatch.delenv(name, raising=False)


def test_variables_move_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGRNX_HOME", str(tmp_path))
    assert resolve_places().runs == tmp_path / "runs"
    assert resolve_places().mlflow_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("HGRNX_RUNS", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////other.db")
    places = resolve_places()
    assert places.runs == tmp_path / "elsewhere" and places.data == tmp_path / "data"
    assert places.mlflow_uri == "sqlite:////other.db"


def test_an_explicit_home_keeps_its_parts_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PARTS[:4]:
        monkeypatch.setenv(name, str(tmp_path / "old"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////old.db")
    places = resolve_places(tmp_path / "new")
    assert {places.runs.parent, places.data.parent, places.signals.parent} == {tmp_path / "new"}
    assert places.mlflow_uri == f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"


@pytest.mark.parametrize("uri", ["http://mlflow:5000", "https://me:secret@host/mlflow", "postgresql://host/mlflow"])
def test_a_server_is_used_from_every_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """As by ``python jobs/distill.py --home /shared`` on nodes that were told of it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert resolve_places(tmp_path).mlflow_uri == uri


@pytest.mark.parametrize("place", ["runs", "/tmp/ray/session/_ray_pkg_0123/runs"])
def test_places_that_would_be_lost_are_refused(place: str) -> None:
    with pytest.raises(UserError, match="absolute"):
        resolve_places(place)


@pytest.mark.parametrize("name", ["../weights", "/etc/passwd", "a/../../b", "", 3, "a\\b"])
def test_names_stay_in_their_folder(tmp_path: Path, name: object) -> None:
    with pytest.raises(UserError, match="leads out of it"):
        inside(tmp_path, name)
