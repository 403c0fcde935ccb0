"""The offline demo language: English text from a probabilistic grammar, and minimal pairs about it.

Everything is decided by the seed. The text mixes little stories and dialogues; its words, phrases, sentences and
questions are in :mod:`hgrnx.data.english`. The pairs ask for rules that the text shows, in places where the text
never shows them:

* ``lexical``: the structure is common in the text, but these words never meet in it. A hash of the lemmas
  (:func:`hgrnx.data.english.lexicon.held_out`) sets one combination in five apart, whatever the seed: the text
  says "the zebra runs" and "the lion sleeps", never "the zebra sleeps", "the zebras slept", "did the zebra sleep".
* ``structure``: the text has all the parts, but never puts them together so.

========================================== ========= ======================================================
UID                                        held out  good (and bad) sentence
========================================== ========= ======================================================
agreement_simple                           lexical   The zebra sleeps (sleep).
agreement_across_near_phrase               lexical   The ball beside the fathers burns (burn).
agreement_across_relative                  lexical   The men who mention the son sing (sings).
agreement_two_near_phrases                 structure The mother near the cats beside the men is (are) sad.
agreement_near_phrase_in_relative          structure The pilot who loves the frog near the books is (are) sad.
agreement_object_relative                  structure The lambs that the girl follows were (was) white.
anaphor_gender                             lexical   The princess loved herself (himself).
anaphor_number                             lexical   The princesses washed themselves (herself).
anaphor_across_near_phrase                 structure The brother behind the aunt saw himself (herself).
anaphor_across_relative                    structure The duke who loved the brothers saw himself (themselves).
determiner_noun                            lexical   Paul chose that tomato (tomatoes).
determiner_noun_two_adjectives             structure Lucy chased two tiny white turtles (turtle).
irregular_participle                       lexical   The hosts have taken (took) the box.
question_verb_form                         lexical   Is the tailor jumping (jump)?
question_agreement                         lexical   Where does (do) the actor sing?
question_verb_form_across_near_phrase      structure Can the doctor behind the nuns sneeze (sneezing)?
npi_ever                                   lexical   No (the) boy has ever seen the cup, but the (no) man slept.
npi_any                                    lexical   The (no) man slept because no (the) boy took any cups.
npi_scope                                  structure The girl who did not see the boy kissed the cat too (either).
wh_gap                                     lexical   Arthur guessed what (that) the neighbor needs.
wh_gap_across_near_phrase                  structure Anna forgot what (that) the man near the dog needed.
wh_gap_two_clauses                         structure Emma learned who (that) the duke said that the boys trusted.
answer_who_what                            lexical   Who did Lily remember? She remembered the pilots (puzzles).
answer_where_when                          lexical   When did Ella cry? She cried in the winter (park).
answer_pronoun                             lexical   Where did Rosa speak? She (He) spoke in the library.
answer_pronoun_across_near_phrase          structure Where did the duke near the nun run? He (She) ran in the hall.
========================================== ========= ======================================================

Pairs come in blocks that cross singular and plural (masculine and feminine, gap and object, ...) of the word that
decides with those of the nouns that distract. Over a block no word is more often right than wrong, and the
rule "look at the nearest noun" is right half of the time; counts of one, two and three words are near chance.
"""

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
