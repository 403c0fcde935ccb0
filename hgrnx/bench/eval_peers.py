"""Other people's evaluation programs on an exported folder, as far as they are installed (``hgrnx[peers]``).

What they need is loaded once; each call of what is returned scores everything again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrnx.data.benchmark_items import MinimalPair

_BATCH_SIZE = 64


def lm_eval_scores(pairs: Sequence[MinimalPair], folder: Path, device: torch.device) -> Callable[[], np.ndarray] | None:
    """lm-eval's evaluation of minimal pairs as a multiple choice, float32: log-probabilities, good, bad, good, ..."""
    if find_spec("lm_eval") is None:
        return None
    with _quiet():
        from datasets import Dataset
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        import hgrnx.models.hub  # noqa: F401

        peer = HFLM(str(folder), dtype="float32", device=str(device), batch_size=_BATCH_SIZE)
        rows = Dataset.from_list([{"choices": [f" {pair.good}", f" {pair.bad}"]} for pair in pairs])
    config = {
        "task": "pairs",
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    with _quiet():
        task = ConfigurableTask(config=config)

    def score() -> np.ndarray:
        with _quiet():
            found: Any = evaluate(lm=peer, task_dict={"pairs": task}, bootstrap_iters=0)
        samples = sorted(found["samples"]["pairs"], key=lambda sample: sample["doc_id"])
        return np.array([float(answer[0][0]) for sample in samples for answer in sample["resps"]])

    return score


def lm_pub_quiz_scores(
    bear: Path, relations: Sequence[str], folder: Path, device: torch.device
) -> Callable[[], np.ndarray] | None:
    """lm-pub-quiz's evaluation of the first fact of some of BEAR's relations, float32: template after template."""
    if find_spec("lm_pub_quiz") is None:
        return None
    with _quiet():
        from lm_pub_quiz import Dataset, Evaluator

        import hgrnx.models.hub  # noqa: F401

        place = bear if (bear / "metadata_relations.json").is_file() else bear / "BEAR"
        whole = Dataset.from_path(place)
        chosen = [whole[name].filter_subset([0], keep_answer_space=True) for name in relations]
        evaluator = Evaluator.from_model(str(folder), model_type="CLM", device=device)

    def score() -> np.ndarray:
        scores: list[float] = []
        with _quiet():
            for relation in chosen:
                table = evaluator.evaluate_relation(relation, batch_size=_BATCH_SIZE).instance_table
                scores.extend(value for row in table["pll_scores"] for value in row)
        return np.array(scores)

    return score


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without their progress bars."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
