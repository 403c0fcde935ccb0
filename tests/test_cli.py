"""The command line: messages instead of stack traces, and the README's commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def hgrnx(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HGRNX", "MLFLOW"))}
    return subprocess.run(
        [sys.executable, "-m", "hgrnx.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**kept, "HGRNX_HOME": str(home), "COLUMNS": "200", **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["distill", "demmo"], ["no recipe 'demmo'", "Did you mean 'demo'"]),
        (["distill", "demo", "student.hiden_size=3"], ["student.hiden_size", "did you mean student.hidden_size?"]),
        (["distill", "demo", "seed=x", "training.batch_size=0"], ["2 problems", "seed", "training.batch_size"]),
        (["train", "demo"], ["use `hgrnx distill demo`"]),
        (["distill", "strict-small-cpu"], ["strict-small", "hgrnx prepare"]),
        (["prepare", "--track", "strict-small", "--source", "/nowhere"], ["/nowhere"]),
        (["prepare", "--track", "strict-smal"], ["strict-smal", "strict-small"]),
        (["generate", "nobody"], ["no run 'nobody'"]),
        (["generate", "nobody", "--prompts-file", "/nowhere"], ["prompts", "/nowhere"]),
        (["generate", "nobody", "--top-p", "0"], ["top_p=0.0", "more than 0"]),
        (["compare", "nobody"], ["no run 'nobody'"]),
        (["tune", "--track", "strict-smal"], ["no space for the track 'strict-smal'", "strict-small"]),
        (["tune", "distil.weight=1"], ["did you mean distill?"]),
        (["tune", "--resume"], ["no search", "hgrnx tune --track demo"]),
        (["tune", "--resume", "--trials", "3"], ["--resume takes the settings of the last search"]),
        (["runs", "nobody"], ["no run 'nobody'"]),
        (["distill", "demo", "evaluation.minimal_pairs=/nowhere"], ["/nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_nonsense_ends_in_a_message(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    done = hgrnx(*arguments, home=tmp_path / "home")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for part in parts:
        assert part in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 6


def test_relative_home_is_refused(tmp_path: Path) -> None:
    done = hgrnx("runs", home=tmp_path, HGRNX_HOME="somewhere")
    assert done.returncode == 2 and "relative" in done.stderr


def test_rays_temporary_folder_is_refused(tmp_path: Path) -> None:
    done = hgrnx("runs", home=tmp_path / "_ray_pkg_0123" / "home")
    assert done.returncode == 2 and "temporary folder of Ray" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 and not os.access("/proc", os.R_OK), reason="needs a read-only folder")
def test_read_only_home_is_refused() -> None:
    done = hgrnx("distill", "demo", home=Path("/proc/hgrnx"))
    assert done.returncode == 2 and "Cannot" in done.stderr and "Traceback" not in done.stderr


def test_every_command_of_the_readme_exists(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(
        re.findall(
            r"hgrnx (prepare|train|distill|tune|reproduce|report|eval|score|compare|export|generate|bench|doctor|runs"
            r"|ui)\b",
            readme,
        )
    )
    assert len(commands) >= 9
    shown = hgrnx("--help", home=tmp_path).stdout
    for command in commands:
        assert re.search(rf"\b{command}\b", shown), command
    for script in re.findall(r"jobs/\w+\.py", readme):
        assert (ROOT / script).is_file(), script


def test_runs_lists_nothing_at_first(tmp_path: Path) -> None:
    done = hgrnx("runs", home=tmp_path)
    assert done.returncode == 0 and "status" in done.stdout
