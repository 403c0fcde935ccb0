"""The offline demo language: documents of generated English, and minimal pairs about it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from hgrnx.data.english.lexicon import NAMES
from hgrnx.data.english.pairs import minimal_pairs
from hgrnx.data.english.phrases import Phrase, Rng
from hgrnx.data.english.questions import (
    Exchange,
    object_question,
    place_question,
    subject_question,
    yes_no,
)
from hgrnx.data.english.sentences import (
    Said,
    about_again,
    bound_possessive,
    conversation_statement,
    either_too,
    existential,
    negative_polarity,
    passive,
    reflexive,
    statement,
    that_clause,
    two_clauses,
    wh_clause,
    without_polarity,
)

__all__ = ["generate_documents", "minimal_pairs"]

_STATEMENTS: tuple[tuple[Callable[[Rng], Said], int], ...] = (
    (statement, 50),
    (reflexive, 8),
    (bound_possessive, 6),
    (that_clause, 7),
    (wh_clause, 6),
    (negative_polarity, 7),
    (without_polarity, 5),
    (either_too, 5),
    (passive, 4),
    (existential, 4),
    (two_clauses, 5),
)
_QUESTIONS: tuple[tuple[Callable[[Rng], Exchange], int], ...] = (
    (yes_no, 40),
    (object_question, 30),
    (place_question, 25),
    (subject_question, 8),
)
_STATEMENT_KINDS = [kind for kind, weight in _STATEMENTS for _ in range(weight)]
_QUESTION_KINDS = [kind for kind, weight in _QUESTIONS for _ in range(weight)]


def generate_documents(words: int, seed: int) -> Iterator[str]:
    """Yield documents, lines joined by newlines, of at most ``words`` words (by white space) in all.

    The last document is cut at the end of the last line that fits. The text of a larger budget with the same
    seed begins with the text of the smaller one.
    """
    index = 0
    while True:
        rng = random.Random(f"hgrnx demo text {seed} {index}")
        lines: list[str] = []
        for line in (_dialogue if rng.random() < 0.3 else _story)(rng):
            words -= len(line.split())
            if words < 0:
                break
            lines.append(line)
        if lines:
            yield "\n".join(lines)
        if words <= 0:
            return
        index += 1


def _story(rng: Rng) -> Iterator[str]:
    """Sentences, one a line, that often go on about the last one's subject; here and there an exchange."""
    about: Phrase | None = None
    for _ in range(rng.randint(6, 14)):
        if about is not None and rng.random() < 0.35:
            said = about_again(rng, about)
        elif rng.random() < 0.25:
            exchange = rng.choice(_QUESTION_KINDS)(rng)
            yield f"{exchange.question} {exchange.answer}".rstrip()
            about = None
            continue
        else:
            said = rng.choice(_STATEMENT_KINDS)(rng)
        about = said.about
        yield said.text


def _dialogue(rng: Rng) -> Iterator[str]:
    """Two speakers in turn, each line opened by the speaker's name and a colon."""
    one, other = rng.sample([name.lemma for name in NAMES.items], 2)
    for _ in range(rng.randint(3, 7)):
        draw = rng.random()
        if draw < 0.6:
            exchange = rng.choice(_QUESTION_KINDS)(rng)
            yield f"{one}: {exchange.question}"
            if exchange.answer:
                yield f"{other}: {exchange.answer}"
                continue
        else:
            said = (conversation_statement if draw < 0.8 else rng.choice(_STATEMENT_KINDS))(rng)
            yield f"{one}: {said.text}"
        one, other = other, one
