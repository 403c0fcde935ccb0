"""Run folders such as training writes them, with made-up but consistent scores."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrnx.config import DataConfig, EvaluationConfig, Recipe, to_yaml
from hgrnx.report import dynamics, plots

GROUPS = {
    "anaphor_gender_agreement": "anaphor_agreement",
    "anaphor_number_agreement": "anaphor_agreement",
    "distractor_agreement_relational_noun": "subject_verb_agreement",
    "wh_questions_object_gap": "filler_gap_dependency",
}


def make_run(
    folder: Path,
    accuracies: Mapping[str, float],
    *,
    seed: int = 0,
    groups: Mapping[str, str] = GROUPS,
    pairs: int = 100,
    bits: float = 1.5,
    ties: int = 0,
    data_hash: str = "d1",
    minimal_pairs: str | None = None,
    points: int = 120,
) -> Path:
    """Write a finished run whose files' accuracies are ``accuracies`` (by file; empty: not scored on pairs)."""
    random = np.random.default_rng(seed)
    metrics = {"dev/bits_per_byte": bits, "dev/loss": 2.0}
    files, predictions = [], {}
    for name, accuracy in accuracies.items():
        bad = np.where(np.arange(pairs) < round(accuracy * pairs), -1.0, 1.0)
        bad[:ties] = 0.0
        random.shuffle(bad)
        files.append({"name": name, **_row(groups[name], bad)})
        predictions[name] = {"preferred": (bad > 0).astype(int).tolist(), "good": [0.0] * pairs, "bad": bad.tolist()}
    if files:
        overall = _mean("overall", files)
        metrics |= {
            "pairs/accuracy": overall["accuracy"],
            "pairs/accuracy_stderr": overall["stderr"],
            "pairs/accuracy_ties_half": overall["accuracy_ties_half"],
            "pairs/ties": float(overall["ties"]),
        }
    names = sorted({row["group"] for row in files})
    rows = [_mean(group, [row for row in files if row["group"] == group]) for group in names]
    tables = {"files": files, "groups": rows} if files else {}
    folder.mkdir(parents=True)
    recipe = Recipe(name="some-run", data=DataConfig(), evaluation=EvaluationConfig(minimal_pairs=minimal_pairs))
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    (folder / "environment.json").write_text(json.dumps({"data_hash": data_hash, "versions": {"hgrnx": "0.1"}}))
    facts = {
        "words": 1_200_000,
        "seconds": 754.2,
        "tokens_per_second": 4321.7,
        "parameters": {"total": 1_234_567, "embedding": 131_072, "other": 1_103_495},
    }
    (folder / "result.json").write_text(json.dumps(facts))
    (folder / "eval").mkdir()
    (folder / "eval" / "final.json").write_text(json.dumps({"metrics": metrics, "tables": tables}))
    if predictions:
        content = gzip.compress(json.dumps(predictions).encode())
        (folder / "eval" / "final-predictions.json.gz").write_bytes(content)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, points + 1):
            words = step * 10_000
            loss = 2 + 4 * np.exp(-step / 20) + random.normal(0, 0.1)
            line = {"step": step, "time": 1e9 + step, "words": words, "train/cross_entropy": loss}
            file.write(json.dumps(line) + "\n")
            if step % (points // 4) == 0:
                share = step / points
                scored = {"dev/bits_per_byte": bits + 1 - share}
                if files:
                    stderr = metrics["pairs/accuracy_stderr"] * (2 - share)
                    value = 0.5 + share * (metrics["pairs/accuracy"] - 0.5)
                    scored |= {"pairs/accuracy": value, "pairs/accuracy_stderr": stderr}
                file.write(json.dumps({"step": step, "time": 1e9 + step, "words": words, **scored}) + "\n")
    return folder


def _row(group: str, bad: np.ndarray) -> dict[str, Any]:
    accuracy, ties = float((bad <= 0).mean()), int((bad == 0).sum())
    return {
        "group": group,
        "items": len(bad),
        "accuracy": accuracy,
        "stderr": float(np.sqrt(accuracy * (1 - accuracy) / len(bad))),
        "ties": ties,
        "accuracy_ties_half": accuracy - ties / 2 / len(bad),
    }


def _mean(group: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": group,
        "group": group,
        "items": sum(row["items"] for row in rows),
        "accuracy": float(np.mean([row["accuracy"] for row in rows])),
        "stderr": float(np.sqrt(sum(row["stderr"] ** 2 for row in rows)) / len(rows)),
        "ties": sum(row["ties"] for row in rows),
        "accuracy_ties_half": float(np.mean([row["accuracy_ties_half"] for row in rows])),
    }


@pytest.fixture
def three_runs(tmp_path: Path) -> dict[str, Path]:
    """Teacher, student and twin."""
    shares = {"teacher": 0.70, "student": 0.74, "twin": 0.69}
    return {
        label: make_run(
            tmp_path / label,
            {name: share + 0.05 * index for index, name in enumerate(GROUPS)},
            seed=index,
            bits=1.6 - share / 10,
        )
        for index, (label, share) in enumerate(shares.items())
    }


@pytest.fixture
def unscored_run(tmp_path: Path) -> Path:
    """A run without minimal pairs."""
    return make_run(tmp_path / "unscored", {})


@pytest.fixture
def tied_run(tmp_path: Path) -> Path:
    """A run that gives both sentences the same score in a tenth of the pairs."""
    return make_run(tmp_path / "tied", dict.fromkeys(GROUPS, 0.7), ties=10)


@pytest.fixture
def other_data_run(tmp_path: Path) -> Path:
    """A run on other text, scored on other pairs with the same phenomena."""
    return make_run(tmp_path / "other", dict.fromkeys(GROUPS, 0.7), data_hash="d2", minimal_pairs="/benchmarks/blimp")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved."""
    kept: list[Any] = []
    save = plots.save_figure

    def keep(figure: Any, out: Path) -> None:
        kept.append(figure)
        save(figure, out)

    for module in (plots, dynamics):
        monkeypatch.setattr(module, "save_figure", keep)
    return kept
