"""A real MLflow database, made once (its migrations take seconds) and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hgrnx.tracking.mlflow import init_store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "new folder" / "mlflow.db"
    init_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh store; the working directory is another, so that what is written there by mistake is seen."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    shutil.copy(empty_database, home / "mlflow.db")
    return f"sqlite:///{home / 'mlflow.db'}"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "some-run"
    folder.mkdir(parents=True)
    return folder
