"""A prepared dataset on disk: memory-mapped tokens, their tokenizer and the manifest that vouches for them."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrnx.config import DataConfig
from hgrnx.data.folders import file_sha256
from hgrnx.data.shards import TokenSplit
from hgrnx.data.tokenizer import load_tokenizer, token_dtype, tokenizer_hash
from hgrnx.data.tracks import FORMAT, dataset_name, dataset_settings, prepare_command
from hgrnx.errors import UserError
from hgrnx.paths import inside

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MANIFEST = "manifest.json"


class PreparedDataset:
    """The dataset in ``dir``. Made by :func:`open_dataset` and :func:`hgrnx.data.prepare.prepare`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.dir = folder
        self.manifest = manifest
        self.hash: str = manifest["hash"]
        """Of the raw text, the tokenizer and the settings: equal hashes mean equal tokens."""
        self.tokenizer_hash: str = manifest["tokenizer"]["hash"]
        self.vocab_size: int = manifest["tokenizer"]["vocab_size"]
        """Entries that the tokenizer has; fewer than asked for if the text did not yield more."""
        self.bos_id: int = manifest["tokenizer"]["bos_id"]
        self.eos_id: int = manifest["tokenizer"]["eos_id"]
        self.tokenizer_dir = folder / "tokenizer"
        pairs = folder / "pairs"
        self.pairs_dir: Path | None = pairs if pairs.is_dir() else None
        """Minimal pairs that come with the text, in BLiMP's format."""

    @classmethod
    def open(cls, folder: Path) -> PreparedDataset:
        """The dataset in ``folder``, wherever its settings came from.

        Raises:
            UserError: it is not one, or a file is missing or cut short.
        """
        return cls(folder, _checked_manifest(folder, "Prepare it again with hgrnx prepare --fresh", False))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer; it adds no special tokens of its own."""
        return load_tokenizer(self.tokenizer_dir)

    @cached_property
    def _splits(self) -> dict[str, TokenSplit]:
        dtype = token_dtype(self.vocab_size)
        return {name: TokenSplit(self.dir / name, dtype, shards) for name, shards in self.manifest["shards"].items()}

    def split(self, name: str) -> TokenSplit:
        """``"train"`` or ``"dev"``."""
        return self._splits[name]


def open_dataset(config: DataConfig, data_root: Path, *, verify: bool = False) -> PreparedDataset:
    """The prepared dataset of ``config``; ``config.source`` is not looked at.

    Sizes of all files are checked; with ``verify`` their SHA-256 as well, which reads everything.

    Raises:
        UserError: it is not prepared, or a file is missing, cut short or (with ``verify``) altered.
    """
    folder = data_root / dataset_name(config)
    command = prepare_command(config)
    if not folder.is_dir():
        raise UserError(f"The data of the track {config.track} is not prepared in {data_root}. Run: {command}")
    again = f"Prepare it again: {command} --fresh"
    manifest = _checked_manifest(folder, again, verify)
    if manifest["settings"] != dataset_settings(config):
        raise UserError(f"{folder} was prepared with other settings than its name says. {again}")
    return PreparedDataset(folder, manifest)


def _checked_manifest(folder: Path, again: str, verify: bool) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["settings"]["format"] != FORMAT:
            raise UserError(f"{folder} was made by another version of hgrnx, with another layout. {again}")
        files = {inside(folder, name): facts for name, facts in manifest["files"].items()}
        for split in manifest["shards"]:
            inside(folder, split)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / MANIFEST} is missing or damaged. {again}") from None
    for path, facts in files.items():
        problem = _problem_with(path, facts, verify)
        if problem:
            raise UserError(f"{path} {problem}. {again}")
    if tokenizer_hash(folder / "tokenizer") != manifest["tokenizer"]["hash"]:
        raise UserError(f"{folder / 'tokenizer'} is not the tokenizer that its tokens were made with. {again}")
    return manifest


def _problem_with(path: Path, facts: dict[str, Any], verify: bool) -> str | None:
    try:
        size = path.stat().st_size
    except OSError:
        return "is missing"
    if size != facts["bytes"]:
        return f"has {size:,} bytes instead of {facts['bytes']:,}"
    if verify and file_sha256(path) != facts["sha256"]:
        return "was altered: its SHA-256 is not the manifest's"
    return None
