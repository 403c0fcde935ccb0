"""lm-eval and lm-pub-quiz score exported folders as hgrnx itself does; needs `pip install 'hgrnx[peers]'`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import CONFIGS, lively

from hgrnx.data.benchmark_items import MinimalPair
from hgrnx.data.benchmarks import find_benchmarks, read_bear, read_ewok, read_minimal_pairs
from hgrnx.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from hgrnx.evaluation.bear import Bear
from hgrnx.evaluation.results import run_task
from hgrnx.evaluation.scorer import Scorer
from hgrnx.models import LanguageModel
from hgrnx.models.folders import save_folder
from hgrnx.models.generation import Sampling, generate

pytestmark = pytest.mark.slow

BOS_ID = 0  # of the tokenizers trained here
SUBJECTS = ("the dog", "a cat", "the dogs", "some big cats", "every other bird")
PAIRS = [
    MinimalPair(f"{subject} {verb} the {thing}.", f"{subject} the {verb} {thing}.", "order", "")
    for subject in SUBJECTS
    for verb in ("sees", "chase")
    for thing in ("cat", "birds")
]
TASK = """\
task: pairs
dataset_path: json
dataset_kwargs: {data_files: {test: PATH}}
output_type: multiple_choice
test_split: test
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{[sentence_good, sentence_bad]}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


class Exported:
    """A model of ours, its folder, and how hgrnx scores strings with it."""

    def __init__(self, architecture: str, folder: Path) -> None:
        text = "".join(f"{pair.good}\n{pair.bad}\n" for pair in PAIRS)
        save_tokenizer(train_tokenizer([text], 350), folder / "tokenizer")
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.model: LanguageModel = lively(CONFIGS[architecture], vocab_size=self.tokenizer.get_vocab_size())
        self.folder = folder / "model"
        save_folder(self.model, self.folder, folder / "tokenizer")

    def scores(self, strings: list[str], prefix: str = " ") -> np.ndarray:
        return Scorer(self.model, self.tokenizer, BOS_ID).strings(strings, prefix=prefix)


@pytest.fixture(params=CONFIGS)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Exported:
    return Exported(request.param, tmp_path)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with the task `pairs` of lm-eval."""
    rows = [{"sentence_good": pair.good, "sentence_bad": pair.bad} for pair in PAIRS]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pairs.yaml").write_text(TASK.replace("PATH", str(path)))
    return tmp_path / "tasks"


def choices(samples: list[dict[str, Any]]) -> np.ndarray:
    """Log-probabilities [pairs, 2] of what lm-eval scored, in the order of the file."""
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return np.array([[float(answer[0][0]) for answer in sample["resps"]] for sample in ordered])


class TestLmEval:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval is not installed", exc_type=ImportError)
        import hgrnx.models.hub  # noqa: F401

    def test_pairs(self, exported: Exported, tasks: Path) -> None:
        import lm_eval

        found = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(exported.folder), "dtype": "float32"},
            tasks=["pairs"],
            task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
            device="cpu",
            batch_size=7,
            bootstrap_iters=0,
        )
        wanted = exported.scores([text for pair in PAIRS for text in (pair.good, pair.bad)]).reshape(-1, 2)
        np.testing.assert_allclose(choices(found["samples"]["pairs"]), wanted, atol=1e-4)
        assert found["results"]["pairs"]["acc,none"] == pytest.approx((wanted[:, 0] > wanted[:, 1]).mean())

    def test_whole_texts_and_generation(self, exported: Exported) -> None:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        arguments = {"pretrained": str(exported.folder), "dtype": "float32", "device": "cpu", "batch_size": 2}
        peer = HFLM(**arguments)
        assert peer.max_length == 2048, "its default where a model has no longest text, and what Llama's config says"
        text = " the dog sees the cat."
        given = peer.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
        assert given[0] == pytest.approx(exported.scores([text], prefix="")[0], abs=1e-4)

        peer = HFLM(**arguments, add_bos_token=True)
        prompts = [" the dog", " some big cats chase the birds", " a"]  # a batch, so that two of them are padded
        limits = {"until": [], "max_gen_toks": 8, "do_sample": False}
        requests = [Instance("generate_until", {}, (prompt, limits), i) for i, prompt in enumerate(prompts)]
        for prompt, given_text in zip(prompts, peer.generate_until(requests, disable_tqdm=True), strict=True):
            ids = [BOS_ID, *exported.tokenizer.encode(prompt).ids]
            wanted = list(generate(exported.model, ids, 8, Sampling(temperature=0), eos_id=1))
            assert given_text == peer.tokenizer.decode(wanted, skip_special_tokens=True)

    def test_the_stock_command(self, tmp_path: Path, tasks: Path) -> None:
        exported = Exported("hgrn2", tmp_path)
        done = subprocess.run(  # noqa: S602
            f"{sys.executable} -m lm_eval --model hf --tasks pairs --include_path {tasks} --device cpu --batch_size 4 "
            f"--model_args pretrained={exported.folder},trust_remote_code=True,dtype=float32 "
            f"--limit 6 --log_samples --output_path {tmp_path / 'out'}",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (path,) = (tmp_path / "out").rglob("samples_pairs_*.jsonl")
        wanted = exported.scores([text for pair in PAIRS[:6] for text in (pair.good, pair.bad)]).reshape(-1, 2)
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        np.testing.assert_allclose(choices(samples), wanted, atol=1e-4)


class TestLmPubQuiz:
    ANSWERS = ("the cat", "some dogs that bark", "birds")
    TEMPLATE = "[X] chases [Y]."

    @pytest.fixture
    def relation(self, tmp_path: Path) -> Any:
        quiz = pytest.importorskip("lm_pub_quiz", reason="lm-pub-quiz is not installed", exc_type=ImportError)
        folder = tmp_path / "BEAR"
        folder.mkdir()
        rows = [
            {"sub_id": f"S{i}", "sub_label": subject, "sub_aliases": [], "obj_id": "O0", "obj_label": "x"}
            | {"answer_idx": 0}
            for i, subject in enumerate(SUBJECTS)
        ]
        (folder / "P1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        answers = {"answer_space_labels": self.ANSWERS, "answer_space_ids": ["O0", "O1", "O2"]}
        facts = {"P1": {"templates": [self.TEMPLATE], **answers}}
        (folder / "metadata_relations.json").write_text(json.dumps(facts))
        (relation,) = quiz.Dataset.from_path(folder)
        return relation

    def test_answers(self, exported: Exported, relation: Any) -> None:
        """Each statement of a padded batch has the score that it has alone."""
        from lm_pub_quiz import Evaluator

        import hgrnx.models.hub  # noqa: F401

        evaluator = Evaluator.from_model(str(exported.folder), model_type="CLM", device="cpu")
        table = evaluator.evaluate_relation(relation, template_index=0, batch_size=3).instance_table
        assert len(table) == len(SUBJECTS)
        for subject, given in zip(SUBJECTS, table["pll_scores"], strict=True):
            sentences = [f"{subject} chases {answer}." for answer in self.ANSWERS]
            wanted = [exported.scores([s[0].upper() + s[1:]], prefix="")[0] for s in sentences]
            np.testing.assert_allclose(given, wanted, atol=1e-4)

    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_bear(self, tmp_path: Path, reduction: Any) -> None:
        """A whole data set: every score, and every accuracy, by relation, template and domain."""
        quiz = pytest.importorskip("lm_pub_quiz", reason="lm-pub-quiz is not installed", exc_type=ImportError)
        import hgrnx.models.hub  # noqa: F401

        folder = tmp_path / "bear" / "BEAR"
        folder.mkdir(parents=True)
        relations = {
            "P1": (["[X] chases [Y].", "[Y] sees [X].", "[X] or [Y]?"], self.ANSWERS, SUBJECTS, ["Arts", "Other"]),
            "P2": (["[X] sees [Y].", "[Y] chase [X]!", "the [X]: [Y]"], self.ANSWERS[:2], SUBJECTS[1:4], ["Arts"]),
        }
        metadata: dict[str, Any] = {}
        for name, (templates, answers, subjects, _) in relations.items():
            ids = [f"{name}O{i}" for i in range(len(answers))]
            metadata[name] = {"templates": templates, "answer_space_labels": answers, "answer_space_ids": ids}
            rows = [
                {"sub_id": f"S{i}", "sub_label": subject, "sub_aliases": [], "answer_idx": i % len(answers)}
                | {"obj_id": ids[i % len(answers)], "obj_label": answers[i % len(answers)]}
                for i, subject in enumerate(subjects)
            ]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "metadata_relations.json").write_text(json.dumps(metadata))
        domains = {name: {"domains": facts[3]} for name, facts in relations.items()}
        (folder.parent / "relation_info.json").write_text(json.dumps(domains))

        exported = Exported("hgrn2", tmp_path)
        task = Bear(read_bear(folder), reduction=reduction)
        ours = run_task(task, Scorer(exported.model, exported.tokenizer, BOS_ID), tmp_path / "kept")
        evaluator = quiz.Evaluator.from_model(str(exported.folder), model_type="CLM", device="cpu")
        data = quiz.Dataset.from_path(folder, relation_info=folder.parent / "relation_info.json")
        theirs = evaluator.evaluate_dataset(data, batch_size=3, reduction=reduction)
        for relation in theirs:
            table = relation.instance_table.sort_values(["template_index", "instance_index"])
            scores = np.array(ours.predictions[relation.relation_code]["scores"])
            np.testing.assert_allclose(np.array(table["pll_scores"].tolist()).reshape(scores.shape), scores, atol=1e-4)
        assert ours.score.overall is not None
        assert ours.score.overall.accuracy == pytest.approx(theirs.get_metrics("accuracy"))
        assert {row.name: row.accuracy for row in ours.score.subtasks} == pytest.approx(
            dict(theirs.get_metrics("accuracy", accumulate=False))
        )
        assert {row.name: row.accuracy for row in ours.score.groups} == pytest.approx(
            dict(theirs.get_metrics("accuracy", accumulate="domains"))
        )
        for index, row in enumerate(ours.score.templates):
            alone = evaluator.evaluate_dataset(data, template_index=index, batch_size=3, reduction=reduction)
            assert row.accuracy == pytest.approx(alone.get_metrics("accuracy"))
        assert len({row.accuracy for row in [*ours.score.groups, *ours.score.templates]}) > 2


class TestRealItems:
    """The challenge's own items, where they are at hand (``HGRNX_EVAL_DATA``); EWoK's are never written anywhere."""

    @pytest.fixture
    def data(self) -> Path:
        if not os.environ.get("HGRNX_EVAL_DATA"):
            pytest.skip("HGRNX_EVAL_DATA names no folder of benchmarks")
        pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval is not installed", exc_type=ImportError)
        return Path(os.environ["HGRNX_EVAL_DATA"])

    @staticmethod
    def peer_scores(exported: Exported, pairs: list[tuple[str, str]], **options: Any) -> np.ndarray:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        import hgrnx.models.hub  # noqa: F401

        peer = HFLM(str(exported.folder), dtype="float32", device="cpu", batch_size=16, **options)
        requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        return np.array([score for score, _ in peer.loglikelihood(requests, disable_tqdm=True)])

    def test_blimp(self, exported: Exported, data: Path) -> None:
        files = read_minimal_pairs(find_benchmarks(data)["blimp"])
        pairs = [pair for items in files.values() for pair in items[:2]]
        texts = [text for pair in pairs for text in (pair.good, pair.bad)]
        wanted = self.peer_scores(exported, [("", f" {text}") for text in texts])
        scores = exported.scores(texts)
        np.testing.assert_allclose(scores, wanted, atol=1e-4)
        answers = [part.reshape(-1, 2).argmax(1) for part in (scores, wanted)]
        np.testing.assert_array_equal(*answers)

    def test_ewok(self, exported: Exported, data: Path) -> None:
        files = read_ewok(find_benchmarks(data)["ewok"])
        items = [item for rows in files.values() for item in rows[:4]]
        pairs = [(item.contexts[0], f" {target}") for item in items for target in item.targets]
        wanted = self.peer_scores(exported, pairs, add_bos_token=True)
        scores = Scorer(exported.model, exported.tokenizer, BOS_ID).continuations(pairs)
        np.testing.assert_allclose(scores, wanted, atol=1e-4)
