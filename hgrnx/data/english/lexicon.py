"""The words of the demo language: several hundred lemmas with their forms, classes and frequencies.

Lists are ordered by rank: an earlier word is more frequent, by a flattened Zipf-Mandelbrot law (:class:`Pool`).
Genders alternate in the lists, so that neither is the more frequent one. No noun form is also a verb form.
:func:`held_out` decides, by a hash, which combinations of words the generated text never contains.
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Generic, TypeVar

SG, PL, FIRST = 0, 1, 2
"""Agreement classes: singular, plural, and the pronoun I."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun, name or pronoun. ``gender`` chooses its singular pronoun: m, f, n (it), or "" (avoid one)."""

    forms: tuple[str, str]
    kind: str
    gender: str = ""

    @property
    def lemma(self) -> str:
        return self.forms[SG]

    @property
    def animate(self) -> bool:
        return self.kind in ("person", "name", "animal", "pronoun")


@dataclass(frozen=True, slots=True)
class Verb:
    """``subjects`` and ``objects`` are letters of noun kinds: p(erson), a(nimal), t(hing), f(ood)."""

    lemma: str
    third: str
    past: str
    participle: str
    ing: str
    subjects: str
    objects: str

    def present(self, number: int) -> str:
        return self.third if number == SG else self.lemma


class Pool(Generic[_T]):
    """Items in order of rank, drawn with weight 1 / (rank + 6) ** 0.9 (ranks from 0)."""

    def __init__(self, items: Sequence[_T]) -> None:
        self.items = tuple(items)
        self._cumulative = list(accumulate((rank + 6) ** -0.9 for rank in range(len(self.items))))

    def pick(self, rng: random.Random, accept: Callable[[_T], bool] | None = None) -> _T:
        """Draw one item; with ``accept``, one of those it is true of. Raises LookupError when there is none."""
        for _ in range(64):
            item = self.items[bisect(self._cumulative, rng.random() * self._cumulative[-1])]
            if accept is None or accept(item):
                return item
        accepted = [item for item in self.items if accept is None or accept(item)]
        if not accepted:
            raise LookupError("no word of the pool is accepted")
        return rng.choice(accepted)


@cache
def held_out(*words: str) -> bool:
    """Whether this combination is kept out of the generated text (about one in five): fixed, for every seed."""
    return zlib.crc32("|".join(words).encode()) % 5 == 0


_PLURALS = {
    "man": "men", "woman": "women", "child": "children", "mouse": "mice", "goose": "geese", "wife": "wives",
    "wolf": "wolves", "knife": "knives", "leaf": "leaves", "shelf": "shelves", "scarf": "scarves",
    "gentleman": "gentlemen", "potato": "potatoes", "tomato": "tomatoes", "policeman": "policemen",
    "policewoman": "policewomen",
}  # fmt: skip
_DOUBLING = {"hug", "drop", "grab", "clap", "nod", "slip", "trip", "run", "swim", "cut", "spot", "hop", "forget"}


def _plural(noun: str) -> str:
    if noun in _PLURALS:
        return _PLURALS[noun]
    return _with_s(noun)


def _with_s(word: str) -> str:
    if word.endswith(("s", "sh", "ch", "x", "z")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _regular_past(verb: str) -> str:
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + (verb[-1] if verb in _DOUBLING else "") + "ed"


def _ing(verb: str) -> str:
    if verb.endswith("e") and not verb.endswith("ee"):
        return verb[:-1] + "ing"
    return verb + (verb[-1] if verb in _DOUBLING else "") + "ing"


def _verbs(spec: str) -> list[Verb]:
    """Read ``base[ past participle] subjects[>objects]; ...``."""
    verbs = []
    for entry in spec.replace("\n", " ").split(";"):
        if not (words := entry.split()):
            continue
        *forms, frame = words
        subjects, _, objects = frame.partition(">")
        base = forms[0]
        past, participle = forms[1:] if len(forms) == 3 else (_regular_past(base),) * 2
        verbs.append(Verb(base, _with_s(base), past, participle, _ing(base), subjects, objects))
    return verbs


def _words(text: str) -> list[str]:
    return text.split()


def _nouns(words: str, kind: str, gender: str = "") -> list[Noun]:
    """Read nouns; ``word:g`` gives one a gender of its own."""
    nouns = []
    for entry in words.split():
        word, _, own = entry.partition(":")
        nouns.append(Noun((word, word if kind == "name" else _plural(word)), kind, own or gender))
    return nouns


PEOPLE = Pool(
    _nouns(
        """boy:m girl:f child man:m woman:f teacher mother:f father:m friend baby queen:f king:m doctor sister:f
        brother:m farmer princess:f prince:m neighbor uncle:m aunt:f student grandmother:f grandfather:m baker
        son:m daughter:f singer witch:f wizard:m driver husband:m wife:f sailor lady:f gentleman:m nurse waiter:m
        waitress:f painter actress:f actor:m guest nephew:m niece:f pilot bride:f groom:m clown policeman:m
        policewoman:f dentist nun:f monk:m soldier duke:m duchess:f judge hostess:f host:m lawyer writer dancer
        gardener cousin chef tailor scientist visitor""",
        "person",
    )
)
GENDERED = Pool([noun for noun in PEOPLE.items if noun.gender])
NAMES = Pool(
    _nouns(
        """Anna:f Tom:m Peter:m Mary:f Lucy:f Sam:m Ben:m Emma:f Julia:f David:m Paul:m Sarah:f Alice:f Jack:m
        Henry:m Rosa:f Clara:f Oliver:m Simon:m Nina:f Laura:f Victor:m Martin:m Helen:f Ruth:f Adam:m Oscar:m
        Maria:f Grace:f Felix:m Daniel:m Ella:f Lily:f Thomas:m Robert:m Diana:f Sophie:f George:m Edward:m Karen:f
        Linda:f Arthur:m Walter:m Susan:f""",
        "name",
    )
)
ANIMALS = Pool(
    _nouns(
        """dog cat horse bird cow rabbit mouse lion monkey pig frog wolf elephant goat fox kitten puppy tiger goose
        hen turtle snake owl pony lamb donkey zebra parrot squirrel giraffe dolphin whale hamster camel penguin
        spider beetle""",
        "animal",
        "n",
    )
)
THINGS = Pool(
    _nouns(
        """cup ball box book table hat chair toy car flower tree shoe door lamp key plate spoon coat doll window boat
        bottle basket bag clock truck picture letter kite drum bell blanket bowl candle mirror pillow bucket knife
        ladder stone leaf fence gate bicycle wagon pencil puzzle ribbon button pot jar carpet sofa bench shelf statue
        map flag rope umbrella glove sock scarf""",
        "thing",
        "n",
    )
)
FOODS = Pool(
    _nouns(
        """apple cookie cake egg banana carrot sandwich potato pie tomato pear peach pancake cherry muffin lemon onion
        strawberry plum mushroom sausage melon biscuit waffle pumpkin bagel""",
        "food",
        "n",
    )
)
PLACES = Pool(
    _nouns(
        """garden kitchen park school house forest shop room barn library museum market hospital castle church office
        yard village bedroom tower cave theater bathroom attic cellar bakery palace stable hall station hotel""",
        "place",
        "n",
    )
)
TIMES = Pool(_words("morning evening afternoon summer winter spring autumn"))

INTRANSITIVE = _verbs(
    """sleep slept slept pa; run ran run pa; laugh p; wait pa; sing sang sung p; jump pa; smile p; fall fell fallen t;
    walk pa; cry p; swim swam swum pa; dance p; rest pa; work p; shine shone shone t; roll t; sneeze pa; vanish t;
    yawn pa; wander pa; whisper p; float t; shout p; burn t; speak spoke spoken p; rattle t; cough pa; growl a;
    snore pa; shake shook shaken t; shiver pa; giggle p; sink sank sunk t; stumble pa; roar a; clap p; kneel knelt
    knelt p; wobble t; crack t; trip p; nod p; travel p; crawl pa; hop pa; pray p; rise rose risen t; limp pa"""
)
TRANSITIVE = _verbs(
    """see saw seen pa>patf; like pa>patf; find found found pa>patf; want pa>tf; love pa>pat; help p>pa; watch pa>pat;
    buy bought bought p>tf; wash p>patf; follow pa>pa; eat ate eaten pa>f; hear heard heard pa>pa; carry p>tf;
    take took taken p>tf; need p>patf; clean p>t; visit p>p; chase pa>pa; draw drew drawn p>patf; break broke broken
    p>t; bring brought brought p>tf; hide hid hidden p>tf; kiss p>p; hug p>pa; make made made p>f; paint p>pat;
    remember p>pat; teach taught taught p>p; drop p>tf; cook p>f; choose chose chosen p>tf; thank p>p; feed fed fed
    p>pa; throw threw thrown p>tf; touch pa>patf; fix p>t; push p>pat; bake p>f; sell sold sold p>tf; steal stole
    stolen p>tf; admire p>pat; miss p>pa; call p>pa; bite bit bitten a>paf; praise p>p; borrow p>t; taste pa>f;
    spot pa>patf; scratch a>pat; trust p>pa; wake woke woken p>p; fear pa>pa; lift p>tf; blame p>p; describe p>pat;
    tear tore torn p>t; invite p>p; forgive forgave forgiven p>p; repair p>t; greet p>p; polish p>t; peel p>f;
    catch caught caught pa>pa; examine p>patf; slice p>f; swallow pa>f; tickle p>pa; save p>pa; grab p>tf;
    tease p>p; mention p>pat; respect p>p; build built built p>t; count p>tf; deliver p>tf; protect pa>pa"""
)
REFLEXIVE = _verbs(
    """wash pa; hurt hurt hurt pa; see saw seen pa; help p; like p; teach taught taught p; draw drew drawn p; love p;
    blame p; dress p; watch p; praise p; paint p; admire p; trust p; describe p; forgive forgave forgiven p; save p;
    scratch pa; respect p; protect p; cut cut cut p; tickle p; feed fed fed pa; examine p"""
)
THAT_VERBS = _verbs("think thought thought p; say said said p; believe p; hope p; claim p")
WH_VERBS = _verbs("wonder p; ask p")
FACTIVE_VERBS = _verbs(
    """know knew known p; see saw seen p; forget forgot forgotten p; remember p; guess p; notice p; learn p;
    understand understood understood p; discover p; explain p; hear heard heard p; show showed shown p"""
)
"""Verbs that take both a that-clause and a wh-clause."""

STATIVE = frozenset(
    _words("""see like find want love hear need remember admire miss trust fear respect forget know think believe hope
    understand notice guess say claim mention forgive""")
)
"""Verbs (lemmas) that are not used in the progressive."""

_ALSO_WITHOUT_OBJECT = frozenset(
    _words("""see help watch follow eat hear wash clean visit draw hide paint remember teach cook choose bake steal
    call push swallow forgive count deliver build wake sell bite taste scratch polish break tear drop kiss
    hug touch miss chase catch feed save""")
)
"""English uses these transitive verbs without an object as well; the demo text does not."""

COLORS = Pool(_words("red blue green white black yellow brown gray pink purple"))
SIZES = Pool(_words("big little small large tiny huge old new pretty ugly beautiful nice strange lovely"))
MOODS = Pool(
    _words("""happy tired hungry sad young tall angry kind sleepy brave clever quiet busy friendly lonely proud thirsty
    lazy cheerful shy curious nervous polite rude gentle noisy""")
)
STATES = Pool(_words("dirty heavy cold wet dry empty warm expensive light safe cheap useless"))
MANNERS = Pool(_words("""quickly happily again slowly quietly loudly today outside early now alone carefully gently"""))
FREQUENCIES = Pool(_words("often always never sometimes usually rarely"))
NEAR_PREPOSITIONS = Pool(_words("near behind beside by under opposite"))
MODALS = Pool(_words("can will must should may could might would"))

DETERMINER_GROUPS = {
    "near": (("this",), ("these",)),
    "far": (("that",), ("those",)),
    "count": (("a",), ("many", "some", "two", "three", "several", "few")),
    "every": (("every", "each"), ("all", "both")),
    "own": (("my", "your", "our"), ("my", "your", "our")),
    "the": (("the",), ("the",)),
}
"""Determiners by group and number."""

BE, WAS, HAVE, DO = ("is", "are", "am"), ("was", "were", "was"), ("has", "have", "have"), ("does", "do", "do")
SUBJECT_PRONOUN = {"m": "he", "f": "she", "n": "it"}
POSSESSIVE = {"m": "his", "f": "her", "n": "its"}
PERSON_POSSESSIVE = {"I": "my", "you": "your", "we": "our"}
REFLEXIVE_PRONOUN = {"m": "himself", "f": "herself", "n": "itself"}
KIND_LETTERS = {"person": "p", "name": "p", "pronoun": "p", "animal": "a", "thing": "t", "food": "f", "place": "t"}
NOUN_POOLS = {"p": PEOPLE, "a": ANIMALS, "t": THINGS, "f": FOODS}

INTRANSITIVE_FOR = {kind: Pool([v for v in INTRANSITIVE if kind in v.subjects]) for kind in "pat"}
TRANSITIVE_FOR = {kind: Pool([v for v in TRANSITIVE if kind in v.subjects]) for kind in "pa"}
STRICT_POOL = Pool([verb for verb in TRANSITIVE_FOR["p"].items if verb.lemma not in _ALSO_WITHOUT_OBJECT])
"""Verbs that are ungrammatical without an object."""
REFLEXIVE_FOR = {kind: Pool([v for v in REFLEXIVE if kind in v.subjects]) for kind in "pa"}
THAT_POOL, WH_POOL, FACTIVE_POOL = Pool(THAT_VERBS), Pool(WH_VERBS), Pool(FACTIVE_VERBS)
SEEING_POOL = Pool([verb for verb in TRANSITIVE_FOR["p"].items if {"p", "t"} <= set(verb.objects)])
"""Verbs whose object can be a person as well as a thing."""
