"""Sentence types of the demo language: each function draws one sentence, ready to print.

A sentence comes with the subject that a following sentence may take up with a pronoun (:class:`Said`).
Questions never have a modified subject, reflexives never an antecedent with a modifier, ``ever`` and ``any``
never stand after a relative clause, and a wh-gap never lies in a clause whose subject is modified or two
clauses deep: these are the structures that :mod:`hgrnx.data.english.pairs` asks about.
"""

from __future__ import annotations

from typing import NamedTuple

from hgrnx.data.english.clauses import (
    adverbial,
    be,
    clause,
    finite,
    negated,
    object_words,
    predicate,
    simple_tense,
    subject,
)
from hgrnx.data.english.lexicon import (
    DO,
    FACTIVE_POOL,
    FREQUENCIES,
    HAVE,
    INTRANSITIVE_FOR,
    MANNERS,
    NOUN_POOLS,
    PEOPLE,
    PL,
    REFLEXIVE_FOR,
    SG,
    STATIVE,
    THAT_POOL,
    THINGS,
    TRANSITIVE_FOR,
    WAS,
    WH_POOL,
    Noun,
    Verb,
    held_out,
)
from hgrnx.data.english.phrases import (
    Phrase,
    Rng,
    any_number,
    fits,
    named_or_gendered,
    near_phrase,
    negative_phrase,
    person,
    place_phrase,
    plain,
    pronoun_phrase,
    thing_or_animal,
)


class Said(NamedTuple):
    """One line of text and, when a pronoun may take it up, the subject it was about."""

    text: str
    about: Phrase | None = None


def sentence(words: str, end: str = ".") -> str:
    """First letter in capitals, punctuation at the end."""
    return words[0].upper() + words[1:] + end


def _transitive(rng: Rng, who: Phrase) -> Verb:
    return TRANSITIVE_FOR["p"].pick(rng, lambda verb: fits(who, verb))


def _referent(who: Phrase) -> Phrase | None:
    return who if len(who.heads) == 1 and not who.negative else None


def statement(rng: Rng) -> Said:
    who = subject(rng)
    return Said(sentence(f"{who.text} {predicate(rng, who)}"), _referent(who))


def about_again(rng: Rng, about: Phrase) -> Said:
    """A sentence that takes up the last subject with a pronoun."""
    if not about.pronoun:
        return statement(rng)
    # An animal's or a thing's verbs stay those that its noun may have.
    heads = about.heads if about.letter in "at" else pronoun_phrase(about.pronoun, about.gender).heads
    who = Phrase(about.pronoun, heads, about.number)
    return Said(sentence(f"{who.text} {predicate(rng, who)}"), about)


def conversation_statement(rng: Rng) -> Said:
    """About the speaker, the hearer, or the two of them."""
    who = pronoun_phrase(rng.choice(("I", "you", "we")))
    return Said(sentence(f"{who.text} {predicate(rng, who)}"))


def that_clause(rng: Rng) -> Said:
    """Anna thinks that the dogs are hungry; at times two deep, but never with a question word inside."""
    who = person(rng)
    verb = THAT_POOL.pick(rng) if rng.random() < 0.5 else FACTIVE_POOL.pick(rng, lambda verb: fits(who, verb))
    words = f"{who.text} {finite(rng, verb, who)} that"
    if rng.random() < 0.25:
        inner = person(rng)
        verb = THAT_POOL.pick(rng)
        return Said(sentence(f"{words} {inner.text} {simple_tense(rng, verb, inner.number)} that {_embedded(rng)}"))
    return Said(sentence(f"{words} {_embedded(rng)}"))


def _embedded(rng: Rng) -> str:
    if rng.random() < 0.4:
        return clause(rng)
    who = subject(rng, "p")
    verb = _transitive(rng, who)
    return f"{who.text} {simple_tense(rng, verb, who.number)} {object_words(rng, verb, who)}"


def wh_clause(rng: Rng) -> Said:
    """Anna knows what the boy bought."""
    outer, inner = person(rng), person(rng)
    verb = WH_POOL.pick(rng) if rng.random() < 0.3 else FACTIVE_POOL.pick(rng, lambda verb: fits(outer, verb))
    matrix = finite(rng, verb, outer)
    verb = _transitive(rng, inner)
    tensed = simple_tense(rng, verb, inner.number)
    return Said(sentence(f"{outer.text} {matrix} {wh_word(rng, verb)} {inner.text} {tensed}"))


def wh_word(rng: Rng, verb: Verb) -> str:
    """A question word for the verb's object: who for people, what for the rest."""
    return "who" if rng.choice(verb.objects) == "p" else "what"


def reflexive(rng: Rng) -> Said:
    """The boys washed themselves: the antecedent is an unmodified subject."""
    who = named_or_gendered(rng) if rng.random() < 0.9 else plain(rng, "a")
    if held_out("anaphor", who.heads[0].lemma):
        return statement(rng)
    verb = REFLEXIVE_FOR[who.letter].pick(rng, lambda verb: fits(who, verb))
    ending = " " + MANNERS.pick(rng) if rng.random() < 0.2 else ""
    return Said(sentence(f"{who.text} {finite(rng, verb, who)} {who.reflexive}{ending}"), who)


def bound_possessive(rng: Rng) -> Said:
    """The boy near the girls washed his car: across a modifier, the possessive is the subject's."""
    who = subject(rng, "p")
    verb = TRANSITIVE_FOR["p"].pick(rng, lambda verb: "t" in verb.objects and fits(who, verb))
    if not who.possessive:
        return statement(rng)
    owned = (THINGS if rng.random() < 0.8 or "p" not in verb.objects else PEOPLE).pick(
        rng, lambda noun: noun not in who.heads
    )
    return Said(
        sentence(
            f"{who.text} {finite(rng, verb, who)} {who.possessive} {owned.forms[any_number(rng)]}",
        ),
        _referent(who),
    )


def passive(rng: Rng) -> Said:
    """The cup was broken by the boy."""
    what = thing_or_animal(rng)
    letter = what.letter
    verb = TRANSITIVE_FOR["p"].pick(rng, lambda verb: letter in verb.objects and verb.lemma not in STATIVE)
    agent = f" by {person(rng).text}" if rng.random() < 0.5 else adverbial(rng)
    return Said(sentence(f"{what.text} {WAS[what.number]} {verb.participle}{agent}"))


def existential(rng: Rng) -> Said:
    """There are two cups near the box."""
    what, number = plain(rng, "tapf", names=False).heads[0], any_number(rng)
    words = "a" if number == SG else rng.choice(("two", "many", "three", "some"))
    if held_out("count", what.lemma):
        words = "no"
    elif number == SG and what.forms[SG][0] in "aeiou":
        words = "an"
    where = place_phrase(rng) if rng.random() < 0.6 else near_phrase(rng, Phrase("", (what,), number))
    return Said(sentence(f"there {be(rng, number)} {words} {what.forms[number]} {where}"))


def two_clauses(rng: Rng) -> Said:
    """Clauses joined by and, but, because, when."""
    joint = rng.choice((", and", ", but", " because", " when"))
    return Said(sentence(f"{clause(rng, modified=False)}{joint} {clause(rng, modified=False)}"))


_NOBODY = Phrase("nobody", (Noun(("nobody", "nobody"), "pronoun"),), SG)


def negative_polarity(rng: Rng) -> Said:
    """No boy has ever seen the lion. Anna did not buy any apples. Nobody bought any apples."""
    draw = rng.random()
    if draw < 0.5:
        who = _negative_subject(rng)
        return Said(sentence(f"{who.text} {HAVE[who.number]} ever {_perfect_rest(rng, who)}"))
    who = person(rng) if draw < 0.8 else _negative_subject(rng)
    verb = _transitive(rng, who)
    if held_out("any", verb.lemma):
        return statement(rng)
    if draw < 0.8:
        words = rng.choice((f"did not {verb.lemma}", f"never {verb.past}", f"{DO[who.number]} not {verb.lemma}"))
    else:
        words = verb.past
    return Said(sentence(f"{who.text} {words} any {_plural_object(rng, verb)}"))


def _negative_subject(rng: Rng) -> Phrase:
    """nobody / only Anna / no boys"""
    draw = rng.random()
    if draw < 0.2:
        return _NOBODY
    if draw < 0.3:
        who = person(rng)
        return Phrase(f"only {who.text}", who.heads, who.number)
    return negative_phrase(rng, "p")


def without_polarity(rng: Rng) -> Said:
    """The unlicensed twin, without ever or any: Every boy has often seen the lion. Anna often bought apples."""
    if rng.random() < 0.5:
        who = person(rng)
        return Said(sentence(f"{who.text} {HAVE[who.number]} {rng.choice(_PERFECT_ADVERBS)} {_perfect_rest(rng, who)}"))
    who = person(rng)
    verb = _transitive(rng, who)
    quantity = rng.choice(("my", "his", "the", "her"))
    return Said(sentence(f"{who.text} {FREQUENCIES.pick(rng)} {verb.past} {quantity} {_plural_object(rng, verb)}"))


_PERFECT_ADVERBS = ("already", "often", "just", "never", "sometimes")


def _plural_object(rng: Rng, verb: Verb) -> str:
    return NOUN_POOLS[rng.choice(verb.objects)].pick(rng).forms[PL]


def _perfect_rest(rng: Rng, who: Phrase) -> str:
    verb = TRANSITIVE_FOR["p"].pick(rng, lambda verb: fits(who, verb) and not held_out("auxiliary have", verb.lemma))
    return f"{verb.participle} {object_words(rng, verb, who)}"


def either_too(rng: Rng) -> Said:
    """Anna does not like the cats either. Anna likes the cats too. The subject is unmodified."""
    who = negative_phrase(rng, "p") if rng.random() < 0.1 else person(rng)
    if rng.random() < 0.4:
        verb = INTRANSITIVE_FOR["p"].pick(rng, lambda verb: fits(who, verb))
        rest = ""
    else:
        verb = _transitive(rng, who)
        rest = " " + object_words(rng, verb, who)
    if rng.random() < 0.5 and not who.negative:
        words = rng.choice((negated(rng, verb, who.number), f"never {simple_tense(rng, verb, who.number)}"))
    else:
        words = simple_tense(rng, verb, who.number)
    last = "either" if who.negative or " not " in f" {words}" or words.startswith("never ") else "too"
    return Said(sentence(f"{who.text} {words}{rest} {last}"), _referent(who))
