"""What all minimal pairs are made of: the pair itself, its factors, and words from held-out combinations."""

from __future__ import annotations

from typing import NamedTuple

from hgrnx.data.english.lexicon import (
    ANIMALS,
    GENDERED,
    KIND_LETTERS,
    MANNERS,
    NAMES,
    NEAR_PREPOSITIONS,
    NOUN_POOLS,
    PEOPLE,
    PL,
    PLACES,
    SG,
    THINGS,
    TRANSITIVE_FOR,
    Noun,
    Pool,
    Verb,
    held_out,
)
from hgrnx.data.english.phrases import Rng
from hgrnx.data.english.sentences import sentence

NUMBERS = (SG, PL)
CROSSED = tuple((head, attractor) for head in NUMBERS for attractor in NUMBERS)
OTHER_GENDER = {"m": "f", "f": "m"}


class Pair(NamedTuple):
    """A good and a bad sentence; ``words`` is the held-out combination, empty where the structure is held out."""

    good: str
    bad: str
    words: tuple[str, ...] = ()


def contrast(
    start: str, right: str, wrong: str, rest: str = "", *, end: str = ".", words: tuple[str, ...] = ()
) -> Pair:
    """The pair that differs in one place: ``start``, then right or wrong, then ``rest`` (with its leading space)."""
    return Pair(sentence(f"{start} {right}{rest}", end), sentence(f"{start} {wrong}{rest}", end), words)


def pick(rng: Rng, pool: Pool[Noun], *avoid: Noun) -> Noun:
    return pool.pick(rng, lambda noun: noun not in avoid)


def number(rng: Rng) -> int:
    return rng.choice(NUMBERS)


def never_combined(rng: Rng, nouns: Pool[Noun], verbs: Pool[Verb]) -> tuple[Noun, Verb]:
    """A noun and a verb that the text never combines."""
    while True:
        noun = nouns.pick(rng)
        apart = [verb for verb in verbs.items if held_out(noun.lemma, verb.lemma)]
        if apart:
            return noun, Pool(apart).pick(rng)


def gendered(rng: Rng, gender: str, *avoid: Noun, unseen: str = "") -> Noun:
    """A person noun of this gender; with ``unseen``, one that the text holds out of that construction."""

    def accept(noun: Noun) -> bool:
        return noun.gender == gender and noun not in avoid and (not unseen or held_out(unseen, noun.lemma))

    return GENDERED.pick(rng, accept)


def unseen_name(rng: Rng, gender: str, construction: str) -> Noun:
    return NAMES.pick(rng, lambda name: name.gender == gender and held_out(construction, name.lemma))


def transitive(rng: Rng, letter: str) -> Verb:
    """A verb of people whose object may be of this kind."""
    return TRANSITIVE_FOR["p"].pick(rng, lambda verb: letter in verb.objects)


def object_of(rng: Rng, verb: Verb, *avoid: Noun) -> Noun:
    return pick(rng, NOUN_POOLS[rng.choice(verb.objects)], *avoid)


def head_noun(rng: Rng) -> Noun:
    return pick(rng, rng.choice((PEOPLE, PEOPLE, ANIMALS, THINGS)))


def attractor(rng: Rng, *avoid: Noun) -> Noun:
    return pick(rng, rng.choice((PEOPLE, ANIMALS, THINGS)), *avoid)


def letter_of(noun: Noun) -> str:
    return KIND_LETTERS[noun.kind]


def tail(rng: Rng) -> str:
    """Nothing, a place or a manner, with a space before it."""
    draw = rng.random()
    if draw < 0.4:
        return ""
    return f" in the {pick(rng, PLACES).lemma}" if draw < 0.7 else f" {MANNERS.pick(rng)}"


def near(rng: Rng) -> str:
    return f"{NEAR_PREPOSITIONS.pick(rng)} the"


class Person(NamedTuple):
    word: str
    gender: str
    number: int


def crossed_people(rng: Rng) -> list[tuple[Person, Person, tuple[str, int]]]:
    """Head, attractor and the wrong (gender, number) for the head, crossed by gender or by number."""
    if rng.random() < 0.5:
        heads = {gender: gendered(rng, gender) for gender in "mf"}
        others = {gender: gendered(rng, gender, heads[gender]) for gender in "mf"}
        return [
            (Person(heads[h].lemma, h, SG), Person(others[o].lemma, o, SG), (OTHER_GENDER[h], SG))
            for h in "mf"
            for o in "mf"
        ]
    gender = rng.choice("mf")
    head = gendered(rng, gender)
    other = gendered(rng, gender, head)
    return [(Person(head.forms[h], gender, h), Person(other.forms[o], gender, o), (gender, 1 - h)) for h, o in CROSSED]
