"""Everything that is measured of a model, in one call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from hgrnx.config import EvaluationConfig
from hgrnx.data.benchmarks import read_minimal_pairs
from hgrnx.evaluation.files import write_gzip, write_whole
from hgrnx.evaluation.minimal_pairs import Pair, PairScores, Summary, score_pairs, summarise
from hgrnx.evaluation.perplexity import Counts, bits_per_byte, spaced_sample
from hgrnx.evaluation.scorer import Scorer
from hgrnx.evaluation.scoring import Precision, Progress
from hgrnx.models import LanguageModel


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers, tables of plain rows, and per file what was preferred."""

    metrics: dict[str, float]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    predictions: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    def save(self, folder: Path, name: str) -> None:
        """Write ``<name>.json`` (metrics, tables) and, with pairs, ``<name>-predictions.json.gz``.

        The predictions hold per file ``preferred`` (0: the acceptable sentence, also on a tie; 1: the other) and the
        log-probabilities ``good`` and ``bad`` in nats.
        """
        if self.predictions:
            write_gzip(folder / f"{name}-predictions.json.gz", self.predictions)
        text = json.dumps({"metrics": self.metrics, "tables": self.tables}, indent=1)
        write_whole(folder / f"{name}.json", text.encode())


def evaluate(
    model: LanguageModel,
    dataset: Any,
    evaluation: EvaluationConfig,
    *,
    final: bool,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
    precision: Precision = "fp32",
    on_progress: Progress | None = None,
) -> EvaluationResult:
    """Measure ``model``; every rank calls this and gets the same result.

    Args:
        model: a plain model with whole weights; its training mode is restored.
        dataset: a ``PreparedDataset``.
        evaluation: which pairs, and how many of them and of the held-out documents.
        final: use all pairs, and as many documents as the end of a run does.
        rank, world_size, gather: see :func:`~hgrnx.evaluation.minimal_pairs.score_pairs`.
        precision: of the hidden states.
        on_progress: called with this rank's sentences done and in all.

    Returns:
        metrics ``dev/bits_per_byte``, ``dev/loss`` (nats per token) and, where there are pairs, ``pairs/accuracy``
        (the pipeline's rule), ``pairs/accuracy_stderr``, ``pairs/accuracy_ties_half``, ``pairs/ties`` and
        ``pairs/<group>/accuracy``; shares are between 0 and 1. Tables ``files`` and ``groups``.
    """
    training = model.training
    model.eval()
    try:
        documents = evaluation.final_dev_documents if final else evaluation.dev_documents
        split = dataset.split("dev")
        part = bits_per_byte(model, split, documents=documents, rank=rank, world_size=world_size, precision=precision)
        counts = reduce(Counts.merge, gather(part))
        metrics = {"dev/bits_per_byte": counts.bits_per_byte, "dev/loss": counts.nats_per_token}
        folder = Path(evaluation.minimal_pairs) if evaluation.minimal_pairs else dataset.pairs_dir
        if folder is None:
            return EvaluationResult(metrics)
        pairs = evaluate_pairs(
            model,
            dataset.tokenizer(),
            dataset.bos_id,
            folder,
            per_file=None if final else evaluation.pairs_per_file,
            rank=rank,
            world_size=world_size,
            gather=gather,
            precision=precision,
            on_progress=on_progress,
        )
    finally:
        model.train(training)
    return replace(pairs, metrics={**metrics, **pairs.metrics})


def evaluate_pairs(
    model: LanguageModel,
    tokenizer: Any,
    bos_id: int,
    folder: Path,
    *,
    per_file: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
    precision: Precision = "fp32",
    on_progress: Progress | None = None,
) -> EvaluationResult:
    """The part of :func:`evaluate` that is about minimal pairs: those in ``folder``, at most ``per_file`` of each file.

    ``model`` is in evaluation mode; ``tokenizer`` is a ``tokenizers.Tokenizer``; the rest as in :func:`evaluate`.
    """
    files = _sample(read_minimal_pairs(folder), per_file)
    scorer = Scorer(model, tokenizer, bos_id, precision, on_progress=on_progress)
    scores = score_pairs(files, scorer.strings, rank=rank, world_size=world_size, gather=gather)
    summary = summarise(scores, {name: pairs[0].phenomenon for name, pairs in files.items()})
    return EvaluationResult(_pair_metrics(summary), summary.tables(), _predictions(scores))


def _sample(files: Mapping[str, Sequence[Pair]], count: int | None) -> dict[str, list[Pair]]:
    return {name: [pairs[i] for i in spaced_sample(len(pairs), count)] for name, pairs in files.items()}


def _pair_metrics(summary: Summary) -> dict[str, float]:
    overall = summary.overall
    metrics = {
        "pairs/accuracy": overall.accuracy,
        "pairs/accuracy_stderr": overall.stderr,
        "pairs/accuracy_ties_half": overall.accuracy_ties_half,
        "pairs/ties": float(overall.ties),
    }
    return metrics | {f"pairs/{row.group}/accuracy": row.accuracy for row in summary.groups}


def _predictions(scores: Mapping[str, PairScores]) -> dict[str, dict[str, list[Any]]]:
    return {
        name: {
            "preferred": [int(bad > good) for good, bad in zip(item.good, item.bad, strict=True)],
            "good": item.good.tolist(),
            "bad": item.bad.tolist(),
        }
        for name, item in scores.items()
    }
