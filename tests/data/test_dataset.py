from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hgrnx.config import DataConfig
from hgrnx.data.dataset import PreparedDataset, open_dataset
from hgrnx.errors import UserError

CONFIG = DataConfig(track="strict-small", vocab_size=380)


@pytest.fixture
def root(small: PreparedDataset, tmp_path: Path) -> Path:
    """A data root with a copy of the small dataset."""
    shutil.copytree(small.dir, tmp_path / small.dir.name)
    return tmp_path


def test_opens_without_the_text(small: PreparedDataset, root: Path) -> None:
    opened = open_dataset(CONFIG, root, verify=True)
    assert (opened.hash, opened.tokenizer_hash) == (small.hash, small.tokenizer_hash)
    assert (opened.bos_id, opened.eos_id, opened.vocab_size) == (0, 1, 380)
    assert PreparedDataset.open(opened.dir).hash == small.hash


def test_not_prepared(root: Path) -> None:
    with pytest.raises(UserError, match=r"is not prepared in .* Run: hgrnx prepare --track strict-small"):
        open_dataset(CONFIG.model_copy(update={"vocab_size": 381}), root)
    with pytest.raises(UserError, match="missing or damaged"):
        PreparedDataset.open(root)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda d: (d / "train/00000.tokens.bin").unlink(), r"train/00000\.tokens\.bin is missing"),
    (lambda d: (d / "dev/00000.docs.npy").write_bytes(b""), r"dev/00000\.docs\.npy has 0 bytes instead of"),
    (
        lambda d: (d / "train/00000.words.bin").write_bytes((d / "train/00000.words.bin").read_bytes()[:-1]),
        r"train/00000\.words\.bin has .* bytes instead of",
    ),
    (lambda d: (d / "manifest.json").unlink(), r"manifest\.json is missing or damaged"),
    (lambda d: (d / "manifest.json").write_text('{"settings"'), r"manifest\.json is missing or damaged"),
    (lambda d: (d / "manifest.json").write_text("[]"), r"manifest\.json is missing or damaged"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_named(root: Path, damage: Callable[[Path], object], message: str) -> None:
    (folder,) = root.iterdir()
    damage(folder)
    with pytest.raises(UserError, match=message + ".* Prepare it again: hgrnx prepare .* --fresh"):
        open_dataset(CONFIG, root)
    with pytest.raises(UserError, match=message):
        PreparedDataset.open(folder)


def test_an_altered_byte_is_found_on_request(root: Path) -> None:
    (folder,) = root.iterdir()
    path = folder / "train" / "00000.tokens.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    open_dataset(CONFIG, root)
    with pytest.raises(UserError, match=r"train/00000\.tokens\.bin was altered"):
        open_dataset(CONFIG, root, verify=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("format", 0, "another version of hgrnx"), ("block_lines", 3, "other settings than its name says")],
)
def test_renamed_or_old_folders(root: Path, key: str, value: int, message: str) -> None:
    (folder,) = root.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"][key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        open_dataset(CONFIG, root)


def test_the_manifest_of_another_tokenizer(root: Path) -> None:
    (folder,) = root.iterdir()
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"cat", b"dot"))  # of the same size
    with pytest.raises(UserError, match="tokenizer is not the tokenizer that its tokens were made with"):
        open_dataset(CONFIG, root)


@pytest.mark.parametrize("where", ["files", "shards"])
@pytest.mark.parametrize("name", ["../elsewhere", "/etc/hostname"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(root: Path, where: str, name: str) -> None:
    """Though what it names be there, in the size that it says."""
    (folder,) = root.iterdir()
    (root / "elsewhere").write_bytes(b"12345")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[where][name] = {"bytes": 5, "sha256": "0"} if where == "files" else []
    path.write_text(json.dumps(manifest))
    for open_it in (lambda: PreparedDataset.open(folder), lambda: open_dataset(CONFIG, root)):
        with pytest.raises(UserError, match="leads out of it"):
            open_it()
