"""What the benchmarks' items are, whatever file they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GLUE_FIELDS: dict[str, dict[str, type]] = {
    "boolq": {"question": str, "passage": str},
    "cola": {"sentence": str},
    "mnli": {"premise": str, "hypothesis": str},
    "mnli-mm": {"premise": str, "hypothesis": str},
    "mrpc": {"sentence1": str, "sentence2": str},
    "multirc": {"paragraph": str, "question": str, "answer": str},
    "qnli": {"question": str, "sentence": str},
    "qqp": {"question1": str, "question2": str},
    "rte": {"sentence1": str, "sentence2": str},
    "sst2": {"sentence": str},
    "wsc": {"text": str, "span1_index": int, "span1_text": str, "span2_index": int, "span2_text": str},
}
"""What a row of each task has besides its label."""


@dataclass(frozen=True)
class MinimalPair:
    """An acceptable sentence and its unacceptable twin; either may have line breaks."""

    good: str
    bad: str
    phenomenon: str
    """The group a file belongs to: BLiMP's ``linguistics_term``; the file's name where it has none."""
    field: str
    """BLiMP's ``field`` (syntax, morphology, ...); empty where the file has none."""


@dataclass(frozen=True)
class EwokItem:
    """Two contexts and two targets; a target of a number fits the context of that number, and not the other."""

    domain: str
    concepts: tuple[str, str]
    context_type: str
    context_difference: str
    target_difference: str
    contexts: tuple[str, str]
    targets: tuple[str, str]


@dataclass(frozen=True)
class BearInstance:
    """A fact: a subject, and which of its relation's answers is right."""

    subject: str
    aliases: tuple[str, ...]
    answer: int
    """Index into the relation's answers."""


@dataclass(frozen=True)
class BearRelation:
    """A relation of BEAR (a Wikidata property) with its templates, answer space and facts."""

    name: str
    templates: tuple[str, ...]
    """Statements with ``[X]`` for the subject and ``[Y]`` for the answer."""
    answers: tuple[str, ...]
    instances: tuple[BearInstance, ...]
    domains: tuple[str, ...] = ()
    """Fields of knowledge it belongs to, where ``relation_info.json`` says so."""

    def statement(self, template: int, subject: str, answer: str) -> str:
        """A template filled in, its first letter made a capital (lm-pub-quiz's rule)."""
        text = self.templates[template].replace("[X]", subject).replace("[Y]", answer)
        return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class GlueRow:
    """A row of a task: its :data:`GLUE_FIELDS`, and its label (None where the file keeps it secret)."""

    fields: Mapping[str, str | int]
    label: int | None
