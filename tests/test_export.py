"""Exported runs, their word milestones, and the upload, over HTTP to a small hub of our own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrnx.config import DataConfig, HGRN2Config, Recipe, to_yaml
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError
from hgrnx.export import check_repo, export_run, push_folders
from hgrnx.models import LanguageModel, build_model
from hgrnx.models.folders import load_folder
from hgrnx.paths import Places, resolve_places
from hgrnx.runs import open_model
from hgrnx.training.checkpoint import save_checkpoint, save_weights
from hgrnx.training.engine import EngineState
from hgrnx.training.optim import MOMENTS

WORDS = {"chck_1M": 1_000_123, "chck_2M": 2_000_001, "chck_10M": 10_020_000}
CONFIG = HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an unfinished run whose weights differ at each milestone."""
    home = tmp_path_factory.mktemp("home")
    data = DataConfig(track="demo", words=3000, vocab_size=400)
    dataset = prepare(data, home / "data")
    run = home / "runs" / "run-1"
    for step, name in enumerate([*WORDS, "last"], start=1):
        model = build_model(CONFIG, dataset.vocab_size, seed=step)
        weights = {key: tensor.detach() for key, tensor in model.named_parameters()}
        if name == "last":
            state = EngineState(weights, {moment: {} for moment in MOMENTS}, step)
            save_checkpoint(run / "checkpoints", step, state, {"words": 11_000_000}, keep=1)
        else:
            save_weights(run / "milestones" / name, step, weights, {"words": WORDS[name]})
    (run / "recipe.yaml").write_text(to_yaml(Recipe(name="run", data=data, model=CONFIG)))
    facts = {"data": str(dataset.dir), "vocab_size": dataset.vocab_size}
    (run / "environment.json").write_text(json.dumps(facts))
    return home


@pytest.fixture
def places(home: Path) -> Places:
    return resolve_places(home)


def seeds(folders: dict[str, Path]) -> dict[str, int]:
    """Which of the models above each folder holds."""
    found = {}
    for name, folder in folders.items():
        weights = load_folder(folder).state_dict()
        for seed in range(1, 5):
            wanted = model_of(seed).state_dict()
            if all(torch.equal(tensor, wanted[key]) for key, tensor in weights.items()):
                found[name] = seed
    return found


def model_of(seed: int, vocab_size: int = 400) -> LanguageModel:
    return build_model(CONFIG, vocab_size, seed=seed)


def test_every_milestone_has_a_folder(places: Places, tmp_path: Path) -> None:
    assert open_model("run-1", places).model.vocab_size == 400
    folders = export_run("run-1", tmp_path / "out", places, milestones=True)
    assert list(folders) == ["main", "chck_1M", "chck_2M", "chck_10M"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(folders)
    assert seeds(folders) == {"chck_1M": 1, "chck_2M": 2, "chck_10M": 3, "main": 4}
    for name, words in WORDS.items():
        assert (folders[name] / "tokenizer.json").is_file()
        card = (folders[name] / "README.md").read_text()
        assert card.startswith("---\n") and f"`{name}`: the weights after {words:,} words" in card


def test_without_milestones_there_is_one_folder(places: Places, tmp_path: Path) -> None:
    assert export_run("run-1", tmp_path / "out", places, milestones=False) == {"main": tmp_path / "out"}
    assert seeds({"main": tmp_path / "out"}) == {"main": 4}


def test_messages(places: Places, tmp_path: Path) -> None:
    exported = export_run("run-1", tmp_path / "out", places, milestones=False)["main"]
    with pytest.raises(UserError, match="not empty"):
        export_run("run-1", exported, places, milestones=False)
    with pytest.raises(UserError, match="training.word_milestones=true"):
        export_run(str(exported), tmp_path / "again", places, milestones=True)
    assert not (tmp_path / "again").exists()
    for wrong in ("model", "a/b/c", "https://x/y", "me/my model", ""):
        with pytest.raises(UserError, match="USER/NAME"):
            check_repo(wrong)


class Hub(ThreadingHTTPServer):
    """Repositories in memory; takes what ``huggingface_hub`` sends for small files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.branches: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.refuses = False
        self.sent = 0


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization"))
        hub, path = self.server, self.path.split("?")[0]
        here = f"http://127.0.0.1:{hub.server_port}"
        if hub.refuses:
            return self._reply(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return self._reply(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            hub.created.append(json.loads(body))
            if hub.branches:
                return self._reply(409, {"error": "You already created this model repo", "url": f"{here}/me/model"})
            hub.branches["main"] = {}
            return self._reply(200, {"url": f"{here}/me/model"})
        assert path.startswith("/api/models/me/model/"), path
        action, revision = path.removeprefix("/api/models/me/model/").split("/")
        if action == "branch":
            if revision in hub.branches:
                return self._reply(409, {"error": "exists"})
            hub.branches[revision] = dict(hub.branches["main"])
            return self._reply(200, {})
        files = hub.branches[revision]
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            answers = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": _git_oid(files.get(name))}
                for name in names
            ]
            return self._reply(200, {"files": answers})
        assert action == "commit", path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                hub.sent += 1
        return self._reply(200, {"commitUrl": f"{here}/me/model/commit/1", "commitOid": "1"})

    def do_GET(self) -> None:
        self._reply(200, {"sha": "1", "id": "me/model", "siblings": []})

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


def _git_oid(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def hgrnx_export(home: Path, endpoint: str, *arguments: str | Path, token: str = "hf_secret") -> Any:
    environment = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HOME": str(home / "hf"), "HGRNX_HOME": str(home)}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HGRNX"))}
    return subprocess.run(
        [sys.executable, "-m", "hgrnx.cli", "export", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**kept, **environment, "NO_PROXY": "127.0.0.1"},
    )


def test_milestones_become_revisions(home: Path, hub: Hub, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    done = hgrnx_export(home, endpoint, "run-1", tmp_path / "out", "--milestones", "--push", "me/model", "--private")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"{endpoint}/me/model"
    assert hub.created[0]["name"] == "model" and hub.created[0].get("private", hub.created[0].get("visibility"))
    assert hub.tokens == {"Bearer hf_secret"}
    assert list(hub.branches) == ["main", "chck_1M", "chck_2M", "chck_10M"]
    for revision, files in hub.branches.items():
        folder = tmp_path / "out" / revision
        assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    everything = [path for path in [*(tmp_path / "out").rglob("*"), *home.rglob("*")] if path.is_file()]
    assert not any(b"hf_secret" in path.read_bytes() for path in everything), "the token is written nowhere"


def test_a_second_upload_sends_only_what_changed(
    places: Places, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    class Here(huggingface_hub.HfApi):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(endpoint=f"http://127.0.0.1:{hub.server_port}", token="hf_x", **arguments)

    monkeypatch.setattr(huggingface_hub, "HfApi", Here)
    folders = export_run("run-1", tmp_path / "out", places, milestones=True)
    push_folders(folders, "me/model", private=False)
    before = hub.sent
    (folders["chck_2M"] / "README.md").write_text("---\nlanguage: en\n---\nchanged\n")
    push_folders(folders, "me/model", private=False)
    assert hub.sent == before + 1
    assert hub.branches["chck_2M"]["README.md"].endswith(b"changed\n")


def test_a_refusal_and_silence_are_messages(home: Path, hub: Hub, tmp_path: Path) -> None:
    hub.refuses = True
    done = hgrnx_export(home, f"http://127.0.0.1:{hub.server_port}", "run-1", tmp_path / "a", "--push", "me/model")
    assert done.returncode == 2 and "HF_TOKEN" in done.stderr and "401" in done.stderr, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "hf_secret" not in done.stderr + done.stdout
    assert (tmp_path / "a" / "model.safetensors").is_file()
    done = hgrnx_export(home, "http://127.0.0.1:9", "run-1", tmp_path / "b", "--push", "me/model")
    assert done.returncode == 2 and "Cannot reach" in done.stderr and "Traceback" not in done.stderr, done.stderr
    done = hgrnx_export(home, "http://127.0.0.1:9", "run-1", tmp_path / "c", "--push", "model")
    assert done.returncode == 2 and "USER/NAME" in done.stderr and not (tmp_path / "c").exists()
