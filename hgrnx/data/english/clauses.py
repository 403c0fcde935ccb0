"""Verb phrases, relative clauses and whole clauses of the demo language.

A subject takes at most one modifier, nothing inside a modifier takes one, and no object relative modifies a
subject. So the text has no two stacked prepositional phrases, none inside a relative clause, and no subject that
is the object of its relative clause: the structures that the minimal pairs ask about.
"""

from __future__ import annotations

from hgrnx.data.english.lexicon import (
    BE,
    DO,
    FREQUENCIES,
    HAVE,
    INTRANSITIVE_FOR,
    MANNERS,
    MODALS,
    MOODS,
    NOUN_POOLS,
    PL,
    STATIVE,
    TIMES,
    TRANSITIVE_FOR,
    WAS,
    Verb,
    held_out,
)
from hgrnx.data.english.phrases import (
    Phrase,
    Rng,
    adjective,
    any_number,
    fits,
    near_phrase,
    negative_phrase,
    place_phrase,
    plain,
    relative_pronoun_for,
)

_STYLES = ("present",) * 9 + ("past",) * 4 + ("perfect", "modal", "negated", "frequent") * 2 + ("progressive",) * 2


def subject_relative(rng: Rng, head: Phrase) -> str:
    """who likes the dogs / who are hungry / that slept."""
    word, draw = relative_pronoun_for(head.letter), rng.random()
    if head.letter not in "pa" or draw < 0.25:
        return f"{word} {(BE if rng.random() < 0.7 else WAS)[head.number]} {adjective(rng, head.heads[0])}"
    if draw < 0.4:
        verb = INTRANSITIVE_FOR[head.letter].pick(rng, lambda verb: fits(head, verb))
        return f"{word} {simple_tense(rng, verb, head.number)}"
    verb = TRANSITIVE_FOR[head.letter].pick(rng, lambda verb: fits(head, verb))
    tensed = negated(rng, verb, head.number) if rng.random() < 0.15 else simple_tense(rng, verb, head.number)
    return f"{word} {tensed} {object_words(rng, verb, head)}"


def object_relative(rng: Rng, head: Phrase) -> str:
    """that the girls like, with its gap at the end."""
    letter = head.letter
    subject = plain(rng, "p", avoid=head.heads)
    verb = TRANSITIVE_FOR["p"].pick(rng, lambda verb: letter in verb.objects and fits(subject, verb))
    return f"{relative_pronoun_for(head.letter)} {subject.text} {simple_tense(rng, verb, subject.number)}"


def with_modifier(rng: Rng, phrase: Phrase, *, near: float, relative: float, gap: float = 0.0) -> Phrase:
    """Add at most one modifier, each kind with the chance given. Names take none."""
    if phrase.heads[0].kind in ("name", "pronoun") or len(phrase.heads) > 1:
        return phrase
    draw = rng.random()
    if draw < near:
        modifier = near_phrase(rng, phrase)
    elif draw < near + relative:
        modifier = subject_relative(rng, phrase)
    elif draw < near + relative + gap:
        modifier = object_relative(rng, phrase)
    else:
        return phrase
    return Phrase(f"{phrase.text} {modifier}", phrase.heads, phrase.number)


def subject(rng: Rng, letters: str = "ppppat", *, modified: bool = True, negative: float = 0.06) -> Phrase:
    """A subject: a name, two coordinated, or a noun phrase with at most one modifier, at times negative."""
    first = negative_phrase(rng, letters) if rng.random() < negative else plain(rng, letters)
    if first.letter == "p" and not first.negative and rng.random() < 0.06:
        second = plain(rng, "p", avoid=first.heads)
        return Phrase(f"{first.text} and {second.text}", first.heads + second.heads, PL)
    return with_modifier(rng, first, near=0.27, relative=0.23) if modified else first


def object_words(rng: Rng, verb: Verb, owner: Phrase, *, rich: bool = False) -> str:
    """The object of ``verb``; sometimes with the possessive that its subject, the ``owner``, binds."""
    letters = verb.objects
    if owner.possessive and rng.random() < 0.2:
        noun = NOUN_POOLS[rng.choice(letters)].pick(rng, lambda noun: noun not in owner.heads)
        return f"{owner.possessive} {noun.forms[any_number(rng)]}"
    phrase = plain(rng, letters, avoid=owner.heads)
    return (with_modifier(rng, phrase, near=0.06, relative=0.12, gap=0.12) if rich else phrase).text


def simple_tense(rng: Rng, verb: Verb, number: int) -> str:
    return verb.present(number) if rng.random() < 0.65 else verb.past


def finite(rng: Rng, verb: Verb, who: Phrase) -> str:
    """The verb with its auxiliaries, negation or adverb of frequency. A negative subject negates enough."""
    style, number = rng.choice(_STYLES), who.number
    negation = " not" if rng.random() < 0.15 and not who.negative else ""
    if style == "present":
        return verb.present(number)
    if style == "frequent" and not who.negative:
        return f"{FREQUENCIES.pick(rng)} {simple_tense(rng, verb, number)}"
    if style == "modal":
        return f"{MODALS.pick(rng)}{negation} {verb.lemma}"
    if style == "negated" and not who.negative:
        return negated(rng, verb, number)
    if style == "perfect" and not held_out("auxiliary have", verb.lemma):
        already = "already " if rng.random() < 0.2 and not who.negative else ""
        return f"{HAVE[number]} {already}{verb.participle}"
    if style == "progressive" and verb.lemma not in STATIVE:
        return f"{be(rng, number)}{negation} {verb.ing}"
    return verb.past


def negated(rng: Rng, verb: Verb, number: int) -> str:
    """does not like / did not like"""
    return f"{DO[number] if rng.random() < 0.6 else 'did'} not {verb.lemma}"


def be(rng: Rng, number: int) -> str:
    return (BE if rng.random() < 0.7 else WAS)[number]


def predicate(rng: Rng, subject: Phrase, *, rich: bool = True) -> str:
    """A verb phrase that agrees with its subject."""
    letter, draw = subject.letter, rng.random()
    if draw < 0.18:
        return copula(rng, subject)
    if letter not in "pa" or draw < 0.52:
        verb = INTRANSITIVE_FOR[letter].pick(rng, lambda verb: fits(subject, verb))
        return finite(rng, verb, subject) + adverbial(rng)
    verb = TRANSITIVE_FOR[letter].pick(rng, lambda verb: fits(subject, verb))
    return f"{finite(rng, verb, subject)} {object_words(rng, verb, subject, rich=rich)}"


def copula(rng: Rng, subject: Phrase) -> str:
    """is happy / were in the garden."""
    negation = " not" if rng.random() < 0.1 and not subject.negative else ""
    form = be(rng, subject.number) + negation
    if rng.random() < 0.35:
        return f"{form} {place_phrase(rng)}"
    if subject.heads[0].kind in ("name", "pronoun") or len(subject.heads) > 1:
        return f"{form} {MOODS.pick(rng)}"
    return f"{form} {adjective(rng, subject.heads[0])}"


def adverbial(rng: Rng) -> str:
    """Nothing, a manner, a place or a time, with a space before it."""
    draw = rng.random()
    if draw < 0.35:
        return ""
    if draw < 0.6:
        return " " + MANNERS.pick(rng)
    if draw < 0.88:
        return " " + place_phrase(rng)
    return f" in the {TIMES.pick(rng)}"


def clause(rng: Rng, letters: str = "ppppat", *, modified: bool = True) -> str:
    """Subject and predicate."""
    who = subject(rng, letters, modified=modified)
    return f"{who.text} {predicate(rng, who, rich=modified)}"
