"""Folders as an experiment on three tasks leaves them, made up: scores that are known to the last digit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TITLES = {"hgrn2": "HGRN2", "transformer": "Transformer", "lstm": "LSTM", "xlstm": "xLSTM", "mamba": "Mamba"}
GROUPS = {
    "blimp": [
        "anaphor_agreement",
        "argument_structure",
        "binding",
        "control_raising",
        "determiner_noun_agreement",
        "ellipsis",
        "filler_gap_dependency",
        "irregular_forms",
        "island_effects",
        "npi_licensing",
        "quantifiers",
        "s-selection",
        "subject_verb_agreement",
    ],
    "supplement": ["hypernym", "qa_congruence_easy", "qa_congruence_tricky", "subject_aux_inversion", "turn_taking"],
    "ewok": ["agent-properties", "material-dynamics", "physical-relations", "social-interactions"],
}


def row(name: str, score: float, items: int, group: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "group": group or name,
        "items": items,
        "accuracy": score,
        "accuracy_ties_half": score,
        "stderr": float(np.sqrt(score * (1 - score) / items)),
        "ties": 0,
    }


def task_scores(random: np.random.Generator, level: float) -> dict[str, Any]:
    tasks = {}
    for task, groups in GROUPS.items():
        each = 5 if task == "blimp" else 1
        subtasks = [
            row(
                f"{group}_{number}" if each > 1 else group,
                float(np.clip(level + 0.07 * np.sin(3 * place + number) + 0.01 * random.standard_normal(), 0.05, 0.98)),
                900,
                group,
            )
            for place, group in enumerate(groups)
            for number in range(each)
        ]
        mean = {group: float(np.mean([r["accuracy"] for r in subtasks if r["group"] == group])) for group in groups}
        overall = row(task, float(np.mean([r["accuracy"] for r in subtasks])), sum(r["items"] for r in subtasks))
        tasks[task] = {
            "overall": overall,
            "subtasks": subtasks,
            "templates": [],
            "settings": {},
            "groups": [row(group, mean[group], 900 * each) for group in groups],
        }
    return {"model": "x", "weights": "y", "precision": "fp32", "macro": None, "tasks": tasks}


def write_run(folder: Path, level: float, seed: int, milestones: bool) -> None:
    random = np.random.default_rng([seed, round(1000 * level)])
    final = 2.6 - level + 0.01 * random.standard_normal()
    (folder / "eval").mkdir(parents=True)

    def write(name: str, content: Any) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    write("eval/tasks.json", task_scores(random, level))
    if milestones:
        for words in range(1, 6):
            scores = task_scores(random, level - 0.08 / words)
            write(f"eval/points/step-{843 * words:08d}/tasks.json", {**scores, "words": 1_000_000 * words})
    write("eval/final.json", {"metrics": {"dev/bits_per_byte": final, "dev/loss": 3.0}, "tables": {}})
    lines = [{"step": 84 * n, "words": 100_000 * n, "dev/bits_per_byte": final + 0.5 / n - 0.05} for n in range(1, 11)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(
        "result.json",
        {
            "steps": 843,
            "words": 1_000_130,
            "seconds": 600.0 + 60 * seed,
            "tokens_per_second": 2700.0,
            "peak_memory_mb": 910.0,
            "parameters": {"total": 7_166_208, "embedding": 2_048_000, "other": 5_118_208},
        },
    )
    write(
        "environment.json",
        {
            "git": {"commit": "0123456789abcdef", "dirty": False},
            "python": "3.11.9",
            "gpus": [],
            "platform": "Linux",
            "cpu": "A processor of some length @ 2.10GHz",
            "cpu_cores": 2,
            "memory_gb": 15.6,
            "versions": {"hgrnx": "0.1.0", "torch": "2.13.0", "mlflow": None},
            "data_hash": "ab" * 32,
            "recurrence": "compiled",
        },
    )
    write(
        "ledger.json",
        {
            "track": "strict-small",
            "budget": 10_000_000,
            "max_passes": 10,
            "words": 9_668_974,
            "readers": [
                {"name": folder.name, "words": 9_668_974, "passes": 0.1},
                {"name": "tokenizer", "words": 9_668_974, "passes": 1.0},
            ],
        },
    )


def write_experiment(runs: Path, *, finished: int = 15, milestones: bool = False, vary: bool = False) -> Path:
    """An experiment of five arms and three seeds, of which the first ``finished`` runs are; returns its folder."""
    arms, count = {}, 0
    for place, (arm, title) in enumerate(TITLES.items()):
        names = {}
        for seed in range(3):
            names[str(seed)] = f"x-{arm}-s{seed}"
            if count < finished:
                write_run(runs / names[str(seed)], 0.62 - 0.015 * place, seed, milestones)
            count += 1
        arms[arm] = {
            "title": f"{title}, temperature {2**place}" if vary else title,
            "family": "student" if vary else arm,
            "key": "distill.temperature" if vary else None,
            "value": 2.0**place if vary else None,
            "teachers": [],
            "parameters": {"total": 7_166_208, "embedding": 2_048_000, "other": 5_118_208 - 1000 * place},
            "words": 1_000_000,
            "tokens": 1_726_464,
            "flops": 7.67e13,
            "dev_documents": 2000 if vary else None,
            "runs": names,
        }
    plan = {
        "name": "table2",
        "scale": "cpu",
        "title": "Architectures",
        "paper": "architectures",
        "question": "Which architecture learns most from the same few words, at equal parameters?",
        "command": "hgrnx reproduce table2 --scale cpu --data DIR",
        "data": "DIR",
        "seeds": [0, 1, 2],
        "tasks": list(GROUPS),
        "comparisons": [["hgrn2", arm] for arm in list(TITLES)[1:]],
        "arms": arms,
    }
    folder = runs / "table2-cpu-experiment-01234567"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps(plan))
    return folder
