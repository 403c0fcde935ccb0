"""Minimal pairs about the demo language, as dicts in BLiMP's form, from structures and words the text never has.

Each phenomenon draws *blocks* of pairs that cross the factors which could give the answer away: every singular
has its plural, every verb form its opposite, every attractor is as often of the head's number (or gender) as not.
So no single word, and no rule that looks at the nearest noun, does better than chance over a block.
The table of phenomena is in :mod:`hgrnx.data.grammar`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hgrnx.data import lexicon as lex
from hgrnx.data.lexicon import PL, SG, Noun, Pool, Verb, held_out
from hgrnx.data.phrases import Phrase, Rng, adjective, article, relative_pronoun
from hgrnx.data.sentences import sentence

NUMBERS = (SG, PL)
_FOUR = tuple((head, attractor) for head in NUMBERS for attractor in NUMBERS)


class Pair(NamedTuple):
    """A good and a bad sentence; ``words`` is the held-out combination, empty where the structure is held out."""

    good: str
    bad: str
    words: tuple[str, ...] = ()


class Phenomenon(NamedTuple):
    block: Callable[[Rng], list[Pair]]
    term: str
    field: str
    held_out: str


def minimal_pairs(seed: int, per_phenomenon: int) -> dict[str, list[dict[str, Any]]]:
    """Draw ``per_phenomenon`` different pairs of each phenomenon, by its UID.

    The dicts are those of BLiMP's JSONL files (sentence_good, sentence_bad, field, linguistics_term, UID,
    pair_id) with two more keys: ``held_out``, "structure" or "lexical", and ``held_out_words``, the combination
    of lemmas that the text never has (empty for structures).
    """
    return {
        uid: [
            {
                "sentence_good": pair.good,
                "sentence_bad": pair.bad,
                "field": phenomenon.field,
                "linguistics_term": phenomenon.term,
                "UID": uid,
                "pair_id": str(number),
                "held_out": phenomenon.held_out,
                "held_out_words": list(pair.words),
            }
            for number, pair in zip(range(per_phenomenon), _different(uid, phenomenon, seed), strict=False)
        ]
        for uid, phenomenon in PHENOMENA.items()
    }


def _different(uid: str, phenomenon: Phenomenon, seed: int) -> Iterator[Pair]:
    """Pairs without end, whole blocks at a time, no good sentence twice."""
    rng = random.Random(f"hgrnx demo pairs {seed} {uid}")
    seen: set[str] = set()
    while True:
        block = phenomenon.block(rng)
        if not seen.isdisjoint(pair.good for pair in block):
            continue
        seen.update(pair.good for pair in block)
        yield from block


def _pick(rng: Rng, pool: Pool[Noun], *avoid: Noun) -> Noun:
    return pool.pick(rng, lambda noun: noun not in avoid)


def _combined(rng: Rng, nouns: Pool[Noun], verbs: Pool[Verb]) -> tuple[Noun, Verb]:
    """A noun and a verb that the text never combines."""
    while True:
        noun = nouns.pick(rng)
        if any(held_out(noun.lemma, verb.lemma) for verb in verbs.items):
            return noun, verbs.pick(rng, lambda verb: held_out(noun.lemma, verb.lemma))


def _tail(rng: Rng) -> str:
    draw = rng.random()
    if draw < 0.4:
        return ""
    return f" in the {_pick(rng, lex.PLACES).lemma}" if draw < 0.7 else f" {lex.MANNERS.pick(rng)}"


def _near(rng: Rng) -> str:
    return f"{lex.NEAR_PREPOSITIONS.pick(rng)} the"


def _tensed(rng: Rng, verb: Verb) -> tuple[str, str]:
    """Singular and plural form, both past or both present."""
    return (verb.past, verb.past) if rng.random() < 0.4 else (verb.third, verb.lemma)


def _transitive(rng: Rng, letter: str) -> Verb:
    return lex.TRANSITIVE_FOR["p"].pick(rng, lambda verb: letter in verb.objects)


# --- subject-verb agreement -------------------------------------------------------------------------------


def _agreement(head: Noun, middle: Callable[[int, int], str], verb: tuple[str, str], tail: str) -> list[Pair]:
    """Cross the numbers of head and attractor; ``middle`` gives the words between head and verb."""
    pairs = []
    for number, other in _FOUR:
        start = f"the {head.forms[number]} {middle(number, other)}"
        good, bad = (sentence(f"{start} {verb[form]}{tail}") for form in (number, 1 - number))
        pairs.append(Pair(good, bad))
    return pairs


def _any_verb(rng: Rng, head: Noun) -> tuple[tuple[str, str], str]:
    """An agreeing verb form (present, be, have) and what follows it."""
    letter = lex.KIND_LETTERS[head.kind]
    draw = rng.random()
    verb = lex.INTRANSITIVE_FOR[letter].pick(rng)
    if draw < 0.5:
        return (verb.third, verb.lemma), _tail(rng)
    if draw < 0.75:
        return rng.choice((("is", "are"), ("was", "were"))), f" {adjective(rng, head)}"
    return ("is", "are"), f" {verb.ing}{_tail(rng)}"


def _agreement_head(rng: Rng) -> Noun:
    return _pick(rng, rng.choice((lex.PEOPLE, lex.PEOPLE, lex.ANIMALS, lex.THINGS)))


def _attractor(rng: Rng, *avoid: Noun) -> Noun:
    return _pick(rng, rng.choice((lex.PEOPLE, lex.ANIMALS, lex.THINGS)), *avoid)


def agreement_simple(rng: Rng) -> list[Pair]:
    kind = rng.choice("pa")
    noun, verb = _combined(rng, lex.NOUN_POOLS[kind], lex.INTRANSITIVE_FOR[kind])
    tail, determiner = _tail(rng), rng.choice(("the", "my", "your"))
    forms = [sentence(f"{determiner} {noun.forms[n]} {verb.present(v)}{tail}") for n in NUMBERS for v in NUMBERS]
    words = (noun.lemma, verb.lemma)
    return [Pair(forms[0], forms[1], words), Pair(forms[3], forms[2], words)]


def agreement_across_near_phrase(rng: Rng) -> list[Pair]:
    kind = rng.choice("pat")
    noun, verb = _combined(rng, lex.NOUN_POOLS[kind], lex.INTRANSITIVE_FOR[kind])
    near, other = _near(rng), _attractor(rng, noun)
    pairs = _agreement(noun, lambda _, n: f"{near} {other.forms[n]}", (verb.third, verb.lemma), _tail(rng))
    return [pair._replace(words=(noun.lemma, verb.lemma)) for pair in pairs]


def agreement_across_relative(rng: Rng) -> list[Pair]:
    noun, verb = _combined(rng, lex.PEOPLE, lex.INTRANSITIVE_FOR["p"])
    inner, other = _tensed(rng, _transitive(rng, "p")), _pick(rng, lex.PEOPLE, noun)
    pairs = _agreement(
        noun, lambda h, n: f"who {inner[h]} the {other.forms[n]}", (verb.third, verb.lemma), _tail(rng)
    )
    return [pair._replace(words=(noun.lemma, verb.lemma)) for pair in pairs]


def agreement_two_near_phrases(rng: Rng) -> list[Pair]:
    head = _agreement_head(rng)
    first = _attractor(rng, head)
    second = _attractor(rng, head, first)
    middle = f"{_near(rng)} {first.forms[rng.choice(NUMBERS)]} {_near(rng)}"
    return _agreement(head, lambda _, n: f"{middle} {second.forms[n]}", *_any_verb(rng, head))


def agreement_near_phrase_in_relative(rng: Rng) -> list[Pair]:
    head = _pick(rng, lex.PEOPLE)
    verb = _transitive(rng, "a")
    inner, first = _tensed(rng, verb), _pick(rng, lex.ANIMALS)
    second, near, number = _attractor(rng, head, first), _near(rng), rng.choice(NUMBERS)
    return _agreement(
        head,
        lambda h, n: f"who {inner[h]} the {first.forms[number]} {near} {second.forms[n]}",
        *_any_verb(rng, head),
    )


def agreement_object_relative(rng: Rng) -> list[Pair]:
    head = _agreement_head(rng)
    letter = lex.KIND_LETTERS[head.kind]
    inner, other = _tensed(rng, _transitive(rng, letter)), _pick(rng, lex.PEOPLE, head)
    who = "who" if letter == "p" else "that"
    return _agreement(head, lambda _, n: f"{who} the {other.forms[n]} {inner[n]}", *_any_verb(rng, head))


# --- anaphors ---------------------------------------------------------------------------------------------


def _himself(gender: str, number: int) -> str:
    return "themselves" if number == PL else lex.REFLEXIVE_PRONOUN[gender]


def _gendered(rng: Rng, gender: str, *avoid: Noun, unseen: str = "") -> Noun:
    """A person noun of this gender; with ``unseen``, one that the text holds out of that construction."""
    return lex.GENDERED.pick(
        rng,
        lambda noun: (
            noun.gender == gender and noun not in avoid and (not unseen or held_out(unseen, noun.lemma))
        ),
    )


def anaphor_gender(rng: Rng) -> list[Pair]:
    verb, tail = lex.REFLEXIVE_POOL.pick(rng).past, _tail(rng)
    pairs = []
    named = rng.random() < 0.5
    for gender, wrong in ("mf", "fm"):
        if named:
            noun = lex.NAMES.pick(rng, lambda n, g=gender: n.gender == g and held_out("anaphor", n.lemma))
            start = noun.lemma
        else:
            noun = _gendered(rng, gender, unseen="anaphor")
            start = f"the {noun.lemma}"
        good, bad = (sentence(f"{start} {verb} {_himself(g, SG)}{tail}") for g in (gender, wrong))
        pairs.append(Pair(good, bad, ("anaphor", noun.lemma)))
    return pairs


def anaphor_number(rng: Rng) -> list[Pair]:
    gender = rng.choice("mf")
    noun, verb, tail = _gendered(rng, gender, unseen="anaphor"), lex.REFLEXIVE_POOL.pick(rng).past, _tail(rng)
    pairs = []
    for number in NUMBERS:
        start = f"the {noun.forms[number]} {verb}"
        good, bad = (sentence(f"{start} {_himself(gender, n)}{tail}") for n in (number, 1 - number))
        pairs.append(Pair(good, bad, ("anaphor", noun.lemma)))
    return pairs


def _crossed_people(rng: Rng) -> list[tuple[tuple[str, str, int], tuple[str, str, int], tuple[str, int]]]:
    """Head and attractor, crossed by gender or by number: (word, gender, number) of each, and the wrong features."""
    if rng.random() < 0.5:
        heads = {gender: _gendered(rng, gender) for gender in "mf"}
        others = {gender: _gendered(rng, gender, heads[gender]) for gender in "mf"}
        return [
            ((heads[h].lemma, h, SG), (others[o].lemma, o, SG), ("f" if h == "m" else "m", SG))
            for h in "mf"
            for o in "mf"
        ]
    gender = rng.choice("mf")
    head = _gendered(rng, gender)
    other = _gendered(rng, gender, head)
    return [((head.forms[h], gender, h), (other.forms[o], gender, o), (gender, 1 - h)) for h, o in _FOUR]


def anaphor_across_near_phrase(rng: Rng) -> list[Pair]:
    near, verb = _near(rng), lex.REFLEXIVE_POOL.pick(rng).past
    pairs = []
    for head, other, wrong in _crossed_people(rng):
        start = f"the {head[0]} {near} {other[0]} {verb}"
        pairs.append(Pair(*(sentence(f"{start} {_himself(*features)}") for features in (head[1:], wrong))))
    return pairs


def anaphor_across_relative(rng: Rng) -> list[Pair]:
    inner, verb = _transitive(rng, "p").past, lex.REFLEXIVE_POOL.pick(rng).past
    pairs = []
    for head, other, wrong in _crossed_people(rng):
        start = f"the {head[0]} who {inner} the {other[0]} {verb}"
        pairs.append(Pair(*(sentence(f"{start} {_himself(*features)}") for features in (head[1:], wrong))))
    return pairs


# --- determiners ------------------------------------------------------------------------------------------

_GROUP_WORDS = {"near": (("this", "these"),), "far": (("that", "those"),), "count": (("a", "many"), ("a", "two"))}


def determiner_noun(rng: Rng) -> list[Pair]:
    group = rng.choice(tuple(_GROUP_WORDS))
    noun = lex.NOUN_POOLS[rng.choice("patf")].pick(rng, lambda noun: held_out(group, noun.lemma))
    return _determiner_pairs(rng, group, noun, "", (group, noun.lemma))


def determiner_noun_two_adjectives(rng: Rng) -> list[Pair]:
    group = rng.choice(tuple(_GROUP_WORDS))
    noun = lex.NOUN_POOLS[rng.choice("at")].pick(rng, lambda noun: not held_out(group, noun.lemma))
    return _determiner_pairs(rng, group, noun, f"{lex.SIZES.pick(rng)} {lex.COLORS.pick(rng)} ", ())


def _determiner_pairs(rng: Rng, group: str, noun: Noun, adjectives: str, words: tuple[str, ...]) -> list[Pair]:
    determiners = rng.choice(_GROUP_WORDS[group])
    verb = _transitive(rng, lex.KIND_LETTERS[noun.kind]).past
    start = f"{_pick(rng, lex.NAMES, noun).lemma} {verb}"
    pairs = []
    for number in NUMBERS:
        determiner = determiners[number]
        if determiner == "a":
            determiner = article(adjectives or noun.lemma)
        good, bad = (sentence(f"{start} {determiner} {adjectives}{noun.forms[n]}") for n in (number, 1 - number))
        pairs.append(Pair(good, bad, words))
    return pairs


# --- verb forms -------------------------------------------------------------------------------------------


def irregular_participle(rng: Rng) -> list[Pair]:
    verb = _IRREGULAR.pick(rng)
    noun = lex.PEOPLE.pick(rng, lambda noun: held_out(noun.lemma, verb.lemma))
    thing = _pick(rng, lex.NOUN_POOLS[rng.choice(verb.objects)], noun)
    number = rng.choice(NUMBERS)
    start, end = f"the {noun.forms[number]}", f"the {thing.forms[rng.choice(NUMBERS)]}"
    has = lex.HAVE[number]
    return [
        Pair(
            sentence(f"{start} {has} {verb.participle} {end}"),
            sentence(f"{start} {has} {verb.past} {end}"),
            ("auxiliary have", verb.lemma),
        ),
        Pair(
            sentence(f"{start} {verb.past} {end}"),
            sentence(f"{start} {verb.participle} {end}"),
            (noun.lemma, verb.lemma),
        ),
    ]


_IRREGULAR = Pool(
    [
        verb
        for verb in lex.TRANSITIVE_FOR["p"].items
        if verb.past != verb.participle and held_out("auxiliary have", verb.lemma)
    ]
)


def _question_forms(rng: Rng, subject: Callable[[int], str], verb: Verb, words: tuple[str, ...]) -> list[Pair]:
    tail = _tail(rng)
    pairs = []
    support = rng.choice((lex.DO, ("did", "did"), ("can", "can"), ("will", "will")))
    for number in NUMBERS:
        for auxiliary, right, wrong in (
            (support[number], verb.lemma, verb.ing),
            (lex.BE[number], verb.ing, verb.lemma),
        ):
            start = f"{auxiliary} {subject(number)}"
            pairs.append(Pair(*(sentence(f"{start} {form}{tail}", "?") for form in (right, wrong)), words))
    return pairs


def question_verb_form(rng: Rng) -> list[Pair]:
    noun, verb = _combined(rng, lex.PEOPLE, lex.INTRANSITIVE_FOR["p"])
    return _question_forms(rng, lambda n: f"the {noun.forms[n]}", verb, (noun.lemma, verb.lemma))


def question_verb_form_across_near_phrase(rng: Rng) -> list[Pair]:
    noun, verb = _pick(rng, lex.PEOPLE), lex.INTRANSITIVE_FOR["p"].pick(rng)
    modifier = f"{_near(rng)} {_attractor(rng, noun).forms[rng.choice(NUMBERS)]}"
    return _question_forms(rng, lambda n: f"the {noun.forms[n]} {modifier}", verb, ())


def question_agreement(rng: Rng) -> list[Pair]:
    noun = lex.PEOPLE.pick(rng, lambda noun: held_out("do", noun.lemma))
    verb, tail = lex.INTRANSITIVE_FOR["p"].pick(rng).lemma, _tail(rng)
    start = rng.choice(("", "where ", "when "))
    pairs = []
    for number in NUMBERS:
        rest = f"the {noun.forms[number]} {verb}{'' if start else tail}"
        good, bad = (sentence(f"{start}{lex.DO[n]} {rest}", "?") for n in (number, 1 - number))
        pairs.append(Pair(good, bad, ("do", noun.lemma)))
    return pairs


# --- negative polarity ------------------------------------------------------------------------------------

_UNLICENSED = ("the", "every", "that", "my")


def npi_ever(rng: Rng) -> list[Pair]:
    noun, verb = _combined(rng, lex.PEOPLE, lex.TRANSITIVE_FOR["p"])
    thing = _pick(rng, lex.NOUN_POOLS[rng.choice(verb.objects)], noun).forms[rng.choice(NUMBERS)]
    rest = f"{noun.lemma} has ever {verb.participle} the {thing}"
    return [
        Pair(sentence(f"no {rest}"), sentence(f"{determiner} {rest}"), (noun.lemma, verb.lemma))
        for determiner in (rng.choice(_UNLICENSED),)
    ]


def npi_any(rng: Rng) -> list[Pair]:
    verb = lex.TRANSITIVE_FOR["p"].pick(rng, lambda verb: held_out("any", verb.lemma))
    noun = _pick(rng, lex.PEOPLE)
    thing = _pick(rng, lex.NOUN_POOLS[rng.choice(verb.objects)], noun).forms[PL]
    rest = f"{noun.lemma} {verb.past} any {thing}"
    return [Pair(sentence(f"no {rest}"), sentence(f"{rng.choice(_UNLICENSED)} {rest}"), ("any", verb.lemma))]


def npi_scope(rng: Rng) -> list[Pair]:
    noun = _pick(rng, lex.PEOPLE)
    other, inner = _pick(rng, lex.PEOPLE, noun).forms[PL], _transitive(rng, "p").past
    verb = lex.TRANSITIVE_FOR["p"].pick(rng)
    thing = _pick(rng, lex.NOUN_POOLS[rng.choice(verb.objects)], noun).forms[rng.choice(NUMBERS)]
    pairs = []
    for number in NUMBERS:
        rest = f"{lex.HAVE[number]} ever {verb.participle} the {thing}"
        good, bad = (
            sentence(f"{first} {noun.forms[number]} who {inner} {second} {other} {rest}")
            for first, second in (("no", "the"), ("the", "no"))
        )
        pairs.append(Pair(good, bad))
    return pairs


# --- filler and gap ---------------------------------------------------------------------------------------


def _gap_pairs(rng: Rng, clause: Callable[[str], str], verb: Verb, words: tuple[str, ...] = ()) -> list[Pair]:
    """With a gap only the question word is right, with an object only that."""
    outer = lex.NAMES.pick(rng).lemma
    matrix = lex.FACTIVE_POOL.pick(rng)
    start = f"{outer} {rng.choice((matrix.past, matrix.third))}"
    letter = rng.choice(verb.objects)
    word = "who" if letter == "p" else "what"
    thing = f" the {_pick(rng, lex.NOUN_POOLS[letter]).forms[rng.choice(NUMBERS)]}"
    return [
        Pair(*(sentence(f"{start} {filler} {clause(verb.past)}{end}") for filler in fillers), words)
        for end, fillers in (("", (word, "that")), (thing, ("that", word)))
    ]


def wh_gap(rng: Rng) -> list[Pair]:
    noun, verb = _combined(rng, lex.PEOPLE, lex.STRICT_POOL)
    number = rng.choice(NUMBERS)
    return _gap_pairs(rng, lambda v: f"the {noun.forms[number]} {v}", verb, (noun.lemma, verb.lemma))


def wh_gap_across_near_phrase(rng: Rng) -> list[Pair]:
    noun = _pick(rng, lex.PEOPLE)
    modifier = f"{_near(rng)} {_attractor(rng, noun).forms[rng.choice(NUMBERS)]}"
    number = rng.choice(NUMBERS)
    return _gap_pairs(rng, lambda v: f"the {noun.forms[number]} {modifier} {v}", lex.STRICT_POOL.pick(rng))


def wh_gap_two_clauses(rng: Rng) -> list[Pair]:
    noun = _pick(rng, lex.PEOPLE)
    inner, number = _pick(rng, lex.PEOPLE, noun), rng.choice(NUMBERS)
    start = f"the {noun.forms[number]} {lex.THAT_POOL.pick(rng).past} that the {inner.forms[rng.choice(NUMBERS)]}"
    return _gap_pairs(rng, lambda v: f"{start} {v}", lex.STRICT_POOL.pick(rng))


# --- questions and their answers --------------------------------------------------------------------------


def answer_who_what(rng: Rng) -> list[Pair]:
    name, verb, number = lex.NAMES.pick(rng), lex.SEEING_POOL.pick(rng), rng.choice(NUMBERS)
    who, what = (pool.pick(rng, lambda noun: held_out("answer", noun.lemma)) for pool in (lex.PEOPLE, lex.THINGS))
    pairs = []
    for word, right, wrong in (("who", who, what), ("what", what, who)):
        question = sentence(f"{word} did {name.lemma} {verb.lemma}", "?")
        start = f"{lex.SUBJECT_PRONOUN[name.gender]} {verb.past} the"
        answers = (sentence(f"{start} {noun.forms[number]}") for noun in (right, wrong))
        pairs.append(Pair(*(f"{question} {answer}" for answer in answers), ("answer", right.lemma)))
    return pairs


def answer_where_when(rng: Rng) -> list[Pair]:
    name, verb = lex.NAMES.pick(rng), lex.INTRANSITIVE_FOR["p"].pick(rng)
    places = [place.lemma for place in lex.PLACES.items if held_out("answer", verb.lemma, place.lemma)]
    times = [time for time in lex.TIMES.items if held_out("answer", verb.lemma, time)]
    if not places or not times:
        return answer_where_when(rng)
    place, time = rng.choice(places), rng.choice(times)
    pairs = []
    for word, right, wrong in (("where", place, time), ("when", time, place)):
        question = sentence(f"{word} did {name.lemma} {verb.lemma}", "?")
        start = f"{lex.SUBJECT_PRONOUN[name.gender]} {verb.past} in the"
        answers = (sentence(f"{start} {noun}") for noun in (right, wrong))
        pairs.append(Pair(*(f"{question} {answer}" for answer in answers), ("answer", verb.lemma, right)))
    return pairs


def _he(gender: str, number: int) -> str:
    return "they" if number == PL else lex.SUBJECT_PRONOUN[gender]


def _pronoun_answers(
    question: str, verb: Verb, place: str, right: tuple[str, int], wrong: tuple[str, int]
) -> tuple[str, str]:
    answers = (sentence(f"{_he(*features)} {verb.past} in the {place}") for features in (right, wrong))
    good, bad = (f"{sentence(question, '?')} {answer}" for answer in answers)
    return good, bad


def answer_pronoun(rng: Rng) -> list[Pair]:
    verb, place = lex.INTRANSITIVE_FOR["p"].pick(rng), _pick(rng, lex.PLACES).lemma
    pairs = []
    for gender, wrong in ("mf", "fm"):
        name = lex.NAMES.pick(rng, lambda n, g=gender: n.gender == g and held_out("answer pronoun", n.lemma))
        question = f"where did {name.lemma} {verb.lemma}"
        both = _pronoun_answers(question, verb, place, (gender, SG), (wrong, SG))
        pairs.append(Pair(*both, ("answer pronoun", name.lemma)))
    gender = rng.choice("mf")
    noun = _gendered(rng, gender, unseen="answer pronoun")
    for number in NUMBERS:
        question = f"where did the {noun.forms[number]} {verb.lemma}"
        both = _pronoun_answers(question, verb, place, (gender, number), (gender, 1 - number))
        pairs.append(Pair(*both, ("answer pronoun", noun.lemma)))
    return pairs


def answer_pronoun_across_near_phrase(rng: Rng) -> list[Pair]:
    verb, place, near = lex.INTRANSITIVE_FOR["p"].pick(rng), _pick(rng, lex.PLACES).lemma, _near(rng)
    return [
        Pair(*_pronoun_answers(f"where did the {h[0]} {near} {o[0]} {verb.lemma}", verb, place, h[1:], wrong))
        for h, o, wrong in _crossed_people(rng)
    ]


_LEXICAL, _STRUCTURE = "lexical", "structure"


def _phenomena() -> dict[str, Phenomenon]:
    groups: list[tuple[str, str, list[tuple[Callable[[Rng], list[Pair]], str]]]] = [
        (
            "subject_verb_agreement",
            "morphology",
            [
                (agreement_simple, _LEXICAL),
                (agreement_across_near_phrase, _LEXICAL),
                (agreement_across_relative, _LEXICAL),
                (agreement_two_near_phrases, _STRUCTURE),
                (agreement_near_phrase_in_relative, _STRUCTURE),
                (agreement_object_relative, _STRUCTURE),
            ],
        ),
        (
            "anaphor_agreement",
            "morphology",
            [
                (anaphor_gender, _LEXICAL),
                (anaphor_number, _LEXICAL),
                (anaphor_across_near_phrase, _STRUCTURE),
                (anaphor_across_relative, _STRUCTURE),
            ],
        ),
        (
            "determiner_noun_agreement",
            "morphology",
            [(determiner_noun, _LEXICAL), (determiner_noun_two_adjectives, _STRUCTURE)],
        ),
        (
            "verb_forms",
            "morphology",
            [
                (irregular_participle, _LEXICAL),
                (question_verb_form, _LEXICAL),
                (question_agreement, _LEXICAL),
                (question_verb_form_across_near_phrase, _STRUCTURE),
            ],
        ),
        ("npi_licensing", "semantics", [(npi_ever, _LEXICAL), (npi_any, _LEXICAL), (npi_scope, _STRUCTURE)]),
        (
            "filler_gap",
            "syntax",
            [(wh_gap, _LEXICAL), (wh_gap_across_near_phrase, _STRUCTURE), (wh_gap_two_clauses, _STRUCTURE)],
        ),
        (
            "question_answer_congruence",
            "syntax_semantics",
            [
                (answer_who_what, _LEXICAL),
                (answer_where_when, _LEXICAL),
                (answer_pronoun, _LEXICAL),
                (answer_pronoun_across_near_phrase, _STRUCTURE),
            ],
        ),
    ]
    return {
        block.__name__: Phenomenon(block, term, field, kind)
        for term, field, blocks in groups
        for block, kind in blocks
    }


PHENOMENA = _phenomena()
