"""Small text and small datasets for the tests of the data room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_text import lines

from hgrnx.config import DataConfig
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.prepare import prepare

Files = dict[str, str | bytes]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes files into a new folder and returns it."""

    def make(files: Files, folder: str = "source") -> Path:
        root = tmp_path / folder
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return make


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """1,200 training lines of two files, 40 development lines. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("small")
    for name, text in {"a.train": lines(800), "b.train": lines(400, 800), "a.dev": lines(40, 5_000)}.items():
        (root / name).write_text(text)
    config = DataConfig(track="strict-small", source=str(root), vocab_size=380)
    return prepare(config, root / "data")
