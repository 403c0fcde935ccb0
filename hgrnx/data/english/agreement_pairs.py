"""Minimal pairs of agreement: subject and verb, anaphor and antecedent, determiner and noun."""

from __future__ import annotations

from collections.abc import Callable

from hgrnx.data.english import lexicon as lex
from hgrnx.data.english.lexicon import PL, SG, Noun, Verb, held_out
from hgrnx.data.english.pair import (
    CROSSED,
    NUMBERS,
    OTHER_GENDER,
    Pair,
    attractor,
    contrast,
    crossed_people,
    gendered,
    head_noun,
    letter_of,
    near,
    never_combined,
    number,
    pick,
    tail,
    transitive,
    unseen_name,
)
from hgrnx.data.english.phrases import Rng, adjective, article, relative_pronoun_for


def agreement_simple(rng: Rng) -> list[Pair]:
    kind = rng.choice("pa")
    noun, verb = never_combined(rng, lex.NOUN_POOLS[kind], lex.INTRANSITIVE_FOR[kind])
    rest, determiner = tail(rng), rng.choice(("the", "my", "your"))
    return [
        contrast(
            f"{determiner} {noun.forms[n]}",
            verb.present(n),
            verb.present(1 - n),
            rest,
            words=(noun.lemma, verb.lemma),
        )
        for n in NUMBERS
    ]


def agreement_across_near_phrase(rng: Rng) -> list[Pair]:
    kind = rng.choice("pat")
    noun, verb = never_combined(rng, lex.NOUN_POOLS[kind], lex.INTRANSITIVE_FOR[kind])
    preposition, other = near(rng), attractor(rng, noun)
    return _crossed(
        noun,
        lambda _, o: f"{preposition} {other.forms[o]}",
        (verb.third, verb.lemma),
        tail(rng),
        (noun.lemma, verb.lemma),
    )


def agreement_across_relative(rng: Rng) -> list[Pair]:
    noun, verb = never_combined(rng, lex.PEOPLE, lex.INTRANSITIVE_FOR["p"])
    inner, other = _tensed(rng, transitive(rng, "p")), pick(rng, lex.PEOPLE, noun)
    return _crossed(
        noun,
        lambda h, o: f"who {inner[h]} the {other.forms[o]}",
        (verb.third, verb.lemma),
        tail(rng),
        (noun.lemma, verb.lemma),
    )


def agreement_two_near_phrases(rng: Rng) -> list[Pair]:
    head = head_noun(rng)
    first = attractor(rng, head)
    second = attractor(rng, head, first)
    middle = f"{near(rng)} {first.forms[number(rng)]} {near(rng)}"
    return _crossed(head, lambda _, o: f"{middle} {second.forms[o]}", *_any_verb(rng, head))


def agreement_near_phrase_in_relative(rng: Rng) -> list[Pair]:
    head, first = pick(rng, lex.PEOPLE), pick(rng, lex.ANIMALS)
    inner, second = _tensed(rng, transitive(rng, "a")), attractor(rng, head, first)
    middle = f"the {first.forms[number(rng)]} {near(rng)}"
    return _crossed(head, lambda h, o: f"who {inner[h]} {middle} {second.forms[o]}", *_any_verb(rng, head))


def agreement_object_relative(rng: Rng) -> list[Pair]:
    head = head_noun(rng)
    inner, other = _tensed(rng, transitive(rng, letter_of(head))), pick(rng, lex.PEOPLE, head)
    relative = relative_pronoun_for(letter_of(head))
    return _crossed(head, lambda _, o: f"{relative} the {other.forms[o]} {inner[o]}", *_any_verb(rng, head))


def _crossed(
    head: Noun,
    middle: Callable[[int, int], str],
    verb: tuple[str, str],
    rest: str,
    words: tuple[str, ...] = (),
) -> list[Pair]:
    """Cross the numbers of head and attractor; ``middle`` gives the words between head and verb."""
    return [
        contrast(f"the {head.forms[h]} {middle(h, o)}", verb[h], verb[1 - h], rest, words=words) for h, o in CROSSED
    ]


def _tensed(rng: Rng, verb: Verb) -> tuple[str, str]:
    """Singular and plural form, both past or both present."""
    return (verb.past, verb.past) if rng.random() < 0.4 else (verb.third, verb.lemma)


def _any_verb(rng: Rng, head: Noun) -> tuple[tuple[str, str], str]:
    """Singular and plural form of an agreeing verb, and what follows it."""
    draw = rng.random()
    verb = lex.INTRANSITIVE_FOR[letter_of(head)].pick(rng)
    if draw < 0.5:
        return (verb.third, verb.lemma), tail(rng)
    if draw < 0.75:
        return rng.choice((("is", "are"), ("was", "were"))), f" {adjective(rng, head)}"
    return ("is", "are"), f" {verb.ing}{tail(rng)}"


def _reflexive(gender: str, number: int) -> str:
    return "themselves" if number == PL else lex.REFLEXIVE_PRONOUN[gender]


def anaphor_gender(rng: Rng) -> list[Pair]:
    verb, rest, named = lex.REFLEXIVE_FOR["p"].pick(rng).past, tail(rng), rng.random() < 0.5
    pairs = []
    for gender in "mf":
        noun = unseen_name(rng, gender, "anaphor") if named else gendered(rng, gender, unseen="anaphor")
        start = f"{'' if named else 'the '}{noun.lemma} {verb}"
        right, wrong = _reflexive(gender, SG), _reflexive(OTHER_GENDER[gender], SG)
        pairs.append(contrast(start, right, wrong, rest, words=("anaphor", noun.lemma)))
    return pairs


def anaphor_number(rng: Rng) -> list[Pair]:
    gender, verb, rest = rng.choice("mf"), lex.REFLEXIVE_FOR["p"].pick(rng).past, tail(rng)
    noun = gendered(rng, gender, unseen="anaphor")
    return [
        contrast(
            f"the {noun.forms[n]} {verb}",
            _reflexive(gender, n),
            _reflexive(gender, 1 - n),
            rest,
            words=("anaphor", noun.lemma),
        )
        for n in NUMBERS
    ]


def anaphor_across_near_phrase(rng: Rng) -> list[Pair]:
    return _anaphor_across(rng, near(rng))


def anaphor_across_relative(rng: Rng) -> list[Pair]:
    return _anaphor_across(rng, f"who {transitive(rng, 'p').past} the")


def _anaphor_across(rng: Rng, middle: str) -> list[Pair]:
    verb = lex.REFLEXIVE_FOR["p"].pick(rng).past
    return [
        contrast(
            f"the {head.word} {middle} {other.word} {verb}",
            _reflexive(head.gender, head.number),
            _reflexive(*wrong),
        )
        for head, other, wrong in crossed_people(rng)
    ]


_DETERMINERS = {"near": (("this", "these"),), "far": (("that", "those"),), "count": (("a", "many"), ("a", "two"))}


def determiner_noun(rng: Rng) -> list[Pair]:
    group = rng.choice(tuple(_DETERMINERS))
    noun = lex.NOUN_POOLS[rng.choice("patf")].pick(rng, lambda noun: held_out(group, noun.lemma))
    return _determined(rng, group, noun, words=(group, noun.lemma))


def determiner_noun_two_adjectives(rng: Rng) -> list[Pair]:
    group = rng.choice(tuple(_DETERMINERS))
    noun = lex.NOUN_POOLS[rng.choice("at")].pick(rng, lambda noun: not held_out(group, noun.lemma))
    return _determined(rng, group, noun, f" {lex.SIZES.pick(rng)} {lex.COLORS.pick(rng)}")


def _determined(rng: Rng, group: str, noun: Noun, adjectives: str = "", words: tuple[str, ...] = ()) -> list[Pair]:
    start = f"{pick(rng, lex.NAMES).lemma} {transitive(rng, letter_of(noun)).past}"
    singular, plural = rng.choice(_DETERMINERS[group])
    if singular == "a":
        singular = article(adjectives.strip() or noun.lemma)
    return [
        contrast(f"{start} {determiner}{adjectives}", noun.forms[n], noun.forms[1 - n], words=words)
        for n, determiner in ((SG, singular), (PL, plural))
    ]
