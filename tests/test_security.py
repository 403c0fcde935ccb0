"""What others wrote is read without being run and without leaving its folder; secrets are not passed on."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hgrnx.config import HGRN2Config, load_recipe
from hgrnx.config.secrets import find_secrets, redact
from hgrnx.data.decontamination import NgramIndex
from hgrnx.data.folders import file_sha256
from hgrnx.errors import UserError
from hgrnx.models import build_model
from hgrnx.models.folders import load_folder, save_folder
from hgrnx.paths import inside, resolve_places
from hgrnx.training.checkpoint import latest_checkpoint, load_checkpoint, load_weights, save_checkpoint
from hgrnx.training.engine import EngineState
from hgrnx.training.optim import MOMENTS

SECRETS = {
    "hub": "hf_" + "aB3" * 11 + "x",
    "aws": "AKIA" + "Q7" * 8,
    "github": "ghp_" + "k1" * 18,
    "uri": "postgresql://me:hunter22@db/mlflow",
    "query": "https://host/data?password=hunter22&x=1",
    "words": "secret_access_key: hunter22hunter22",
    "key": "-----BEGIN RSA PRIVATE KEY-----",
}


class Bomb:
    """A pickle of it leaves a file behind when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that would be there if a pickle had been opened; the bomb is shown to work."""
    path = tmp_path / "code-was-run"
    pickle.loads(pickle.dumps(Bomb(path)))  # noqa: S301
    assert path.exists()
    path.unlink()
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    weights = {"a": torch.ones(3)}
    state = EngineState(weights, {moment: {"a": torch.ones(3)} for moment in MOMENTS}, 5)
    return save_checkpoint(tmp_path / "checkpoints", 5, state, {}, keep=1)


def rewrite_head(folder: Path, **files: Path) -> None:
    """``state.json`` as somebody would forge it: sizes and checksums right, for other files."""
    head = json.loads((folder / "state.json").read_text())
    for name, path in files.items():
        head["files"][name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    content = {key: value for key, value in head.items() if key != "sha256"}
    head["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps(head))


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_with_a_pickle_is_not_opened(checkpoint: Path, mark: Path, form: str) -> None:
    weights = checkpoint / "model.safetensors"
    if form == "pickle":
        weights.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(Bomb(mark), weights)
    shutil.copy(weights, checkpoint / "optimizer.pt")
    rewrite_head(checkpoint, **{"model.safetensors": weights})
    for load in (load_checkpoint, load_weights):
        with pytest.raises(UserError, match="cannot be read"):
            load(checkpoint)
    assert not mark.exists()


def test_a_checkpoint_that_names_other_files_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x")
    rewrite_head(checkpoint, **{"../../elsewhere": tmp_path / "elsewhere"})
    with pytest.raises(UserError, match="names files that no checkpoint has"):
        load_checkpoint(checkpoint)
    with pytest.raises(UserError, match="names files that no checkpoint has"):
        latest_checkpoint(checkpoint.parent)
    (checkpoint.parent / "LAST").write_text("../elsewhere\n")
    with pytest.raises(UserError, match="None of the checkpoints"):
        latest_checkpoint(checkpoint.parent)


def test_a_model_folder_with_pickles_or_with_weights_elsewhere_is_refused(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "model"
    save_folder(build_model(HGRN2Config(hidden_size=32, num_hidden_layers=1, expand_ratio=16), 64), folder)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    torch.save(Bomb(mark), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="Pickled weights"):
        load_folder(folder)
    for name in ("../model.safetensors", str(tmp_path / "model.safetensors")):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(UserError, match="leads out of it"):
            load_folder(folder)
    assert not mark.exists()


def test_arrays_with_objects_are_refused(tmp_path: Path, mark: Path) -> None:
    array = np.array([Bomb(mark)], dtype=object)
    np.savez(tmp_path / "index.npz", names=array, ngram=array)
    with pytest.raises(ValueError, match="allow_pickle"):
        NgramIndex.load(tmp_path / "index.npz")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", ".", "..\\x", "a\0b", 3, None])
def test_names_that_lead_out_of_their_folder(tmp_path: Path, name: object) -> None:
    with pytest.raises(UserError, match="leads out of it"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["x", "train/00000.tokens.bin", "a..b", "./x"])
def test_names_that_do_not(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("kind", SECRETS)
def test_a_recipe_with_a_secret_is_refused_without_showing_it(tmp_path: Path, kind: str) -> None:
    secret = SECRETS[kind]
    path = tmp_path / "mine.yaml"
    path.write_text(
        json.dumps({"name": "x", "data": {"source": f"/data/{secret}", "track": "demo"}, "nonsense": secret})
    )
    for overrides in ([], ["training.batch_size=4"]):
        with pytest.raises(UserError, match=r"token or password in data\.source, nonsense\..*HF_TOKEN") as refused:
            load_recipe(str(path), overrides)
        assert secret not in str(refused.value) and "hunter22" not in str(refused.value)
    with pytest.raises(UserError) as refused:
        load_recipe("demo", [f"data.source={secret}", secret])
    assert secret not in str(refused.value) and "hunter22" not in str(refused.value)


def test_what_is_no_secret_stays() -> None:
    for text in (
        "sqlite:////home/me@work/mlflow.db",
        "https://host:5000/x?y=1",
        "the tokenizer: 400 tokens, token_dropout=0.1",
        "/data/AKIAK/hf_small",
        "git@github.com:a/b.git",
        "password=***",
    ):
        assert redact(text) == text and not list(find_secrets({"x": [text]}))
    for secret in SECRETS.values():
        assert "hunter22" not in redact(f"see {secret}.") and (redact(secret) != secret)
    assert redact("postgresql://me:hunter22@db/x") == "postgresql://***@db/x"


def test_every_shipped_recipe_and_track_is_free_of_what_looks_like_one() -> None:
    import hgrnx

    files = [path for path in Path(hgrnx.__file__).parent.rglob("*.yaml")]
    assert len(files) > 10
    assert not [path for path in files if list(find_secrets({"text": path.read_text(encoding="utf-8")}))]


def test_the_machine_and_the_job_show_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hgrnx.console import make_console
    from hgrnx.doctor.machine import machine_facts
    from hgrnx.launch.jobs import run_job

    monkeypatch.setenv("HGRNX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@127.0.0.1:1")
    places = resolve_places()
    assert machine_facts(places)["MLflow"] == "http://127.0.0.1:1"
    with pytest.raises(UserError) as refused:  # nothing listens there
        run_job(load_recipe("demo", ["data.words=3000", "data.vocab_size=300"]), places, console=make_console())
    printed = capsys.readouterr()
    assert "MLflow  http://127.0.0.1:1" in printed.out
    assert "hunter22" not in printed.out + printed.err + str(refused.value)


def test_a_local_cluster_gets_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    from hgrnx.launch import cluster

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@127.0.0.1:1")
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(ray, "init", lambda **options: asked.append({**options, "token": os.environ["RAY_AUTH_TOKEN"]}))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.connected(resolve_places()):
        pass
    (options,) = asked
    assert len(str(options["token"])) == 64 and options["address"] == "local"
    assert "hunter22" not in str(options)


def test_nothing_asks_to_be_allowed_to_run_what_it_reads() -> None:
    """What ruff's rules (pyproject.toml) do not see: they know functions, not arguments."""
    import hgrnx

    asked = re.compile(r"allow_pickle=True|weights_only=False|shell=True|yaml\.(Unsafe|Full)?Loader")
    files = list(Path(hgrnx.__file__).parent.rglob("*.py"))
    assert len(files) > 150
    assert not [path for path in files if asked.search(path.read_text(encoding="utf-8"))]
