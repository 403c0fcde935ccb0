"""Questions of the demo language and their answers.

A question's subject is never modified; the nouns, verbs and places that
:func:`~hgrnx.data.english.lexicon.held_out` names with ``answer`` or ``answer pronoun`` are never answered so.
"""

from __future__ import annotations

from typing import NamedTuple

from hgrnx.data.english.clauses import copula, object_words, subject
from hgrnx.data.english.lexicon import (
    BE,
    DO,
    HAVE,
    INTRANSITIVE_FOR,
    KIND_LETTERS,
    MODALS,
    NAMES,
    NOUN_POOLS,
    PLACES,
    SEEING_POOL,
    SG,
    STATIVE,
    TIMES,
    TRANSITIVE_FOR,
    WAS,
    Noun,
    Verb,
    held_out,
)
from hgrnx.data.english.phrases import (
    Phrase,
    Rng,
    any_number,
    determined,
    fits,
    named_or_gendered,
    plain,
    pronoun_phrase,
)
from hgrnx.data.english.sentences import sentence


class Exchange(NamedTuple):
    """A question and, mostly, its answer."""

    question: str
    answer: str = ""


def inverted(rng: Rng, who: Phrase, verb: Verb) -> tuple[str, str]:
    """An auxiliary for the front of a question and the verb form it asks for."""
    draw = rng.random()
    number = who.number
    if draw < 0.25 and verb.lemma not in STATIVE:
        return (BE if rng.random() < 0.6 else WAS)[number], verb.ing
    if draw < 0.4 and not held_out("auxiliary have", verb.lemma):
        return HAVE[number], verb.participle
    if draw < 0.6:
        return MODALS.pick(rng), verb.lemma
    if draw < 0.85 and not any(held_out("do", noun.lemma) for noun in who.heads):
        return DO[number], verb.lemma
    return "did", verb.lemma


def _asked(rng: Rng, *, people_only: bool = False) -> Phrase:
    """Whom a question is about."""
    if rng.random() < 0.15:
        return pronoun_phrase(rng.choice(("you", "they", "he", "she", "we")))
    if rng.random() < 0.5:
        return subject(rng, "p" if people_only else "pppa", modified=False, negative=0)
    return named_or_gendered(rng)


def yes_no(rng: Rng) -> Exchange:
    """Does the boy sleep? Yes, he does."""
    who = _asked(rng)
    if rng.random() < 0.2:
        form, _, rest = copula(rng, who).replace(" not", "").partition(" ")
        return Exchange(sentence(f"{form} {who.text} {rest}", "?"), _short_answer(rng, who, form))
    transitive = who.letter == "p" and rng.random() < 0.6
    pool = (TRANSITIVE_FOR if transitive else INTRANSITIVE_FOR)[who.letter]
    verb = pool.pick(rng, lambda verb: fits(who, verb))
    auxiliary, form = inverted(rng, who, verb)
    rest = " " + object_words(rng, verb, who) if transitive else ""
    return Exchange(sentence(f"{auxiliary} {who.text} {form}{rest}", "?"), _short_answer(rng, who, auxiliary))


def _short_answer(rng: Rng, who: Phrase, auxiliary: str) -> str:
    pronoun = answer_pronoun(who)
    if rng.random() < 0.4 or not pronoun:
        return ""
    return f"Yes, {pronoun} {auxiliary}." if rng.random() < 0.6 else f"No, {pronoun} {auxiliary} not."


def answer_pronoun(who: Phrase) -> str:
    """How an answer takes up the person asked about; empty when the text may not do so."""
    noun = who.heads[0]
    if noun.kind == "pronoun":
        return {"you": "", "we": ""}.get(who.text, who.text)
    return "" if held_out("answer pronoun", noun.lemma) or len(who.heads) > 1 else who.pronoun


def _answering_subject(who: Phrase) -> str:
    if who.text in ("you", "we"):
        return {"you": "I", "we": "we"}[who.text]
    return answer_pronoun(who) or who.text


def object_question(rng: Rng) -> Exchange:
    """What did Anna see? She saw the cup. Who did Anna see? She saw the teacher."""
    who = _asked(rng, people_only=True)
    if rng.random() < 0.6:
        verb = SEEING_POOL.pick(rng, lambda verb: fits(who, verb))
    else:
        verb = TRANSITIVE_FOR["p"].pick(rng, lambda verb: fits(who, verb))
    letter = rng.choice(verb.objects)
    word = "who" if letter == "p" else "what"
    if rng.random() < 0.3:
        auxiliary, form = inverted(rng, who, verb)
        return Exchange(sentence(f"{word} {auxiliary} {who.text} {form}", "?"))
    answer = answer_object(rng, letter, who)
    return Exchange(
        sentence(f"{word} did {who.text} {verb.lemma}", "?"),
        sentence(f"{_answering_subject(who)} {verb.past} {answer.text}"),
    )


def answer_object(rng: Rng, letter: str, who: Phrase) -> Phrase:
    """A noun phrase that may answer who (letter p) or what."""

    def accept(noun: Noun) -> bool:
        return noun not in who.heads and not held_out("answer", noun.lemma)

    if letter == "p" and rng.random() < 0.3:
        name = NAMES.pick(rng, lambda noun: noun not in who.heads)
        return Phrase(name.lemma, (name,), SG)
    return determined(rng, NOUN_POOLS[letter].pick(rng, accept), any_number(rng))


def place_question(rng: Rng) -> Exchange:
    """Where did the boys sleep? They slept in the garden. When ...? ... in the morning."""
    who = _asked(rng)
    verb = INTRANSITIVE_FOR[KIND_LETTERS[who.heads[0].kind]].pick(rng, lambda verb: fits(who, verb))
    where = rng.random() < 0.5
    pool = [place.lemma for place in PLACES.items] if where else list(TIMES.items)
    noun = rng.choice(pool)
    while held_out("answer", verb.lemma, noun):
        noun = rng.choice(pool)
    return Exchange(
        sentence(f"{'where' if where else 'when'} did {who.text} {verb.lemma}", "?"),
        sentence(f"{_answering_subject(who)} {verb.past} in the {noun}"),
    )


def subject_question(rng: Rng) -> Exchange:
    """Who took the cup? Anna took the cup."""
    who = plain(rng, "p")
    verb = TRANSITIVE_FOR["p"].pick(rng, lambda verb: fits(who, verb))
    obj = plain(rng, verb.objects, avoid=who.heads).text
    rest = "did" if rng.random() < 0.5 else f"{verb.past} {obj}"
    return Exchange(sentence(f"who {verb.past} {obj}", "?"), sentence(f"{who.text} {rest}"))
