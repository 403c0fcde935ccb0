"""The scores that the BabyHGRN paper prints (arXiv 2412.15978), in percent.

The averages that it prints are not here: two of them are not the mean of their own cells.
"""

from __future__ import annotations

from typing import NamedTuple

TASKS = ("blimp", "supplement", "ewok", "glue", "bear")


class PaperRow(NamedTuple):
    """A model of the paper's final table, and its mean scores by task."""

    model: str
    track: str
    scores: dict[str, float]


def _row(model: str, track: str, *scores: float) -> PaperRow:
    return PaperRow(model, track, dict(zip(TASKS, scores, strict=True)))


FINAL = (
    _row("BabyLlama", "10M", 69.8, 59.5, 50.7, 63.3, 5.4),
    _row("LTG-BERT", "10M", 60.6, 60.8, 48.9, 60.3, 5.7),
    _row("BabyHGRN, next token", "10M", 69.4, 55.6, 50.7, 63.0, 5.6),
    _row("BabyHGRN, distilled", "10M", 72.1, 58.6, 51.3, 65.8, 7.5),
    _row("BabyLlama", "100M", 73.1, 60.6, 52.1, 69.0, 8.5),
    _row("LTG-BERT", "100M", 69.2, 66.5, 51.9, 68.4, 8.2),
    _row("BabyHGRN, next token", "100M", 74.5, 59.1, 52.88, 69.1, 13.5),
    _row("BabyHGRN, distilled", "100M", 77.5, 58.5, 51.6, 70.7, 13.6),
)

_ZERO_SHOT = ("blimp", "supplement", "ewok")

ARCHITECTURES_10M = tuple(
    PaperRow(model, "10M", dict(zip(_ZERO_SHOT, scores, strict=True)))
    for model, *scores in (
        ("HGRN2 (epoch 4)", 67.05, 55.69, 49.88),
        ("Transformer (epoch 4)", 62.64, 54.86, 50.48),
        ("LSTM (epoch 5)", 62.27, 51.63, 50.48),
        ("xLSTM (epoch 3)", 51.20, 48.77, 49.89),
        ("Mamba (epoch 2)", 64.44, 55.39, 50.39),
    )
)
"""Table 2: BabyLM 10M, the best epoch of five."""

DATA = tuple(
    PaperRow(model, track, dict(zip((*_ZERO_SHOT, "bear"), scores, strict=True)))
    for model, track, *scores in (
        ("HGRN2 on BabyLM", "10M", 67.05, 55.69, 49.88, 5.29),
        ("HGRN2 on the Pile", "10M", 67.49, 52.22, 50.62, 5.36),
        ("HGRN2 on BabyLM", "100M", 69.44, 55.56, 50.31, 6.17),
        ("HGRN2 on the Pile", "100M", 72.89, 57.43, 50.61, 7.38),
    )
)
"""BabyLM's text against the Pile's."""

DISTILLED_10M = "BabyHGRN, distilled, 10M"
DISTILLED_10M_PARTS: dict[str, dict[str, float]] = {
    "blimp": {
        "anaphor_agreement": 91.4,
        "argument_structure": 74.6,
        "binding": 75.9,
        "control_raising": 74.2,
        "determiner_noun_agreement": 90.1,
        "ellipsis": 68.0,
        "filler_gap_dependency": 73.5,
        "irregular_forms": 91.8,
        "island_effects": 56.5,
        "npi_licensing": 45.5,
        "quantifiers": 63.4,
        "s-selection": 84.6,
        "subject_verb_agreement": 79.0,
    },
    "supplement": {
        "hypernym": 49.8,
        "qa_congruence_easy": 56.2,
        "qa_congruence_tricky": 37.6,
        "subject_aux_inversion": 89.6,
        "turn_taking": 59.6,
    },
    "ewok": {
        "agent-properties": 50.1,
        "material-dynamics": 50.9,
        "material-properties": 50.6,
        "physical-dynamics": 55.0,
        "physical-interactions": 50.7,
        "physical-relations": 50.4,
        "quantitative-properties": 51.3,
        "social-interactions": 54.1,
        "social-properties": 51.2,
        "social-relations": 50.3,
        "spatial-relations": 49.8,
    },
    "glue": {
        "boolq": 65.4,
        "cola": 33.1,
        "mnli": 69.3,
        "mnli-mm": 69.5,
        "mrpc": 81.0,
        "multirc": 59.7,
        "qnli": 72.3,
        "qqp": 81.9,
        "rte": 54.0,
        "sst2": 89.4,
        "wsc": 48.1,
    },
}
"""That model's parts by task; BLiMP's phenomena are means of its published scores by paradigm."""
