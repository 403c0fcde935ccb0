"""Minimal pairs of verb forms, negative polarity, gaps and answers."""

from __future__ import annotations

from hgrnx.data.english import lexicon as lex
from hgrnx.data.english.lexicon import PL, SG, Noun, Pool, Verb, held_out
from hgrnx.data.english.pair import (
    NUMBERS,
    OTHER_GENDER,
    Pair,
    attractor,
    contrast,
    crossed_people,
    gendered,
    near,
    never_combined,
    number,
    object_of,
    pick,
    tail,
    transitive,
    unseen_name,
)
from hgrnx.data.english.phrases import Rng
from hgrnx.data.english.sentences import sentence


def irregular_participle(rng: Rng) -> list[Pair]:
    people = lex.TRANSITIVE_FOR["p"].items
    irregular = [v for v in people if v.past != v.participle and held_out("auxiliary have", v.lemma)]
    verb = Pool(irregular).pick(rng)
    noun = lex.PEOPLE.pick(rng, lambda noun: held_out(noun.lemma, verb.lemma))
    n, rest = number(rng), f" the {object_of(rng, verb, noun).forms[number(rng)]}"
    start, past, participle = f"the {noun.forms[n]}", verb.past, verb.participle
    return [
        contrast(f"{start} {lex.HAVE[n]}", participle, past, rest, words=("auxiliary have", verb.lemma)),
        contrast(start, past, participle, rest, words=(noun.lemma, verb.lemma)),
    ]


def question_verb_form(rng: Rng) -> list[Pair]:
    noun, verb = never_combined(rng, lex.PEOPLE, lex.INTRANSITIVE_FOR["p"])
    return _question_forms(rng, noun, verb, "", (noun.lemma, verb.lemma))


def question_verb_form_across_near_phrase(rng: Rng) -> list[Pair]:
    noun, verb = pick(rng, lex.PEOPLE), lex.INTRANSITIVE_FOR["p"].pick(rng)
    return _question_forms(rng, noun, verb, f" {near(rng)} {attractor(rng, noun).forms[number(rng)]}", ())


def _question_forms(rng: Rng, noun: Noun, verb: Verb, modifier: str, words: tuple[str, ...]) -> list[Pair]:
    """Cross the auxiliary (one that takes the base form, or be) with the subject's number."""
    support, rest = rng.choice((lex.DO, ("did", "did"), ("can", "can"), ("will", "will"))), tail(rng)
    pairs = []
    for n in NUMBERS:
        subject = f"the {noun.forms[n]}{modifier}"
        for auxiliary, right, wrong in ((support, verb.lemma, verb.ing), (lex.BE, verb.ing, verb.lemma)):
            pairs.append(contrast(f"{auxiliary[n]} {subject}", right, wrong, rest, end="?", words=words))
    return pairs


def question_agreement(rng: Rng) -> list[Pair]:
    noun = lex.PEOPLE.pick(rng, lambda noun: held_out("do", noun.lemma))
    verb, start = lex.INTRANSITIVE_FOR["p"].pick(rng).lemma, rng.choice(("", "where ", "when "))
    rest = "" if start else tail(rng)
    pairs = []
    for n in NUMBERS:
        good, bad = (sentence(f"{start}{lex.DO[m]} the {noun.forms[n]} {verb}{rest}", "?") for m in (n, 1 - n))
        pairs.append(Pair(good, bad, ("do", noun.lemma)))
    return pairs


def npi_ever(rng: Rng) -> list[Pair]:
    noun, verb = never_combined(rng, lex.PEOPLE, lex.TRANSITIVE_FOR["p"])
    thing = object_of(rng, verb, noun).forms[number(rng)]
    return _licensed(rng, noun, f"has ever {verb.participle} the {thing}", (noun.lemma, verb.lemma))


def npi_any(rng: Rng) -> list[Pair]:
    verb = lex.TRANSITIVE_FOR["p"].pick(rng, lambda verb: held_out("any", verb.lemma))
    noun = pick(rng, lex.PEOPLE)
    return _licensed(rng, noun, f"{verb.past} any {object_of(rng, verb, noun).forms[PL]}", ("any", verb.lemma))


def _licensed(rng: Rng, noun: Noun, predicate: str, words: tuple[str, ...]) -> list[Pair]:
    """Two clauses in both orders; only the one with the polarity item may be the negative one."""
    other = f"{pick(rng, lex.PEOPLE, noun).lemma} {lex.INTRANSITIVE_FOR['p'].pick(rng).past}"
    joint = rng.choice((", but", " when", " because"))

    def first(one: str, two: str) -> str:
        return sentence(f"{one} {noun.lemma} {predicate}{joint} {two} {other}")

    def second(one: str, two: str) -> str:
        return sentence(f"{two} {other}{joint} {one} {noun.lemma} {predicate}")

    return [Pair(order("no", "the"), order("the", "no"), words) for order in (first, second)]


def npi_scope(rng: Rng) -> list[Pair]:
    """Cross negation in the relative clause, which does not count, with negation of the sentence."""
    noun, inner, verb = pick(rng, lex.PEOPLE), transitive(rng, "p"), lex.TRANSITIVE_FOR["p"].pick(rng)
    subject = f"the {noun.forms[number(rng)]} who"
    other = f"the {pick(rng, lex.PEOPLE, noun).forms[number(rng)]}"
    thing = f"the {object_of(rng, verb, noun).forms[number(rng)]}"
    return [
        contrast(f"{subject} {inside} {other} {main} {thing}", right, wrong)
        for inside in (inner.past, f"did not {inner.lemma}")
        for main, right, wrong in ((verb.past, "too", "either"), (f"did not {verb.lemma}", "either", "too"))
    ]


def wh_gap(rng: Rng) -> list[Pair]:
    noun, verb = never_combined(rng, lex.PEOPLE, lex.STRICT_POOL)
    return _gap(rng, f"the {noun.forms[number(rng)]}", verb, (noun.lemma, verb.lemma))


def wh_gap_across_near_phrase(rng: Rng) -> list[Pair]:
    noun = pick(rng, lex.PEOPLE)
    modifier = f"{near(rng)} {attractor(rng, noun).forms[number(rng)]}"
    return _gap(rng, f"the {noun.forms[number(rng)]} {modifier}", lex.STRICT_POOL.pick(rng))


def wh_gap_two_clauses(rng: Rng) -> list[Pair]:
    noun = pick(rng, lex.PEOPLE)
    inner = pick(rng, lex.PEOPLE, noun)
    says = f"{lex.THAT_POOL.pick(rng).past} that the {inner.forms[number(rng)]}"
    return _gap(rng, f"the {noun.forms[number(rng)]} {says}", lex.STRICT_POOL.pick(rng))


def _gap(rng: Rng, clause: str, verb: Verb, words: tuple[str, ...] = ()) -> list[Pair]:
    """With a gap only the question word is right; with an object, only that."""
    matrix, letter = lex.FACTIVE_POOL.pick(rng), rng.choice(verb.objects)
    start = f"{lex.NAMES.pick(rng).lemma} {rng.choice((matrix.past, matrix.third))}"
    question = "who" if letter == "p" else "what"
    thing = f" the {pick(rng, lex.NOUN_POOLS[letter]).forms[number(rng)]}"
    rest = f" {clause} {verb.past}"
    return [
        contrast(start, question, "that", rest, words=words),
        contrast(start, "that", question, rest + thing, words=words),
    ]


def answer_who_what(rng: Rng) -> list[Pair]:
    name, verb, n = lex.NAMES.pick(rng), lex.SEEING_POOL.pick(rng), number(rng)
    who, what = (pool.pick(rng, lambda noun: held_out("answer", noun.lemma)) for pool in (lex.PEOPLE, lex.THINGS))
    pairs = []
    for word, right, wrong in (("who", who, what), ("what", what, who)):
        question = sentence(f"{word} did {name.lemma} {verb.lemma}", "?")
        start = f"{question} {lex.SUBJECT_PRONOUN[name.gender].capitalize()} {verb.past} the"
        pairs.append(contrast(start, right.forms[n], wrong.forms[n], words=("answer", right.lemma)))
    return pairs


def answer_where_when(rng: Rng) -> list[Pair]:
    places: list[str] = []
    times: list[str] = []
    while not places or not times:
        verb = lex.INTRANSITIVE_FOR["p"].pick(rng)
        places = [place.lemma for place in lex.PLACES.items if held_out("answer", verb.lemma, place.lemma)]
        times = [time for time in lex.TIMES.items if held_out("answer", verb.lemma, time)]
    name, place, time = lex.NAMES.pick(rng), rng.choice(places), rng.choice(times)
    pairs = []
    for word, right, wrong in (("where", place, time), ("when", time, place)):
        question = sentence(f"{word} did {name.lemma} {verb.lemma}", "?")
        start = f"{question} {lex.SUBJECT_PRONOUN[name.gender].capitalize()} {verb.past} in the"
        pairs.append(contrast(start, right, wrong, words=("answer", verb.lemma, right)))
    return pairs


def answer_pronoun(rng: Rng) -> list[Pair]:
    pairs = []
    answer = _PronounAnswer(rng)
    for gender in "mf":
        name = unseen_name(rng, gender, "answer pronoun")
        wrong = (OTHER_GENDER[gender], SG)
        pairs.append(answer.pair(name.lemma, (gender, SG), wrong, ("answer pronoun", name.lemma)))
    gender = rng.choice("mf")
    noun = gendered(rng, gender, unseen="answer pronoun")
    for n in NUMBERS:
        features, wrong = (gender, n), (gender, 1 - n)
        pairs.append(answer.pair(f"the {noun.forms[n]}", features, wrong, ("answer pronoun", noun.lemma)))
    return pairs


def answer_pronoun_across_near_phrase(rng: Rng) -> list[Pair]:
    preposition, answer = near(rng), _PronounAnswer(rng)
    return [
        answer.pair(f"the {head.word} {preposition} {other.word}", (head.gender, head.number), wrong, ())
        for head, other, wrong in crossed_people(rng)
    ]


class _PronounAnswer:
    """Where did SUBJECT sleep? PRONOUN slept in the garden."""

    def __init__(self, rng: Rng) -> None:
        self._verb = lex.INTRANSITIVE_FOR["p"].pick(rng)
        self._place = pick(rng, lex.PLACES).lemma

    def pair(self, subject: str, right: tuple[str, int], wrong: tuple[str, int], words: tuple[str, ...]) -> Pair:
        question = sentence(f"where did {subject} {self._verb.lemma}", "?")
        rest = f" {self._verb.past} in the {self._place}"
        return contrast(question, self._pronoun(right), self._pronoun(wrong), rest, words=words)

    @staticmethod
    def _pronoun(features: tuple[str, int]) -> str:
        gender, n = features
        return "They" if n == PL else lex.SUBJECT_PRONOUN[gender].capitalize()
