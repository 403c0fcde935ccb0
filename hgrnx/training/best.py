"""The best weights of a run by one metric.

``best/best.json`` of a run says the metric, its value, step and words, and names the folder beside it that has the
weights. It is replaced when the new weights are whole, so that a kill at any instant leaves a whole best.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from hgrnx.config.best import LOWER_IS_BETTER
from hgrnx.evaluation.files import write_whole
from hgrnx.training.checkpoint import save_weights

BEST = "best"
"""Folder of a run with its best weights."""


class BestWeights:
    """Keeps the best of the weights that it is offered, whatever their order; of equals the earliest.

    Args:
        run_dir: the run's folder.
        metric: by which; None keeps nothing.
    """

    def __init__(self, run_dir: Path, metric: str | None) -> None:
        self.folder, self.metric = run_dir / BEST, metric

    def offer(
        self, step: int, words: int, metrics: Mapping[str, float], weights: Callable[[], dict[str, Tensor]]
    ) -> bool:
        """Keep the weights if they are the best, and say whether they were; ``metrics`` may be without the metric.

        Raises:
            UserError: the disk refuses; the best so far is still whole.
        """
        if self.metric is None or self.metric not in metrics:
            return False
        value = metrics[self.metric]
        before = self._read()
        if before is not None and self._rank(*before[:2]) >= self._rank(value, step):
            return False
        facts = {"metric": self.metric, "value": value, "step": step, "words": words}
        target = self.folder / f"step-{step:08d}"
        save_weights(target, step, weights(), facts)
        content = {**facts, "weights": target.name}
        write_whole(self.folder / "best.json", (json.dumps(content, indent=1) + "\n").encode())
        for old in self.folder.glob("step-*"):
            if old.name != target.name:
                shutil.rmtree(old, ignore_errors=True)
        return True

    def _rank(self, value: float, step: int) -> tuple[float, int]:
        return (-value if self.metric in LOWER_IS_BETTER else value, -step)

    def _read(self) -> tuple[float, int] | None:
        """Value and step of the best so far; None where there is none, or one by another metric."""
        try:
            found = json.loads((self.folder / "best.json").read_text(encoding="utf-8"))
            return (found["value"], found["step"]) if found["metric"] == self.metric else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
