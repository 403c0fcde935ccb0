"""Noun phrases of the demo language, without modifiers, and the places that stand in prepositional phrases.

Every function draws from the random generator it is given. The combinations that
:func:`~hgrnx.data.english.lexicon.held_out` names are refused wherever words are chosen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hgrnx.data.english.lexicon import (
    ANIMALS,
    COLORS,
    DETERMINER_GROUPS,
    FIRST,
    KIND_LETTERS,
    MOODS,
    NAMES,
    NEAR_PREPOSITIONS,
    NOUN_POOLS,
    PEOPLE,
    PERSON_POSSESSIVE,
    PL,
    PLACES,
    POSSESSIVE,
    REFLEXIVE_PRONOUN,
    SG,
    SIZES,
    STATES,
    SUBJECT_PRONOUN,
    THINGS,
    Noun,
    Pool,
    Verb,
    held_out,
)

Rng = random.Random

_DETERMINERS = Pool(["the", "the", "the", "count", "own", "near", "far", "every"])


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase: its words, the nouns that head it (two when coordinated) and its agreement class."""

    text: str
    heads: tuple[Noun, ...]
    number: int

    @property
    def letter(self) -> str:
        return KIND_LETTERS[self.heads[0].kind]

    @property
    def gender(self) -> str:
        return self.heads[0].gender

    @property
    def negative(self) -> bool:
        return self.text.startswith(("no ", "nobody"))

    @property
    def pronoun(self) -> str:
        """The subject pronoun that stands for it; empty for a singular person of unknown gender."""
        return "they" if self.number == PL else SUBJECT_PRONOUN.get(self.gender, "")

    @property
    def possessive(self) -> str:
        if self.text in PERSON_POSSESSIVE:
            return PERSON_POSSESSIVE[self.text]
        return "their" if self.number == PL else POSSESSIVE.get(self.gender, "")

    @property
    def reflexive(self) -> str:
        return "themselves" if self.number == PL else REFLEXIVE_PRONOUN.get(self.gender, "")


def pronoun_phrase(word: str, gender: str = "") -> Phrase:
    """A personal pronoun as a subject: I, you, we, they, he, she, it."""
    number = FIRST if word == "I" else SG if word in ("he", "she", "it") else PL
    return Phrase(word, (Noun((word, word), "pronoun", gender),), number)


def fits(subject: Phrase, verb: Verb) -> bool:
    """Whether the text may say this verb of this subject."""
    return not any(held_out(noun.lemma, verb.lemma) for noun in subject.heads if noun.kind != "pronoun")


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith("use") else "a"


def adjective(rng: Rng, noun: Noun) -> str:
    """An adjective that suits the kind of noun."""
    if noun.kind == "person":
        return MOODS.pick(rng)
    if noun.kind == "place":
        return SIZES.pick(rng)
    if rng.random() < 0.4:
        return COLORS.pick(rng)
    return (STATES if noun.kind == "thing" and rng.random() < 0.4 else SIZES).pick(rng)


def determined(rng: Rng, noun: Noun, number: int, *, adjective_rate: float = 0.2) -> Phrase:
    """Determiner, at most one adjective, noun."""
    group = _DETERMINERS.pick(rng)
    if held_out(group, noun.lemma):
        group = "the"
    words = [rng.choice(DETERMINER_GROUPS[group][number])]
    if rng.random() < adjective_rate:
        words.append(adjective(rng, noun))
    words.append(noun.forms[number])
    if words[0] == "a":
        words[0] = article(words[1])
    return Phrase(" ".join(words), (noun,), number)


def any_number(rng: Rng) -> int:
    return SG if rng.random() < 0.5 else PL


def plain(rng: Rng, letters: str, *, names: bool = True, avoid: tuple[Noun, ...] = ()) -> Phrase:
    """A name, or determiner (adjective) noun; ``letters`` are the kinds it may be of."""
    letter = rng.choice(letters)
    if letter == "p" and names and rng.random() < 0.3:
        name = NAMES.pick(rng, lambda noun: noun not in avoid)
        return Phrase(name.lemma, (name,), SG)
    noun = NOUN_POOLS[letter].pick(rng, lambda noun: noun not in avoid)
    return determined(rng, noun, any_number(rng))


def near_phrase(rng: Rng, head: Phrase) -> str:
    """A prepositional phrase that modifies ``head``: near the trees."""
    other = plain(rng, "ptta", avoid=head.heads)
    return f"{NEAR_PREPOSITIONS.pick(rng)} {other.text}"


def place_phrase(rng: Rng) -> str:
    place = PLACES.pick(rng)
    return f"in the {place.lemma}" if rng.random() < 0.7 else f"in {determined(rng, place, SG).text}"


def relative_pronoun_for(letter: str) -> str:
    return "who" if letter == "p" else "that"


def negative_phrase(rng: Rng, letters: str) -> Phrase:
    """no boy / no boys"""
    noun, number = NOUN_POOLS[rng.choice(letters)].pick(rng), any_number(rng)
    return Phrase(f"no {noun.forms[number]}", (noun,), number)


def person(rng: Rng) -> Phrase:
    """A person without modifiers."""
    return plain(rng, "p")


def named_or_gendered(rng: Rng, avoid: tuple[Noun, ...] = ()) -> Phrase:
    """A person whose pronoun is known."""
    if rng.random() < 0.4:
        name = NAMES.pick(rng, lambda noun: noun not in avoid)
        return Phrase(name.lemma, (name,), SG)
    noun = PEOPLE.pick(rng, lambda noun: bool(noun.gender) and noun not in avoid)
    return determined(rng, noun, any_number(rng))


def thing_or_animal(rng: Rng) -> Phrase:
    return determined(rng, (THINGS if rng.random() < 0.6 else ANIMALS).pick(rng), any_number(rng))
