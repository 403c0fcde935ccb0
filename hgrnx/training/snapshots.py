"""Weights on disk that wait for their benchmark scores.

The training only writes them; another process scores them and removes them then, so that whatever dies, what has no
score is still there. ``snapshots/step-00000120/`` of a run is a folder of :func:`save_weights`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

from torch import Tensor

from hgrnx.errors import UserError
from hgrnx.evaluation.files import write_whole
from hgrnx.training.checkpoint import is_checkpoint, read_meta, save_weights

SNAPSHOTS = "snapshots"
"""Folder of a run with the weights that wait."""
LEFT_OUT = "left-out.jsonl"
"""In that folder: step and words of what was left out."""

_TAKEN = "taken"
_STEP = re.compile(r"step-(\d{8,})")


class Snapshots:
    """The queue of one run.

    Args:
        run_dir: the run's folder.
        limit: most snapshots that wait, at least 3, the one being scored among them; None for no limit.
    """

    def __init__(self, run_dir: Path, limit: int | None = None) -> None:
        self.folder, self.limit = run_dir / SNAPSHOTS, limit

    def add(self, step: int, words: int, weights: dict[str, Tensor]) -> list[int]:
        """Write a snapshot; where too many wait now, leave out those that the curve will miss least.

        These are the ones whose neighbours are nearest to each other, in words. The oldest, the newest and the one
        that is being scored stay.

        Returns:
            The steps that were left out.

        Raises:
            UserError: the disk is full or not writable.
        """
        save_weights(self.path(step), step, weights, {"words": words})
        left_out: list[int] = []
        while self.limit is not None:
            at = self._words()
            steps, taken = list(at), self._taken()
            inner = [three for three in zip(steps, steps[1:], steps[2:]) if three[1] != taken]
            if len(at) <= self.limit or not inner:
                break
            dropped = min(inner, key=lambda three: at[three[2]] - at[three[0]])[1]
            with open(self.folder / LEFT_OUT, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": dropped, "words": at[dropped]}) + "\n")
            self.remove(dropped)
            left_out.append(dropped)
        return left_out

    def waiting(self) -> list[int]:
        """Steps of the whole snapshots, in order."""
        if not self.folder.is_dir():
            return []
        names = [match for match in (_STEP.fullmatch(path.name) for path in self.folder.iterdir()) if match]
        return sorted(int(match[1]) for match in names if is_checkpoint(self.folder / match[0]))

    def path(self, step: int) -> Path:
        """The folder of a snapshot."""
        return self.folder / f"step-{step:08d}"

    def take(self, step: int) -> None:
        """Note that a snapshot is being scored now: it is not left out."""
        write_whole(self.folder / _TAKEN, str(step).encode())

    def remove(self, step: int) -> None:
        """Forget a snapshot; nothing happens where it is gone."""
        shutil.rmtree(self.path(step), ignore_errors=True)

    def left_out(self) -> list[int]:
        """Steps that were left out at some time, in order; a resumed run may have scored them since."""
        try:
            lines = (self.folder / LEFT_OUT).read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        return sorted({int(json.loads(line)["step"]) for line in lines})

    def _taken(self) -> int | None:
        try:
            return int((self.folder / _TAKEN).read_bytes())
        except (OSError, ValueError):
            return None

    def _words(self) -> dict[int, int]:
        """Words seen, by step, in order; without a snapshot that was removed in this moment."""
        found = {}
        for step in self.waiting():
            with contextlib.suppress(UserError):
                found[step] = int(read_meta(self.path(step))["words"])
        return found
