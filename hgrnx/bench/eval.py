"""Scoring BLiMP and BEAR: ours, the programs that others use, and a plain forward, which is the floor.

Shapes: B rows, T tokens, D model width, N texts, Q questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrnx.bench.eval_peers import lm_eval_scores, lm_pub_quiz_scores
from hgrnx.bench.measure import Case, Measurement
from hgrnx.bench.model import SMALL, VOCAB_SIZE
from hgrnx.data.benchmark_items import BearRelation, MinimalPair
from hgrnx.data.benchmarks import find_benchmarks, read_bear, read_minimal_pairs
from hgrnx.data.tokenizer import BOS, save_tokenizer, train_tokenizer
from hgrnx.errors import UserError
from hgrnx.evaluation.perplexity import spaced_sample
from hgrnx.evaluation.scorer import Scorer
from hgrnx.evaluation.scoring import Precision, length_buckets, log_probabilities
from hgrnx.models import LanguageModel, build_model
from hgrnx.models.folders import save_folder
from hgrnx.runs import OpenedModel

_PLAIN_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Questions:
    """Texts to score: the alternatives of one question, those of the next, ..."""

    name: str
    texts: list[str]
    prefix: str
    bounds: np.ndarray
    """Where each question's texts begin, and where the last one's end, [Q + 1]."""
    peer: Callable[[Path, torch.device], Callable[[], np.ndarray] | None]
    """From an exported folder to somebody else's way of scoring ``texts``; None where it is not installed."""
    peer_name: str

    def answers(self, scores_N: np.ndarray) -> np.ndarray:
        """The likeliest alternative of each question, [Q]."""
        return np.array([int(scores_N[begin:end].argmax()) for begin, end in pairwise(self.bounds)])


@dataclass
class Way:
    """One way of scoring, and what it said last."""

    name: str
    score: Callable[[], np.ndarray]
    last: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def step(self) -> None:
        """Score everything once."""
        self.last = self.score()


def read_questions(data: Path, items: int) -> list[Questions]:
    """``items`` pairs of each of BLiMP's files; one fact of each of ``items`` of BEAR's relations, in all templates.

    Raises:
        UserError: neither benchmark is in ``data``, or a file of theirs is not as it should be.
    """
    places = find_benchmarks(data)
    found = []
    if "blimp" in places:
        files = read_minimal_pairs(places["blimp"]).values()
        found.append(_blimp([pairs[i] for pairs in files for i in spaced_sample(len(pairs), items)]))
    if "bear" in places:
        folder = places["bear"]
        relations = read_bear(folder)
        found.append(_bear([relations[i] for i in spaced_sample(len(relations), items)], folder))
    if not found:
        raise UserError(f"There is neither BLiMP nor BEAR in {data}.")
    return found


def _blimp(pairs: Sequence[MinimalPair]) -> Questions:
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    return Questions("BLiMP", texts, " ", np.arange(0, len(texts) + 1, 2), partial(lm_eval_scores, pairs), "lm-eval")


def _bear(relations: Sequence[BearRelation], folder: Path) -> Questions:
    texts, bounds = [], [0]
    for relation in relations:
        for template in range(len(relation.templates)):
            subject = relation.instances[0].subject
            texts += [relation.statement(template, subject, answer) for answer in relation.answers]
            bounds.append(len(texts))
    peer = partial(lm_pub_quiz_scores, folder, [relation.name for relation in relations])
    return Questions("BEAR", texts, "", np.array(bounds), peer, "lm-pub-quiz")


def small_model(questions: Sequence[Questions], folder: Path) -> OpenedModel:
    """What is measured without a model of one's own: a fresh HGRN2, and a tokenizer of the benchmarks' own texts."""
    tokenizer = train_tokenizer((text for part in questions for text in part.texts), VOCAB_SIZE)
    save_tokenizer(tokenizer, folder / "tokenizer")
    return OpenedModel(folder, build_model(SMALL, tokenizer.get_vocab_size()).eval(), folder / "tokenizer", None)


def ways(
    questions: Questions, opened: OpenedModel, exported: Path, precisions: Sequence[Precision], device: torch.device
) -> list[Way]:
    """Ours and the plain forward in every precision, and the peer in its default, float32, where it is installed."""
    model, tokenizer = opened.model.to(device), opened.tokenizer()
    found = []
    for precision in precisions:
        scorer = Scorer(model, tokenizer, tokenizer.token_to_id(BOS), precision)
        found.append(Way(f"hgrnx, {precision}", partial(scorer.strings, questions.texts, prefix=questions.prefix)))
        plain = partial(_plain_scores, model, tokenizer, questions, precision)
        found.append(Way(f"plain forward, {precision}", plain))
    if not (exported / "config.json").is_file():
        save_folder(model, exported, opened.tokenizer_dir)
    peer = questions.peer(exported, device)
    if peer is not None:
        found.append(Way(f"{questions.peer_name}, fp32", peer))
    return found


def cases(questions: Questions, found: Sequence[Way], tokenizer: Any) -> list[Case]:
    """To be measured; tokens are counted as if nothing were shared."""
    encoded = tokenizer.encode_batch_fast([questions.prefix + text for text in questions.texts])
    tokens = sum(len(encoding.ids) for encoding in encoded)
    return [Case(f"{questions.name}, {way.name}", way.step, tokens=tokens) for way in found]


def compare(questions: Questions, found: Sequence[Way], measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Rows of the report: each way's time, and its answers beside those of the peer (or else the plain forward).

    ``other_answers`` of ``questions`` are not the same; ``largest_margin`` is by how much the reference's scores of
    the two answers differ at most there, in nats.
    """
    reference = next((way for way in found if way.name.startswith(questions.peer_name)), found[1])
    wanted = questions.answers(reference.last)
    rows = []
    for way, measurement in zip(found, measured, strict=True):
        given = questions.answers(way.last)
        other = np.flatnonzero(given != wanted)
        begins = questions.bounds[:-1][other]
        margins = reference.last[begins + wanted[other]] - reference.last[begins + given[other]]
        rows.append(
            measurement.row()
            | {
                "questions": len(wanted),
                "texts": len(questions.texts),
                "reference": reference.name,
                "other_answers": len(other),
                "largest_margin": float(margins.max(initial=0.0)),
                "largest_difference": float(np.abs(way.last - reference.last).max()),
            }
        )
    return rows


def verdicts(questions: Questions, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows say of ours, in words."""
    by_name = {row["name"].removeprefix(f"{questions.name}, "): row for row in rows}
    peer = by_name.get(f"{questions.peer_name}, fp32")
    lines = []
    for name, row in by_name.items():
        kind, precision = name.split(", ")
        if kind != "hgrnx":
            continue
        floor = by_name[f"plain forward, {precision}"]
        parts = [f"{_times(floor, row)} a plain forward of all tokens"]
        if peer is not None:
            parts.append(f"{_times(peer, row)} {questions.peer_name} in fp32")
        parts.append(
            f"{row['other_answers']} of {row['questions']} answers differ from {row['reference']}"
            + (f" (by at most {row['largest_margin']:.4f} nats there)" if row["other_answers"] else "")
        )
        lines.append(f"{questions.name}, {name}: " + "; ".join(parts) + ".")
    if peer is None:
        lines.append(f"{questions.peer_name} is not installed: pip install 'hgrnx[peers]' measures it as well.")
    return lines


def _times(slow: dict[str, Any], fast: dict[str, Any]) -> str:
    wall, cpu = slow["seconds"] / fast["seconds"], slow["cpu_seconds"] / fast["cpu_seconds"]
    return f"{wall:.2f} times as fast (CPU time {cpu:.2f}) as"


@torch.inference_mode()
def _plain_scores(model: LanguageModel, tokenizer: Any, questions: Questions, precision: Precision) -> np.ndarray:
    """All tokens of all texts through the model, batches of like length, nothing shared."""
    bos_id = tokenizer.token_to_id(BOS)
    encoded = tokenizer.encode_batch_fast([questions.prefix + text for text in questions.texts])
    rows = [np.array([bos_id, *encoding.ids], dtype=np.int64) for encoding in encoded]
    device = model.head_weight.device
    scores_N = np.zeros(len(rows))
    for batch in length_buckets([len(row) for row in rows], _PLAIN_BATCH_TOKENS):
        lengths_B = np.array([len(rows[i]) for i in batch])
        tokens_BT = np.zeros((len(batch), lengths_B.max()), dtype=np.int64)
        tokens_BT[np.arange(tokens_BT.shape[1]) < lengths_B[:, None]] = np.concatenate([rows[i] for i in batch])
        ids_BT = torch.from_numpy(tokens_BT).to(device)
        valid_BT = torch.arange(1, ids_BT.shape[1], device=device) < torch.from_numpy(lengths_B).to(device)[:, None]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            hidden_BTD, _ = model.hidden(ids_BT[:, :-1])
        ones = np.ones(int(valid_BT.sum()), dtype=np.int64)
        log_probs_BT = torch.zeros(valid_BT.shape, dtype=torch.float64, device=device)
        log_probs_BT[valid_BT] = log_probabilities(model, hidden_BTD[valid_BT], ids_BT[:, 1:][valid_BT], ones)
        scores_N[batch] = log_probs_BT.sum(1).cpu().numpy()
    return scores_N
