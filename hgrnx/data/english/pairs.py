"""The catalogue of phenomena, and the minimal pairs of each as dicts in BLiMP's form.

Each phenomenon draws *blocks* of pairs that cross the factors which could give the answer away: every singular
has its plural, every verb form its opposite, every attractor is as often of the head's number (or gender) as not.
So no single word, and no rule that looks at the nearest noun, does better than chance over a block.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hgrnx.data.english import agreement_pairs as agreement
from hgrnx.data.english import clause_pairs as clauses
from hgrnx.data.english.pair import Pair
from hgrnx.data.english.phrases import Rng

LEXICAL, STRUCTURE = "lexical", "structure"


class Phenomenon(NamedTuple):
    """``block`` draws a balanced block of pairs; ``term`` is the group and ``field`` BLiMP's field."""

    block: Callable[[Rng], list[Pair]]
    held_out: str
    term: str
    field: str


def _group(term: str, field: str, *blocks: tuple[Callable[[Rng], list[Pair]], str]) -> dict[str, Phenomenon]:
    return {block.__name__: Phenomenon(block, held_out, term, field) for block, held_out in blocks}


PHENOMENA: dict[str, Phenomenon] = {
    **_group(
        "subject_verb_agreement",
        "morphology",
        (agreement.agreement_simple, LEXICAL),
        (agreement.agreement_across_near_phrase, LEXICAL),
        (agreement.agreement_across_relative, LEXICAL),
        (agreement.agreement_two_near_phrases, STRUCTURE),
        (agreement.agreement_near_phrase_in_relative, STRUCTURE),
        (agreement.agreement_object_relative, STRUCTURE),
    ),
    **_group(
        "anaphor_agreement",
        "morphology",
        (agreement.anaphor_gender, LEXICAL),
        (agreement.anaphor_number, LEXICAL),
        (agreement.anaphor_across_near_phrase, STRUCTURE),
        (agreement.anaphor_across_relative, STRUCTURE),
    ),
    **_group(
        "determiner_noun_agreement",
        "morphology",
        (agreement.determiner_noun, LEXICAL),
        (agreement.determiner_noun_two_adjectives, STRUCTURE),
    ),
    **_group(
        "verb_forms",
        "morphology",
        (clauses.irregular_participle, LEXICAL),
        (clauses.question_verb_form, LEXICAL),
        (clauses.question_agreement, LEXICAL),
        (clauses.question_verb_form_across_near_phrase, STRUCTURE),
    ),
    **_group(
        "npi_licensing",
        "semantics",
        (clauses.npi_ever, LEXICAL),
        (clauses.npi_any, LEXICAL),
        (clauses.npi_scope, STRUCTURE),
    ),
    **_group(
        "filler_gap",
        "syntax",
        (clauses.wh_gap, LEXICAL),
        (clauses.wh_gap_across_near_phrase, STRUCTURE),
        (clauses.wh_gap_two_clauses, STRUCTURE),
    ),
    **_group(
        "question_answer_congruence",
        "syntax_semantics",
        (clauses.answer_who_what, LEXICAL),
        (clauses.answer_where_when, LEXICAL),
        (clauses.answer_pronoun, LEXICAL),
        (clauses.answer_pronoun_across_near_phrase, STRUCTURE),
    ),
}
"""By UID."""


def minimal_pairs(seed: int, per_phenomenon: int) -> dict[str, list[dict[str, Any]]]:
    """Draw ``per_phenomenon`` different pairs of each phenomenon (fewer where it has no more), by its UID.

    The dicts are those of BLiMP's JSONL files (sentence_good, sentence_bad, field, linguistics_term, UID,
    pair_id) with two more keys: ``held_out``, "structure" or "lexical", and ``held_out_words``, the combination
    of lemmas that the text never has (empty for structures). With a multiple of four, every block is complete.
    """
    return {
        uid: [
            {
                "sentence_good": pair.good,
                "sentence_bad": pair.bad,
                "field": phenomenon.field,
                "linguistics_term": phenomenon.term,
                "UID": uid,
                "pair_id": str(index),
                "held_out": phenomenon.held_out,
                "held_out_words": list(pair.words),
            }
            for index, pair in zip(range(per_phenomenon), _different(uid, phenomenon, seed), strict=False)
        ]
        for uid, phenomenon in PHENOMENA.items()
    }


def _different(uid: str, phenomenon: Phenomenon, seed: int) -> Iterator[Pair]:
    """Whole blocks of pairs, no good sentence twice; ends when new ones have become hard to find."""
    rng = random.Random(f"hgrnx demo pairs {seed} {uid}")
    seen: set[str] = set()
    repeats = 0
    while repeats < 1_000:
        block = phenomenon.block(rng)
        if seen.isdisjoint(pair.good for pair in block):
            seen.update(pair.good for pair in block)
            repeats = 0
            yield from block
        else:
            repeats += 1
