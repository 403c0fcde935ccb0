"""environment.json: enough to know what a run was computed with, and nothing secret."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import hgrnx
from hgrnx.tracking import environment
from hgrnx.tracking.environment import describe_environment, git_state


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_it_holds_the_facts_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2-secret")
    facts = describe_environment({"data_hash": "abc"})
    text = json.dumps(facts)
    assert "hunter2" not in text
    assert facts["data_hash"] == "abc"
    assert facts["versions"]["hgrnx"] == hgrnx.__version__
    assert facts["versions"]["torch"]
    assert facts["cpu_cores"] >= 1 and facts["memory_gb"] > 0 and facts["cpu"]
    assert isinstance(facts["gpus"], list)


def test_a_missing_package_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PACKAGES", ("no-such-package-here",))
    assert describe_environment()["versions"]["no-such-package-here"] is None


def test_the_commit_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    package = tmp_path / "hgrnx"
    package.mkdir()
    assert git_state(package) is None
    git(tmp_path, "init", "-q")
    (package / "a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    assert git_state(package) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (package / "a.py").write_text("2")
    state = git_state(package)
    assert state is not None and state["dirty"]
    installed = tmp_path / ".venv" / "site-packages" / "hgrnx"
    installed.mkdir(parents=True)
    (installed / "a.py").write_text("1")
    assert git_state(installed) is None  # somebody else's checkout
