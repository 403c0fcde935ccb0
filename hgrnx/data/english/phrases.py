"""Noun phrases, predicates and clauses of the demo language.

Every function draws from the random generator it is given and returns words; sentence types are put together
in :mod:`hgrnx.data.english.sentences`. What the text must never contain is refused here: combinations that
:func:`~hgrnx.data.english.lexicon.held_out` names, and these structures, because a subject takes at most one modifier
and nothing inside a modifier takes one: two stacked prepositional phrases, a prepositional phrase inside a
relative clause, an object relative on a subject, two adjectives.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hgrnx.data.english.lexicon import (
    ANIMALS,
    BE,
    COLORS,
    DETERMINER_GROUPS,
    DO,
    FIRST,
    FREQUENCIES,
    HAVE,
    INTRANSITIVE_FOR,
    KIND_LETTERS,
    MANNERS,
    MODALS,
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
    STATIVE,
    SUBJECT_PRONOUN,
    THINGS,
    TIMES,
    TRANSITIVE_FOR,
    WAS,
    Noun,
    Pool,
    Verb,
    held_out,
)

Rng = random.Random

_DETERMINERS = Pool(["the", "the", "the", "count", "own", "near", "far", "every"])
_STYLES = ("present",) * 9 + ("past",) * 4 + ("perfect", "modal", "negated", "frequent") * 2 + ("progressive",) * 2


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


def negative_phrase(rng: Rng, letters: str) -> Phrase:
    """no boy / no boys"""
    noun, number = NOUN_POOLS[rng.choice(letters)].pick(rng), any_number(rng)
    return Phrase(f"no {noun.forms[number]}", (noun,), number)


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
