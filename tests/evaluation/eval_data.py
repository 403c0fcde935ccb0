"""Small benchmark files in the layout of the BabyLM pipeline, in words that the test tokenizer knows, and a scorer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hgrnx.data.benchmark_names import BLIMP_PHENOMENA, SUBTASKS
from hgrnx.evaluation.submission import encrypted_zip

SUBJECTS = ("the dog", "a cat", "dogs", "the big cats")
VERBS = ("see", "sees", "run", "runs")
GLUE_ROWS: dict[str, Any] = {
    "cola": {"sentence": "the dog barks"},
    "sst2": {"sentence": "the big dog runs"},
}


def write_eval_data(folder: Path, *, items: int = 2) -> Path:
    """BLiMP's 67 files, the Supplement's 5, EWoK's 11 in a zip, two relations of BEAR, and two tasks of GLUE."""
    phenomenon = {name: term for term, names in BLIMP_PHENOMENA.items() for name in names}
    for number, name in enumerate(SUBTASKS["blimp"]):
        rows = [_pair(number + i, linguistics_term=phenomenon[name], field="f", UID=name) for i in range(items)]
        write_jsonl(folder / "blimp_filtered" / f"{name}.jsonl", rows)
    for number, name in enumerate(SUBTASKS["supplement"]):
        rows = [_pair(number + 3 + i) for i in range(items)]
        write_jsonl(folder / "supplement_filtered" / f"{name}.jsonl", rows)
    zipped = {
        f"ewok_filtered/{name}.jsonl": _lines([_ewok(number + i, name) for i in range(items)])
        for number, name in enumerate(SUBTASKS["ewok"])
    }
    (folder / "ewok").mkdir(parents=True)
    (folder / "ewok" / "ewok_filtered.zip").write_bytes(encrypted_zip(zipped, b"ewok"))
    write_bear(folder / "bear" / "BEAR")
    for name, row in GLUE_ROWS.items():
        for split, count in (("train", 8), ("valid", 6)):
            rows = [{key: f"{text} {i}" for key, text in row.items()} | {"label": i % 2} for i in range(count)]
            write_jsonl(folder / "glue_filtered" / f"{name}.{split}.jsonl", rows)
    return folder


def write_bear(folder: Path) -> None:
    """Two relations with 2 and 3 answers, 3 templates, 4 and 2 subjects, and domains."""
    relations = {
        "P1": (["[X] see [Y].", "[Y] see [X].", "the [X] and [Y]."], ["the dog", "a cat"], SUBJECTS),
        "P2": (["[X] run and [Y].", "[Y] bark and [X].", "[X] [Y]."], ["run", "bark", "the cats see"], SUBJECTS[:2]),
    }
    metadata = {}
    for name, (templates, answers, subjects) in relations.items():
        metadata[name] = {
            "templates": templates,
            "answer_space_labels": answers,
            "answer_space_ids": [f"Q{i}" for i in range(len(answers))],
        }
        rows = [
            {"sub_id": f"S{i}", "sub_label": subject, "sub_aliases": [], "obj_id": f"Q{i % len(answers)}"}
            | {"obj_label": answers[i % len(answers)], "answer_idx": i % len(answers)}
            for i, subject in enumerate(subjects)
        ]
        write_jsonl(folder / f"{name}.jsonl", rows)
    (folder / "metadata_relations.json").write_text(json.dumps(metadata))
    domains = {"P1": {"domains": ["Arts", "Geographic"]}, "P2": {"domains": ["Arts"]}}
    (folder.parent / "relation_info.json").write_text(json.dumps(domains))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_lines(rows))


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _pair(number: int, **facts: str) -> dict[str, str]:
    subject, verb = SUBJECTS[number % 4], VERBS[number // 4 % 4]
    good, bad = f"{subject} {verb} the cat.", f"{subject} the {verb} cat."  # as many tokens
    return {"sentence_good": good, "sentence_bad": bad, **facts}


def _ewok(number: int, domain: str) -> dict[str, str]:
    subject = SUBJECTS[number % 4]
    return {
        "Domain": domain,
        "ConceptA": "see",
        "ConceptB": "run",
        "Context1": f"{subject} and secret dogs run.",
        "Context2": f"{subject} and secret dogs see.",
        "Target1": f"the {VERBS[number % 4]} big",
        "Target2": f"big {VERBS[number % 4]} the",
    }


class Told:
    """Gives every text the score that a function says, and remembers what it was asked."""

    def __init__(self, score: Callable[[str], float]) -> None:
        self.score = score
        self.asked: list[Any] = []

    def strings(self, texts: Sequence[str], *, prefix: str = " ") -> np.ndarray:
        self.asked += [prefix + text for text in texts]
        return np.array([self.score(text) for text in texts])

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.asked += pairs
        return np.array([self.score(continuation) for _, continuation in pairs])

    def token_counts(self, texts: Sequence[str], *, prefix: str = " ") -> np.ndarray:
        return np.array([len(text.split()) for text in texts])
