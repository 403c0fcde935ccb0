"""GLUE from files to scores: what is asked for is checked first, finished work is kept, rows line up."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrnx.config import FinetuneConfig, GlueConfig, HGRN2Config
from hgrnx.data.benchmark_items import GLUE_FIELDS
from hgrnx.errors import UserError
from hgrnx.evaluation import glue
from hgrnx.evaluation.glue import SEED, GlueProgress, KeptTunings, Tuner, run_glue
from hgrnx.evaluation.glue_bar import glue_bar
from hgrnx.evaluation.glue_jobs import FINETUNED_ON, TEMPLATES, GlueResult, plan_jobs
from hgrnx.models import LanguageModel, build_model

QUICK = GlueConfig(epochs=2, batch_size=16, learning_rate=3e-3)
FILLER = ("the", "a", "see", "run", "and", "big")


def row_of(task: str, generator: np.random.Generator) -> dict[str, Any]:
    """A row whose label stands in every text: about dogs (1), cats (0) or, for mnli, bells (2)."""
    label = int(generator.integers(3 if task.startswith("mnli") else 2))
    word = ("cats", "dogs", "barks")[label]
    texts = {
        key: " ".join([word, *generator.choice(FILLER, generator.integers(1, 5)), word])
        if kind is str
        else int(generator.integers(5))
        for key, kind in GLUE_FIELDS[task].items()
    }
    return {**texts, "label": label, "idx": 0}


def write(folder: Path, task: str, split: str, count: int, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    rows = [row_of(task, generator) for _ in range(count)]
    name, _, note = split.partition(".")
    path = folder / f"{task}.{name}{'.' + note if note else ''}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row["label"] for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "glue_filtered"
    folder.mkdir()
    for seed, task in enumerate(("cola", "mnli", "wsc")):
        write(folder, task, "train.SUBSET" if task == "mnli" else "train", 96, seed)
        write(folder, task, "valid", 20, 10 + seed)
    write(folder, "mnli-mm", "valid", 16, 20)
    return folder


@pytest.fixture
def run(tokenizer: Any, folder: Path, tmp_path: Path) -> Callable[..., list[GlueResult]]:
    made = []

    def factory() -> LanguageModel:
        made.append(1)
        return build_model(
            HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16),
            tokenizer.get_vocab_size(),
            seed=len(made),
        )

    def call(
        tasks: tuple[str, ...],
        config: GlueConfig = QUICK,
        *,
        seeds: tuple[int, ...] = (SEED,),
        identity: str = "a",
        on_progress: Callable[[GlueProgress], None] | None = None,
    ) -> list[GlueResult]:
        made.clear()
        tuner = Tuner(factory, tokenizer, 0, on_progress=on_progress)
        kept = KeptTunings(tmp_path / "out", identity, tokenizer, 0)
        results = list(run_glue(plan_jobs(folder, tasks, config), tuner.tune, kept, seeds))
        call.models = len(made)  # type: ignore[attr-defined]
        return results

    return call


def test_scores_predictions_and_settings_of_each_task(run: Any, folder: Path, tmp_path: Path) -> None:
    seen: list[GlueProgress] = []
    cola, matched, mismatched = run(("cola", "mnli", "mnli-mm"), seeds=(1, 2), on_progress=seen.append)
    assert run.models == 4  # mnli-mm takes mnli's
    assert [cola.task, matched.task, mismatched.task] == ["cola", "mnli", "mnli-mm"]
    assert (cola.metric, matched.metric, matched.train_file) == ("mcc", "accuracy", "mnli.train.SUBSET.jsonl")
    assert cola.score > 0.8 and matched.score > 0.8 and mismatched.score > 0.8
    for result in (cola, matched, mismatched):
        gold = [json.loads(line)["label"] for line in (folder / f"{result.task}.valid.jsonl").open()]
        assert result.rows == len(gold) and list(result.predictions) == list(range(len(gold)))
        assert list(result.predictions.values()) == result.seeds[0].predictions
        assert [seed.seed for seed in result.seeds] == [1, 2]
        for seed in result.seeds:
            assert all(type(answer) is int for answer in seed.predictions)
            assert seed.accuracy == pytest.approx(np.mean(np.array(gold) == seed.predictions))
            assert len(seed.epochs) == 2 and seed.stderr >= 0
        scores = [seed.score for seed in result.seeds]
        assert result.score == pytest.approx(np.mean(scores))
        assert result.spread == pytest.approx(np.std(scores, ddof=1))
    assert cola.baseline == 0.0 and 0.3 < matched.baseline < 0.8
    assert matched.settings == mismatched.settings == QUICK.of("mnli")
    last = [progress for progress in seen if (progress.task, progress.seed) == ("cola", 2)][-1]
    assert (last.done, last.total, last.epochs) == (192, 192, 2) and last.score is not None


def test_finished_fine_tunings_are_kept_until_something_changes(run: Any, folder: Path, tmp_path: Path) -> None:
    first = run(("cola", "mnli-mm"), seeds=(1, 2))
    assert run.models == 4
    assert run(("cola", "mnli-mm"), seeds=(1, 2)) == first and run.models == 0
    assert run(("cola",), seeds=(2, 3))[0].seeds[0] == first[0].seeds[1] and run.models == 1
    kept = tmp_path / "out" / "mnli-mm-seed1.json"
    assert not (tmp_path / "out" / "mnli-seed1.json").exists()  # not asked for
    kept.write_text(kept.read_text()[:50])  # as after a crash of the disk
    run(("mnli-mm",), seeds=(1, 2))
    assert run.models == 1
    for change in ({"identity": "b"}, {"config": QUICK.model_copy(update={"epochs": 1})}):
        run(("cola",), seeds=(1,), **change)
        assert run.models == 1
    for task, split in (("mnli-mm", "valid"), ("mnli", "valid"), ("mnli", "train.SUBSET")):
        run(("mnli-mm",), seeds=(1,))
        write(folder, task, split, 20, 99)
        run(("mnli-mm",), seeds=(1,))
        assert run.models == 1, (task, split)
    shutil.copy(tmp_path / "out" / "mnli-mm-seed1.json", tmp_path / "out" / "mnli-mm-seed4.json")
    run(("mnli-mm",), seeds=(4,))
    assert run.models == 1  # not what seed 1 gave


def test_a_kill_between_two_seeds_loses_only_the_unfinished_one(run: Any, tmp_path: Path) -> None:
    def die(progress: GlueProgress) -> None:
        if progress.seed == 2 and progress.epochs == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(("cola",), seeds=(1, 2), on_progress=die)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cola-seed1.json"]
    run(("cola",), seeds=(1, 2))
    assert run.models == 1


def test_rows_may_be_fewer_and_the_first(run: Any) -> None:
    seen: list[GlueProgress] = []
    (result,) = run(("cola",), GlueConfig(epochs=1, max_train_rows=7), on_progress=seen.append)
    assert {progress.total for progress in seen} == {7}
    assert result.train_rows == 7 and result.settings.max_train_rows == 7 and result.seeds[0].seed == 12
    assert result.spread is None


def test_settings_of_a_task() -> None:
    config = GlueConfig.model_validate_json('{"epochs": 3, "tasks": {"wsc": {"patience": 2}, "rte": {"epochs": 9}}}')
    wsc, rte, cola = (config.of(task) for task in ("wsc", "rte", "cola"))
    assert (wsc.epochs, wsc.patience, wsc.learning_rate) == (20, 2, 1e-5)
    assert (rte.epochs, rte.patience, rte.learning_rate) == (9, 3, 5e-5)
    assert (cola.epochs, cola.batch_size, cola.max_length) == (3, 64, 128)
    assert GlueConfig.model_validate_json(config.model_dump_json()).of("wsc") == wsc
    with pytest.raises(ValueError, match="tasks.rte.epoch"):
        GlueConfig.model_validate_json('{"tasks": {"rte": {"epoch": 9}}}')


def test_what_chooses_the_epoch_is_the_pipelines_unless_said(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    real = glue.finetune

    def watched(*arguments: Any, **options: Any) -> Any:
        chosen.append(options["select_by"])
        return real(*arguments, **options)

    monkeypatch.setattr(glue, "finetune", watched)
    tasks = {"wsc": FinetuneConfig(epochs=1, patience=1)}
    run(("cola", "mnli", "wsc"), GlueConfig(epochs=1, max_train_rows=8, tasks=tasks))
    run(("cola",), GlueConfig(epochs=1, max_train_rows=8, select_by="mcc"))
    assert chosen == ["f1", "accuracy", "f1", "mcc"]


def test_templates_have_the_fields_of_their_task() -> None:
    assert TEMPLATES.keys() | FINETUNED_ON.keys() == GLUE_FIELDS.keys()
    for task, templates in TEMPLATES.items():
        values = {key: f"<{key}>" for key in GLUE_FIELDS[task]}
        filled = [template.format(**values) for template in templates if template is not None]
        shown = {key for key in values if any(f"<{key}>" in text for text in filled)}
        assert shown == {key for key, kind in GLUE_FIELDS[task].items() if kind is str}


def test_what_is_wrong_is_said_before_anything_is_run(run: Any, folder: Path, tmp_path: Path) -> None:
    def refused(*tasks: str, config: GlueConfig = QUICK) -> str:
        with pytest.raises(UserError) as caught:
            run(tasks, config)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "no GLUE task 'colla'. Did you mean 'cola'?" in refused("colla")
    assert "lacks rte.train.jsonl, rte.valid.jsonl" in refused("cola", "rte")
    assert "no GLUE task 'qnlli'. Did you mean 'qnli'?" in refused("cola", config=GlueConfig(tasks={"qnlli": QUICK}))
    assert "fine-tuned on mnli" in refused("mnli-mm", config=GlueConfig(tasks={"mnli-mm": QUICK}))
    (folder / "mnli.valid.jsonl").rename(folder / "mnli.valid.jsonl.away")
    assert "lacks mnli.valid.jsonl" in refused("cola", "mnli-mm")
    wsc = folder / "wsc.train.jsonl"
    whole = wsc.read_text()
    wsc.write_text(whole[:-30])
    assert "wsc.train.jsonl:96: not valid JSON" in refused("cola", "wsc")
    wsc.write_text(whole.replace('"label": 1', '"label": 2', 1))
    assert "wsc.train.jsonl: row" in (message := refused("cola", "wsc")) and "label 2, not one of 0 to 1" in message
    cola = folder / "cola.valid.jsonl"
    cola.write_text(cola.read_text() + '{"sentence": "dogs run", "label": null}\n')
    assert "cola.valid.jsonl: row 20 (from 0) has the label None" in refused("cola")
    folder.rename(folder.with_name("away"))
    assert "glue_filtered does not exist" in refused("cola")


def test_lines_for_each_epoch_where_there_is_no_terminal(run: Any) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    with glue_bar(console) as show:
        run(
            ("cola", "wsc"),
            GlueConfig(epochs=2, batch_size=16, tasks={"wsc": FinetuneConfig(epochs=1)}),
            on_progress=show,
        )
    lines = console.export_text().splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "cola, seed 12, epoch 1",
        "cola, seed 12, epoch 2",
        "wsc, seed 12, epoch 1",
    ]
    assert all("rows/s" in line and "score" in line for line in lines)


def test_a_failure_names_task_and_seed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise UserError("The gradient of update 3 is not a number.")

    monkeypatch.setattr(glue, "finetune", fails)
    with pytest.raises(UserError, match="Fine-tuning on cola with seed 12: The gradient of update 3"):
        run(("cola",))
