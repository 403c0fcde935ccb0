"""The folder of a search: its name, its lock, what it remembers besides its trials, and starting over."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hgrnx.config.spaces import SearchPlan
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.folders import write_json
from hgrnx.errors import UserError
from hgrnx.paths import Places
from hgrnx.search.trials import TrialRecord

_LOCK = "lock"


def forget(folder: Path, places: Places) -> None:
    """Remove what a search left: its trials' runs, but not those that it had found finished, and its own files."""
    with suppress(UserError):  # a damaged record is one of the reasons to start over
        for trial in TrialRecord(folder / "trials"):
            if not trial.reused:
                shutil.rmtree(places.run_dir(trial.run), ignore_errors=True)
    for old in list(folder.iterdir()):
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != _LOCK:
            old.unlink()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuse a second process in the same search; the system frees the lock of one that was killed."""
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"This search is running already ({folder}). Wait for it, or stop it first.") from None
        yield


class Facts:
    """What a search remembers of itself besides its trials, in one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.began: dict[str, float] = {}

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value
        write_json(self.path, self.values)

    def tick(self, key: str) -> None:
        """Keep the seconds of ``key`` so far, in case the process is killed."""
        self.set(key, self.elapsed(key))
        self.began[key] = time.monotonic()

    @contextmanager
    def clock(self, key: str) -> Iterator[None]:
        """Adds the seconds of the block to ``key``."""
        self.began[key] = time.monotonic()
        try:
            yield
        finally:
            self.set(key, self.elapsed(key))
            del self.began[key]

    def elapsed(self, key: str) -> float:
        """Seconds of ``key`` so far."""
        now = time.monotonic() - self.began[key] if key in self.began else 0.0
        return float(self.values.get(key) or 0.0) + now


def search_digest(plan: SearchPlan, dataset: PreparedDataset) -> str:
    """What makes a search the same one: all but its budget, and where it is computed."""
    recipe = plan.recipe.model_dump(mode="json", exclude={"launch"})
    space = plan.space.model_dump(mode="json", exclude={"budget", "fixed", "recipe", "trials", "words"})
    del recipe["data"]["source"], recipe["data"]["tokenizer"]
    content = json.dumps([recipe, space, dataset.hash], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]
