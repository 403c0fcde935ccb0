"""The best weights are those of the best value, whatever the order of offers and wherever a kill hits."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
import torch

from hgrnx.training import best
from hgrnx.training.best import BestWeights
from hgrnx.training.checkpoint import load_weights, read_meta


def offer(keeper: BestWeights, step: int, value: float, metric: str = "tasks/blimp/accuracy") -> bool:
    return keeper.offer(step, 10 * step, {metric: value, "other": 1.0}, lambda: {"w": torch.tensor([float(step)])})


def kept(run_dir: Path) -> tuple[int, float]:
    facts = json.loads((run_dir / "best" / "best.json").read_text())
    folder = run_dir / "best" / facts["weights"]
    assert float(load_weights(folder)["w"]) == facts["step"]
    meta = read_meta(folder)
    assert meta["words"] == facts["words"] == 10 * facts["step"] and meta["value"] == facts["value"]
    assert [path.name for path in (run_dir / "best").glob("step-*")] == [folder.name]
    return facts["step"], facts["value"]


@pytest.mark.parametrize(("metric", "wanted"), [("tasks/blimp/accuracy", 2), ("dev/bits_per_byte", 1)])
def test_of_the_best_value_and_of_equals_the_earliest(tmp_path: Path, metric: str, wanted: int) -> None:
    values = {1: 0.5, 2: 0.7, 3: 0.7, 4: 0.5, 5: 0.6}
    for number, order in enumerate(list(permutations(values))[::17]):
        for step in order:
            offer(BestWeights(tmp_path / str(number), metric), step, values[step], metric)  # a process each
        assert kept(tmp_path / str(number)) == (wanted, values[wanted])


def test_weights_are_only_asked_for_when_they_are_kept(tmp_path: Path) -> None:
    keeper = BestWeights(tmp_path, "tasks/blimp/accuracy")
    assert offer(keeper, 1, 0.6)

    def refuse() -> dict[str, torch.Tensor]:
        raise AssertionError

    assert not keeper.offer(2, 20, {"tasks/blimp/accuracy": 0.5}, refuse)
    assert not keeper.offer(3, 30, {"tasks/ewok/accuracy": 0.9}, refuse)
    assert not BestWeights(tmp_path / "none", None).offer(3, 30, {"tasks/ewok/accuracy": 0.9}, refuse)
    assert not (tmp_path / "none").exists()


def test_a_kill_leaves_a_whole_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = BestWeights(tmp_path, "tasks/blimp/accuracy")
    offer(keeper, 1, 0.6)
    for where in ("save_weights", "write_whole"):
        with monkeypatch.context() as patched:

            def die(*args: object) -> None:
                raise KeyboardInterrupt

            patched.setattr(best, where, die)
            with pytest.raises(KeyboardInterrupt):
                offer(keeper, 2, 0.8)
        facts = json.loads((tmp_path / "best" / "best.json").read_text())
        assert facts["step"] == 1 and float(load_weights(tmp_path / "best" / facts["weights"])["w"]) == 1
    assert offer(keeper, 2, 0.8)
    assert kept(tmp_path) == (2, 0.8)


def test_another_metric_starts_anew(tmp_path: Path) -> None:
    offer(BestWeights(tmp_path, "tasks/blimp/accuracy"), 1, 0.9)
    assert offer(BestWeights(tmp_path, "dev/loss"), 2, 3.0, "dev/loss")
    assert kept(tmp_path) == (2, 3.0)
