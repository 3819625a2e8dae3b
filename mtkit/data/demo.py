"""The embedded default corpus: English and German sentence pairs from a written grammar.

A sentence starts as a `Clause` (who does what to whom, where and when, in which tense), drawn at random so
that it makes sense; English and German are then two ways of saying it. German puts the finite verb second and
the rest of the verb last, sends the finite verb to the end of subordinate clauses, inflects articles and
adjectives for gender, case and number, and chooses between haben and sein: to translate is more than to copy.
Tense and adverb of one language fix those of the other (the progressive is "gerade", the simple past is the
perfect), and "you" is always "du", so that every sentence has exactly one translation.

The three splits share no sentence, in either language, by construction: a sentence belongs to the split that a
hash of its content words gives, so the same words in another tense or order belong to the same split, too.

`demo_grammar.py` inflects words and orders clauses, `demo_lexicon.py` has the words; here they are combined.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from random import Random
from typing import Literal, Protocol, TypeVar

from mtkit.data import demo_lexicon as words
from mtkit.data.demo_grammar import (
    ACCUSATIVE,
    BARE,
    BE,
    CAN,
    COULD,
    DATIVE,
    FEMININE,
    FUTURE,
    HAD_TO,
    HAVE_TO,
    HE,
    HOW_MANY,
    IT,
    LIKE_TO,
    MANY,
    MODALS,
    MY,
    NO,
    NOMINATIVE,
    NUMERALS,
    OUR,
    PAST,
    PAST_MODALS,
    PERFECT,
    PRESENT,
    PROGRESSIVE,
    SHE,
    SHOULD,
    SOME,
    THE,
    THEY,
    THIS,
    WANT_TO,
    WE,
    WHICH,
    WHO,
    WOULD_LIKE_TO,
    YOU,
    YOUR,
    A,
    Adjective,
    Case,
    Clause,
    Determiner,
    I,
    Nominal,
    Noun,
    NounPhrase,
    Phrase,
    Tense,
    back_reference,
    contract,
    described,
    english_question,
    english_rest,
    english_statement,
    english_verb,
    german_imperative,
    german_purpose,
    german_question,
    german_statement,
    german_subordinate,
    german_verb,
    indefinite_article,
    joined,
    number,
    relative_pronoun,
    who_of,
)
from mtkit.data.demo_lexicon import PERSONS, Action
from mtkit.errors import ConfigError

Split = Literal["train", "valid", "test"]
Pair = tuple[str, str]
Sentence = Callable[[], Pair]  # a sentence that is drawn but not yet put into words

DIRECTIONS = ("en-de", "de-en")

# -------------------------------------------------------------------------------------- drawing at random

T = TypeVar("T")


class Word(Protocol):
    """Whatever has a German name."""

    @property
    def de(self) -> str:
        """The dictionary form."""
        ...


W = TypeVar("W", bound=Word)


class Picker:
    """Makes the random choices of a sentence and remembers the content words among them."""

    def __init__(self, rng: Random) -> None:
        self._random = rng.random
        self.content: list[str] = []

    def word(self, choices: Sequence[W]) -> W:
        """A content word: what the sentence is about."""
        word = choices[int(self._random() * len(choices))]
        self.content.append(word.de)
        return word

    def other_word(self, choices: Sequence[W], unwanted: object) -> W:
        """A content word that is not `unwanted`."""
        while (word := self.any_of(choices)) is unwanted:
            pass
        return self.keep(word)

    def keep(self, word: W) -> W:
        """Remembers a content word that was chosen in another way."""
        self.content.append(word.de)
        return word

    def any_of(self, choices: Sequence[T]) -> T:
        """A grammatical choice. What is to come up more often stands in `choices` more than once."""
        return choices[int(self._random() * len(choices))]

    def integer(self, first: int, last: int) -> int:
        return first + int(self._random() * (last - first + 1))

    def chance(self, probability: float) -> bool:
        return self._random() < probability


# --------------------------------------------------------------------------------------------- who and what

# The determiners that make sense, by the role of the noun. What is common stands here more than once.
_ONE: dict[str, tuple[Determiner, ...]] = {
    "thing": (*(THE,) * 4, *(A,) * 4, THIS),
    "public": (*(THE,) * 4, A, THIS),
    "room": (THE,),
    "person": (*(THE,) * 6, A, THIS),
    "kin": (MY, YOUR, OUR),
    "mass": (THE, THE, BARE, BARE, BARE),
    "language": (BARE,),
}
_SEVERAL: dict[str, tuple[Determiner, ...]] = {
    "thing": (*(THE, BARE) * 12, *(THIS, MANY, SOME) * 3, *NUMERALS),
    "public": (*(THE, BARE) * 12, *(THIS, MANY, SOME) * 3, *NUMERALS),
    "room": (THE,),
    "person": (*(THE,) * 36, *(THIS, MANY) * 3, *NUMERALS),
    "kin": (MY, YOUR, OUR),
}
_DEFINITE = {"kin": (MY, YOUR, OUR), "room": (THE,)}
# How often something belongs to the subject.
_OWN = {"kin": 0.4, "room": 0.3, "thing": 0.15, "mass": 0.08}


def noun_phrase(
    p: Picker,
    noun: Noun,
    *,
    owner: Determiner | None = None,
    definite: bool = False,
    adjective: float = 0.3,
) -> NounPhrase:
    """A noun with a determiner.

    Args:
        p: makes the choices.
        noun: the noun.
        owner: the possessive that refers back to the subject.
        definite: whether it must be known what is meant.
        adjective: how likely there is one.
    """
    is_plural = not noun.en or (bool(noun.en_plural) and p.chance(0.3))
    if owner and p.chance(_OWN.get(noun.role, 0)):
        determiner = owner
    elif definite:
        determiner = p.any_of(_DEFINITE.get(noun.role, (THE, THE, THE, THE, THIS)))
    else:
        determiner = p.any_of((_SEVERAL if is_plural else _ONE)[noun.role])
    has_adjective = noun.adjectives and p.chance(adjective)
    return NounPhrase(noun, determiner, is_plural, p.word(noun.adjectives) if has_adjective else None)


def things_in_general(p: Picker, noun: Noun, owner: Determiner | None = None) -> NounPhrase:
    """What people do something to time and again: long novels, cold milk, her flowers, the kitchen."""
    if noun.role == "room":
        return noun_phrase(p, noun, owner=owner)
    adjective = p.word(noun.adjectives) if noun.adjectives and p.chance(0.35) else None
    determiner = owner if owner and p.chance(_OWN.get(noun.role, 0)) else BARE
    return NounPhrase(noun, determiner, bool(noun.en_plural), adjective)


_PRONOUNS = (I, YOU, HE, SHE, WE, THEY)
# Objects leave out "sie", which is she or they, and "her", which may be a possessive: a sentence must not have
# two translations. Nobody acts on himself, nor do we on me.
_OBJECT_PRONOUNS = {
    (case, subject.agreement): tuple(
        pronoun
        for pronoun in pronouns
        if pronoun.agreement is not subject.agreement and {pronoun, subject} != {I, WE}
    )
    for case, pronouns in ((ACCUSATIVE, (I, YOU, HE, WE)), (DATIVE, (I, YOU, HE, WE, THEY)))
    for subject in _PRONOUNS
}


def person(p: Picker, *, unlike: Nominal | None = None, adult: bool = False) -> Nominal:
    """Somebody as a subject. An adult is never neuter, so that a pronoun can refer back to him or her."""
    if p.chance(0.36):
        return p.other_word(_PRONOUNS, unlike)
    if p.chance(0.25):
        return p.other_word(words.NAMES, unlike)
    people = words.KIN if p.chance(0.45) else words.ADULTS if adult else words.PEOPLE
    noun = p.other_word(people, _noun_of(unlike))
    return noun_phrase(p, noun, definite=p.chance(0.8), adjective=0.05 if noun.role == "kin" else 0.25)


def other_person(p: Picker, subject: Nominal, *, definite: bool = False) -> Nominal:
    """Somebody else than the subject, by name or noun."""
    if p.chance(0.25):
        return p.other_word(words.NAMES, subject)
    noun = p.other_word(PERSONS, _noun_of(subject))
    return noun_phrase(p, noun, owner=subject.possessive, definite=definite, adjective=0.15)


def person_object(p: Picker, subject: Nominal, case: Case, *, definite: bool = False) -> Nominal:
    """Somebody as an object of what the subject does."""
    if p.chance(0.2):
        return p.word(_OBJECT_PRONOUNS[case, subject.agreement])
    return other_person(p, subject, definite=definite)


def _noun_of(nominal: Nominal | None) -> Noun | None:
    return nominal.noun if isinstance(nominal, NounPhrase) else None


def relative_or_name(p: Picker) -> Nominal:
    """My sister, Paul."""
    if p.chance(0.5):
        return p.word(words.NAMES)
    return NounPhrase(p.word(words.SINGLE_KIN), p.any_of((MY, YOUR, OUR)))


# ----------------------------------------------------------------------------------- when: tense and time


def date(p: Picker, first_year: int = 0, last_year: int = 0) -> Phrase:
    """A day, of a year if one is given: on 3 May 2021 = am 3. Mai 2021."""
    day, month = p.integer(1, 28), p.any_of(words.MONTHS)
    year = f" {p.integer(first_year, last_year)}" if first_year else ""
    return p.keep(Phrase(f"on {day} {month.en}{year}", f"am {day}. {month.de}{year}"))


def clock(p: Picker) -> Phrase:
    """A time of the day: at half past three = um halb vier."""
    time = p.word(words.CLOCK_TIMES)
    return Phrase(f"at {time.en}", f"um {time.de}")


def past_time(p: Picker, *, distant: bool) -> Phrase:
    """When something was: yesterday, on Monday, two days ago; if it is `distant`, also on 3 May 2021."""
    if distant and p.chance(0.6):
        if p.chance(0.5):
            return p.word(words.DISTANT_PAST_TIMES)
        return date(p, 1990, 2024) if p.chance(0.6) else _ago(p, words.LONG_UNITS)
    kind = p.integer(1, 8)
    if kind <= 2:
        return _ago(p, words.SHORT_UNITS) if kind == 1 else date(p)
    return _day_or_hour(p, words.PAST_TIMES)


def _ago(p: Picker, units: Sequence[Phrase]) -> Phrase:
    count, unit = p.word(words.COUNTS), p.word(units)
    return Phrase(f"{count.en} {unit.en} ago", f"vor {count.de} {unit.de}")


def future_time(p: Picker, *, distant: bool) -> Phrase:
    """When something will be: tomorrow, on Monday, in two days; if it is `distant`, also next year."""
    if distant and p.chance(0.4):
        return p.word(words.DISTANT_FUTURE_TIMES)
    kind = p.integer(1, 8)
    if kind == 1:
        count, unit = p.word(words.COUNTS), p.word(words.SHORT_UNITS)
        return Phrase(f"in {count.en} {unit.en}", f"in {count.de} {unit.de}")
    return date(p) if kind == 2 else _day_or_hour(p, words.FUTURE_TIMES)


def _day_or_hour(p: Picker, days: Sequence[Phrase]) -> Phrase:
    kind = p.integer(1, 6)
    if kind <= 2:
        return clock(p) if kind == 1 else p.word(words.WEEKDAYS)
    return p.word(days)


_ALREADY, _JUST, _YET = Phrase("already", "schon"), Phrase("just", "gerade"), Phrase("yet", "noch")

_TENSES: dict[str, tuple[Tense, ...]] = {
    "task": (*(PRESENT,) * 6, *(PAST, PROGRESSIVE) * 4, *(FUTURE, PERFECT) * 2, *MODALS, *PAST_MODALS),
    "activity": (*(PRESENT,) * 6, *(PAST, PROGRESSIVE) * 4, *(FUTURE,) * 2, *MODALS, *PAST_MODALS),
    "feeling": (PAST, PAST, PROGRESSIVE, PRESENT),
    "event": (*(PAST,) * 3, PERFECT, FUTURE),
    "state": (PRESENT,),
}
_ASKED_TENSES: dict[str, tuple[Tense, ...]] = {
    kind: tuple(
        tense for tense in tenses if tense is not PERFECT and (kind == "state" or tense is not PRESENT)
    )
    for kind, tenses in _TENSES.items()
}


def set_time(p: Picker, c: Clause, action: Action) -> None:
    """Adds an adverb or a time that goes with the tense and the action."""
    if action.kind == "state" or c.tense is PROGRESSIVE:
        return
    if c.tense is PRESENT:
        c.can_be_negated = False  # "does not often read": what is it that is not?
        if p.chance(0.5):
            c.adverb = p.word(words.FREQUENCIES)
        else:
            c.time = p.word(words.HABITS)
    elif c.tense is PERFECT:
        c.adverb = p.any_of((_ALREADY, _ALREADY, _JUST))
    elif c.tense is PAST or c.tense in PAST_MODALS:
        if p.chance(0.6):
            c.time = past_time(p, distant=action.memorable and c.tense is PAST)
    elif c.tense is FUTURE:
        if p.chance(0.7):
            c.time = future_time(p, distant=action.memorable)
    elif p.chance(0.4):
        c.time = _day_or_hour(p, words.FUTURE_TIMES)


def is_negatable(c: Clause) -> bool:
    """Not "two books": how many then? Not with a place: where else? Nor is "would not like to" idiomatic."""
    return (
        c.can_be_negated
        and c.place is None
        and c.tense is not WOULD_LIKE_TO
        and (not isinstance(c.object, NounPhrase) or c.object.definite or c.object.determiner in (A, BARE))
    )


def negate(c: Clause) -> None:
    """Adds "not"; the opposite of "already" is "not yet"."""
    c.negated = True
    if c.tense is PERFECT:
        c.adverb, c.time = None, _YET


# ----------------------------------------------------------------------------------- scenes: what can happen


def act(
    p: Picker,
    action: Action,
    subject: Nominal,
    tense: Tense,
    *,
    timed: bool = True,
    negated: bool = False,
    definite: bool = False,
    asked: Literal["object", "place", "complement", None] = None,
) -> Clause:
    """Somebody does something. What is `asked` for is left out: the clause is to ask for it."""
    c = Clause(subject, p.keep(action.verb), tense, negated=negated)
    if action.objects and asked != "object":
        habitual = timed and tense is PRESENT and action.kind != "state"
        c.object = _object(p, action.objects, subject, ACCUSATIVE, definite or negated, habitual)
    if action.to_whom:
        c.recipient = person_object(p, subject, DATIVE, definite=True)
    if action.about:
        preposition, case = action.preposition
        about = _object(p, action.about, subject, case, definite=True)
        c.complement = Phrase(about.en_object, contract(preposition, about.german(case)))
    if action.complements and asked != "complement":
        c.complement = _with_means(p, p.word(action.complements), action)
    if action.places and asked != "place" and not negated and p.chance(0.3):
        c.place = p.word(action.places)
    if timed:
        set_time(p, c, action)
    return c


def _object(
    p: Picker, nouns: Sequence[Noun], subject: Nominal, case: Case, definite: bool, habitual: bool = False
) -> Nominal:
    if nouns is PERSONS:
        return person_object(p, subject, case, definite=definite)
    noun = p.word(nouns)
    if habitual and not definite:
        return things_in_general(p, noun, subject.possessive)
    return noun_phrase(p, noun, owner=subject.possessive, definite=definite)


def _with_means(p: Picker, goal: Phrase, action: Action) -> Phrase:
    """to Berlin by train = mit dem Zug nach Berlin."""
    if not action.means:
        return goal
    means = p.word(action.means)
    return Phrase(f"{goal.en} {means.en}", f"{means.de} {goal.de}")


def doing(p: Picker) -> Clause:
    """The woman is reading a book in the garden."""
    action = p.any_of(words.ACTIONS)
    return act(p, action, person(p), p.any_of(_TENSES[action.kind]))


def description(p: Picker) -> Clause:
    """The coat is too expensive. My sister was very tired."""
    subject: Nominal
    if p.chance(0.5):
        subject = person(p)
        adjective = p.word(p.any_of((words.TRAITS, words.EMOTIONS, words.WEAKNESSES)))
    else:
        noun = p.word(words.THINGS)
        subject = noun_phrase(p, noun, definite=True, adjective=0)
        adjective = p.word(noun.adjectives)
    return Clause(subject, BE, _now_or_then(p), complement=degree(p, adjective))


def _now_or_then(p: Picker) -> Tense:
    return PAST if p.chance(0.3) else PRESENT


def degree(p: Picker, adjective: Adjective) -> Phrase:
    """old, very old, too old."""
    if adjective.en not in words.ABSOLUTE and p.chance(0.35):
        if adjective.en in words.TOO_MUCH and p.chance(0.5):
            return Phrase(f"too {adjective.en}", f"zu {adjective.de}")
        return Phrase(f"very {adjective.en}", f"sehr {adjective.de}")
    return Phrase(adjective.en, adjective.de)


def comparison(p: Picker) -> Clause:
    """The car is more expensive than the bicycle. Anna is not as tall as her brother."""
    subject: Nominal
    other: Nominal
    if p.chance(0.4):
        subject = person(p)
        other = other_person(p, subject, definite=True)
        adjective = p.word(words.TRAITS)
    else:
        group = p.any_of(words.COMPARABLE)
        noun = p.word(group)
        subject = noun_phrase(p, noun, definite=True, adjective=0)
        other = noun_phrase(p, p.other_word(group, noun), definite=True, adjective=0)
        adjective = p.word(words.COMPARED)
    c = Clause(subject, BE, PRESENT, can_be_negated=False)
    en, de = other.en, other.german(NOMINATIVE)
    if p.chance(0.6):
        c.complement = Phrase(adjective.en_more, adjective.de_more)
        c.standard = Phrase(f"than {en}", f"als {de}")
    else:
        c.negated = p.chance(0.5)
        as_old = "so" if c.negated else "genauso"
        c.complement = Phrase(f"as {adjective.en}", f"{as_old} {adjective.de}")
        c.standard = Phrase(f"as {en}", f"wie {de}")
    return c


def profession(p: Picker) -> Clause:
    """My sister is a teacher. Paul was a famous singer."""
    subject = p.word((I, YOU, HE, SHE)) if p.chance(0.3) else relative_or_name(p)
    gender = subject.gender
    job = p.word(words.PROFESSIONS)
    en, de = job.en, job.feminine if gender is FEMININE else job.de
    if p.chance(0.4):
        adjective = p.word(words.PROFESSION_ADJECTIVES)
        inflected = adjective.stem + A.endings[NOMINATIVE][gender]
        en, de = f"{adjective.en} {en}", f"{A.german[NOMINATIVE][gender]} {inflected} {de}"
    complement = Phrase(f"{indefinite_article(en)} {en}", de)
    return Clause(subject, BE, _now_or_then(p), complement=complement, can_be_negated=False)


def age(p: Picker) -> Clause:
    """My aunt is forty-one years old. The castle is three hundred and fifty years old."""
    subject: Nominal
    if p.chance(0.7):
        subject = relative_or_name(p)
        years = p.integer(*_usual_age(subject))
    elif p.chance(0.5):
        subject, years = noun_phrase(p, p.word(words.CHILDREN), definite=True), p.integer(2, 15)
    else:
        subject, years = noun_phrase(p, p.word(words.SIGHTS), definite=True), p.integer(4, 18) * 50
    count = p.keep(number(years))
    complement = Phrase(f"{count.en} years old", f"{count.de} Jahre alt")
    return Clause(subject, BE, PRESENT, complement=complement, can_be_negated=False)


def _usual_age(person: Nominal) -> tuple[int, int]:
    noun = _noun_of(person)
    return words.AGES.get(noun.en, words.USUAL_AGE) if noun else words.USUAL_AGE


def price(p: Picker) -> Clause:
    """This coat costs eighty-five euros."""
    is_dear = p.chance(0.3)
    subject = noun_phrase(p, p.word(words.DEAR_GOODS if is_dear else words.CHEAP_GOODS), definite=True)
    euros = p.keep(number(p.integer(2, 19) * 50 if is_dear else p.integer(2, 99)))
    complement = Phrase(f"{euros.en} euros", f"{euros.de} Euro")
    return Clause(subject, words.COST, PRESENT, complement=complement, can_be_negated=False)


def timetable(p: Picker, *, timed: bool = True) -> Clause:
    """The train to Berlin leaves at half past three. The course took place on 3 May 2021."""
    kind = p.integer(1, 5)
    if kind <= 2:
        leaves = p.chance(0.5)
        where = p.word(words.TO_CITIES if leaves else words.FROM_CITIES)
        vehicle = described(NounPhrase(p.word(words.TRAIN_AND_BUS), THE), where.en, f" {where.de}")
        c = Clause(vehicle, words.LEAVE if leaves else words.ARRIVE, PRESENT)
    elif kind == 3:
        c = Clause(NounPhrase(p.word(words.EVENTS), THE), p.word((words.BEGIN, words.END)), PRESENT)
    elif kind == 4:
        c = Clause(NounPhrase(p.word(words.PUBLIC_PLACES), THE), p.word((words.OPEN, words.CLOSE)), PRESENT)
    else:
        c = Clause(NounPhrase(p.word(words.EVENTS), THE), words.TAKE_PLACE, PAST)
        c.place = p.word(words.AT_CITIES) if p.chance(0.3) else None
    if timed:
        c.time = clock(p) if c.tense is PRESENT else date(p, 1990, 2024)
    c.can_be_negated = False
    return c


def birth(p: Picker) -> Clause:
    """Anna was born in Vienna on 3 May 1987."""
    subject = relative_or_name(p)
    youngest, oldest = _usual_age(subject)
    c = Clause(subject, words.BE_BORN, PAST, complement=Phrase("born", "geboren"))
    c.time = date(p, 2024 - oldest, 2024 - youngest)
    c.place = p.word(words.AT_CITIES) if p.chance(0.4) else None
    c.can_be_negated = False
    return c


def weather(p: Picker) -> Clause:
    """It is raining in Paris. It was very cold in Berlin yesterday."""
    tense = p.any_of((PROGRESSIVE, PAST, FUTURE))
    if tense is PROGRESSIVE or p.chance(0.5):
        c = Clause(IT, p.word((words.RAIN, words.SNOW)), tense)
    else:
        c = Clause(IT, BE, tense, complement=degree(p, p.word(words.TEMPERATURES)))
    c.place = p.word(words.AT_CITIES) if p.chance(0.7) else None
    if tense is not PROGRESSIVE:
        c.time = p.word(words.PAST_TIMES if tense is PAST else words.FUTURE_TIMES)
    return c


def spot(p: Picker, case: Case, *, stands: bool) -> Phrase:
    """on the table = auf dem Tisch (where), auf den Tisch (where to)."""
    preposition, nouns = p.any_of(words.STANDING_SPOTS if stands else words.LYING_SPOTS)
    p.keep(preposition)
    noun = p.word(nouns)
    adjective = p.word(noun.adjectives) if p.chance(0.2) else None
    where = NounPhrase(noun, p.any_of((THE, THE, THE, THE, MY, YOUR, OUR)), adjective=adjective)
    return Phrase(f"{preposition.en} {where.en}", contract(preposition.de, where.german(case)))


def location(p: Picker, *, asked: bool = False) -> Clause:
    """The key is on the table: German says whether it lies or stands."""
    stands = p.chance(0.3)
    noun = p.word(words.STANDING_THINGS if stands else words.LYING_THINGS)
    c = Clause(noun_phrase(p, noun, definite=True), words.STAND if stands else words.LIE, _now_or_then(p))
    if not asked:
        c.complement = spot(p, DATIVE, stands=stands)
    return c


def placing(p: Picker) -> Clause:
    """Anna is putting the book on the shelf."""
    stands = p.chance(0.3)
    things = words.STANDING_THINGS if stands else words.LYING_THINGS
    action = Action(words.PUT_UPRIGHT if stands else words.PUT_FLAT, objects=things)
    c = act(p, action, person(p), p.any_of(_TENSES["task"]))
    c.complement = spot(p, ACCUSATIVE, stands=stands)
    return c


def ownership(p: Picker) -> Clause:
    """This car belongs to my aunt."""
    subject = noun_phrase(p, p.word(words.GOODS), definite=True)
    recipient = person_object(p, subject, DATIVE, definite=True)
    return Clause(subject, words.BELONG, PRESENT, recipient=recipient)


_SCENES = (
    *(doing,) * 28,
    *(description, timetable) * 3,
    *(comparison, profession, age, price, location, placing) * 2,
    *(ownership, weather, birth),
)


def scene(p: Picker) -> Clause:
    """Something that may be the case."""
    return p.any_of(_SCENES)(p)


# ---------------------------------------------------------------------------------------------- the sentences


def finish(en: str, de: str, mark: str = ".") -> Pair:
    """Capitals and punctuation."""
    return en[0].upper() + en[1:] + mark, de[0].upper() + de[1:] + mark


def statement(p: Picker) -> Sentence:
    """Anna did not buy the red coat yesterday. At half past three the train leaves."""
    c = scene(p)
    if is_negatable(c) and p.chance(0.25):
        negate(c)
    fronted = c.time not in (None, _YET) and p.chance(0.4)
    return lambda: finish(english_statement(c, fronted=fronted), german_statement(c, fronted=fronted))


def yes_no_question(p: Picker) -> Sentence:
    """Does your sister live in Berlin? Nobody asks that of himself: these stay statements."""
    c = scene(p)
    if c.subject in (I, WE) or c.negated:
        return lambda: finish(english_statement(c), german_statement(c))
    return lambda: finish(english_question(c), german_question(c), "?")


Question = tuple[Phrase, Clause]  # the question word, and the clause that lacks what it asks for


def _asked_act(
    p: Picker, actions: Sequence[Action], asked: Literal["object", "place", "complement", None] = None
) -> Clause:
    action = p.any_of(actions)
    return act(p, action, person(p, unlike=I), p.any_of(_ASKED_TENSES[action.kind]), asked=asked)


def who_question(p: Picker) -> Question:
    """Who bought the car? The question word is the subject."""
    action = p.any_of(words.ACTIONS)
    return Phrase("", ""), act(p, action, WHO, p.any_of(_ASKED_TENSES[action.kind]))


def what_question(p: Picker) -> Question:
    """What did Anna buy?"""
    return Phrase("what", "was"), _asked_act(p, words.WITH_TELLING_VERB, "object")


def whom_question(p: Picker) -> Question:
    """Who did Anna meet?"""
    return Phrase("who", "wen"), _asked_act(p, words.WITH_PERSONS, "object")


def which_question(p: Picker) -> Question:
    """Which coat did Anna buy? How many apples did she eat?"""
    action = p.any_of(words.WITH_THINGS)
    noun = p.word(action.objects)
    is_plural = not noun.en or (bool(noun.en_plural) and p.chance(0.4))
    determiner = HOW_MANY if is_plural and noun.en else WHICH
    adjective = p.word(noun.adjectives) if p.chance(0.2) else None
    asked = NounPhrase(noun, determiner, is_plural, adjective)
    return Phrase(asked.en, asked.german(ACCUSATIVE)), _asked_act(p, (action,), "object")


def where_question(p: Picker) -> Question:
    """Where did Anna buy the coat? Where is the key?"""
    word = Phrase("where", "wo")
    return word, location(p, asked=True) if p.chance(0.2) else _asked_act(p, words.WITH_PLACES, "place")


def where_to_question(p: Picker) -> Question:
    """Where is Anna going?"""
    return Phrase("where", "wohin"), _asked_act(p, words.WITH_GOALS, "complement")


def when_question(p: Picker) -> Question:
    """When did Anna buy the coat? When does the train to Berlin leave?"""
    word = Phrase("when", "wann")
    if p.chance(0.3):
        return word, timetable(p, timed=False)
    tense = p.any_of((PAST, PAST, FUTURE, HAVE_TO, WANT_TO))
    return word, act(p, p.any_of(words.DUTIES), person(p, unlike=I), tense, timed=False)


def why_question(p: Picker) -> Question:
    """Why is the child crying?"""
    return Phrase("why", "warum"), _asked_act(p, words.ACTIONS)


_QUESTIONS = (
    *(who_question, what_question, which_question, when_question) * 2,
    *(whom_question, where_question, where_to_question, why_question),
)


def question(p: Picker) -> Sentence:
    """A question with a question word."""
    word, c = p.any_of(_QUESTIONS)(p)
    return lambda: finish(english_question(c, word.en), german_question(c, word.de), "?")


def indirect_question(p: Picker) -> Sentence:
    """Do you know where Anna bought the coat? I do not know whether the train has already arrived."""
    word, c = (Phrase("whether", "ob"), scene(p)) if p.chance(0.3) else p.any_of(_QUESTIONS)(p)
    en, de = joined(word.en, english_statement(c)), german_subordinate(c, word.de)
    if p.chance(0.3):
        return lambda: finish(f"do you know {en}", f"weißt du, {de}", "?")
    tense = p.any_of((PRESENT, WANT_TO, WOULD_LIKE_TO))
    main = Clause(person(p, unlike=c.subject), words.KNOW, tense, negated=tense is PRESENT)
    return lambda: finish(f"{english_statement(main)} {en}", f"{german_statement(main)}, {de}")


def reported(p: Picker) -> Sentence:
    """Anna thinks that the train has already arrived."""
    verb, tense = p.any_of(_REPORTS)
    main = Clause(person(p), p.keep(verb), tense)
    c = scene(p)
    if is_negatable(c) and p.chance(0.2):
        negate(c)
    return lambda: finish(
        f"{english_statement(main)} that {english_statement(c)}",
        f"{german_statement(main)}, {german_subordinate(c, 'dass')}",
    )


_REPORTS = (
    (words.KNOW, PRESENT),
    (words.THINK, PRESENT),
    (words.SAY, PRESENT),
    (words.SAY, PAST),
    (words.HEAR, PAST),
)


def _main_and_subordinate(main: Clause, en: str, de: str, subordinate: Clause) -> Sentence:
    return lambda: finish(
        f"{english_statement(main)} {en} {english_statement(subordinate)}",
        f"{german_statement(main)}, {german_subordinate(subordinate, de)}",
    )


def feeling(p: Picker, subject: Nominal, tense: Tense, adjectives: Sequence[Adjective]) -> Clause:
    """She is very tired."""
    return Clause(subject, BE, tense, complement=degree(p, p.word(adjectives)))


def because(p: Picker) -> Sentence:
    """Anna is happy because she found the key. Paul cannot come because he has to work."""
    subject = person(p, adult=True)
    again = back_reference(subject)
    is_past = p.chance(0.4)
    tense = PAST if is_past else PRESENT
    if p.chance(0.5):
        main = feeling(p, subject, tense, words.EMOTIONS)
        doer = again if p.chance(0.6) else person(p, unlike=subject)
        reason = act(p, p.any_of(words.DOINGS), doer, PAST)
    else:
        main = act(p, p.any_of(words.DUTIES), subject, COULD if is_past else CAN, timed=False, negated=True)
        if p.chance(0.4):
            reason = feeling(p, again, tense, words.WEAKNESSES)
        else:
            reason = act(p, p.any_of(words.DUTIES), again, HAD_TO if is_past else HAVE_TO, timed=False)
    return _main_and_subordinate(main, "because", "weil", reason)


def although(p: Picker) -> Sentence:
    """Anna is cleaning the kitchen although she is tired."""
    subject = person(p, adult=True)
    is_past = p.chance(0.5)
    main = act(p, p.any_of(words.DUTIES), subject, PAST if is_past else PROGRESSIVE, timed=False)
    obstacle = feeling(p, back_reference(subject), PAST if is_past else PRESENT, words.WEAKNESSES)
    return _main_and_subordinate(main, "although", "obwohl", obstacle)


def condition(p: Picker) -> Sentence:
    """If it rains tomorrow, we will stay at home."""
    subject = person(p, adult=True)
    kind = p.integer(1, 3)
    duty = p.any_of(words.DUTIES)
    if kind == 1:
        given = Clause(IT, p.word((words.RAIN, words.SNOW)), PRESENT, time=p.word(words.FUTURE_TIMES[:4]))
        main = act(p, duty, subject, FUTURE, timed=False, negated=p.chance(0.5))
    elif kind == 2:
        given = feeling(p, subject, PRESENT, words.WEAKNESSES)
        tense = p.any_of((HAVE_TO, SHOULD, CAN))
        main = act(p, duty, back_reference(subject), tense, timed=False, negated=True)
    else:
        given = act(p, duty, subject, PRESENT, timed=False)
        main = feeling(p, person(p, unlike=subject), FUTURE, words.EMOTIONS)
    return lambda: finish(
        f"if {english_statement(given)}, {english_statement(main)}",
        f"{german_subordinate(given, 'wenn')}, {german_question(main)}",
    )


def relative_subject(p: Picker) -> Sentence:
    """The woman who bought the red car lives in Vienna."""
    noun = p.word(words.PEOPLE)
    head = NounPhrase(noun, THE, is_plural=p.chance(0.3))
    c = act(p, p.any_of(words.DOINGS), who_of(head), PAST)
    subject = described(head, english_statement(c), f", {german_subordinate(c)},")
    if p.chance(0.3):
        main = Clause(subject, words.LIVE, PRESENT, complement=p.word(words.AT_CITIES))
    else:
        main = feeling(
            p, subject, _now_or_then(p), p.any_of((words.TRAITS, words.EMOTIONS, words.WEAKNESSES))
        )
    return lambda: finish(english_statement(main), german_statement(main))


def relative_object(p: Picker) -> Sentence:
    """The coat that Anna bought yesterday is very expensive."""
    action = p.any_of(words.THINGS_DONE)
    noun = p.word(action.objects)
    head = NounPhrase(noun, THE, is_plural=not noun.en or (bool(noun.en_plural) and p.chance(0.3)))
    c = act(p, action, person(p), PAST, asked="object")
    relative = german_subordinate(c, relative_pronoun(head, ACCUSATIVE))
    subject = described(head, f"that {english_statement(c)}", f", {relative},")
    main = feeling(p, subject, _now_or_then(p), noun.adjectives)
    return lambda: finish(english_statement(main), german_statement(main))


def purpose(p: Picker) -> Sentence:
    """Anna is going to the bakery to buy bread."""
    errand = p.any_of(words.ERRANDS)
    subject = person(p)
    going = Action(words.GO, complements=errand.goals)
    main = act(p, going, subject, p.any_of((PROGRESSIVE, PAST, FUTURE, HAVE_TO, WANT_TO)))
    fronted = main.time is not None and p.chance(0.5)
    aim = act(p, errand.action, subject, PRESENT, timed=False)
    return lambda: finish(
        joined(english_statement(main, fronted=fronted), "to", aim.verb.en, english_rest(aim)),
        f"{german_statement(main, fronted=fronted)}, {german_purpose(aim)}",
    )


def existence(p: Picker) -> Sentence:
    """There are two cups on the table: German begins with the spot."""
    stands = p.chance(0.3)
    noun = p.word(words.STANDING_THINGS if stands else words.LYING_THINGS)
    is_plural = not noun.en or p.chance(0.4)
    determiner = p.any_of((MANY, SOME, *NUMERALS) if is_plural else (A, A, NO))
    adjective = p.word(noun.adjectives) if p.chance(0.3) else None
    thing = NounPhrase(noun, determiner, is_plural, adjective)
    where = spot(p, DATIVE, stands=stands)
    tense = _now_or_then(p)
    be, _ = english_verb(BE, tense, thing.agreement, True)
    lies, _, _ = german_verb(words.STAND if stands else words.LIE, tense, thing.agreement)
    if determiner is not NO and p.chance(0.2):
        return lambda: finish(
            f"{be} there {thing.en} {where.en}", f"{lies} {where.de} {thing.german(NOMINATIVE)}", "?"
        )
    return lambda: finish(
        f"there {be} {thing.en} {where.en}", f"{where.de} {lies} {thing.german(NOMINATIVE)}"
    )


def request(p: Picker) -> Sentence:
    """Please close the window. Please do not throw away the newspaper."""
    negated = p.chance(0.3)
    c = act(p, p.any_of(words.FAVOURS), YOU, PRESENT, timed=False, negated=negated, definite=p.chance(0.7))
    if not negated and p.chance(0.2):
        c.time = p.word(words.FUTURE_TIMES[:4])
    do_not = "do not" if negated else None
    return lambda: finish(joined("please", do_not, c.verb.en, english_rest(c)), german_imperative(c))


def liking(p: Picker) -> Sentence:
    """Anna likes to drink cold milk: German has an adverb for that."""
    action = p.any_of(words.PLEASURES)
    c = Clause(person(p), action.verb, LIKE_TO)
    if action.objects:
        c.object = things_in_general(p, p.word(action.objects))
    if action.complements:
        c.complement = _with_means(p, p.word(action.complements), action)
    if action.places:
        c.place = p.word(action.places)
    if c.subject not in (I, WE) and p.chance(0.2):
        return lambda: finish(english_question(c), german_question(c), "?")
    return lambda: finish(english_statement(c), german_statement(c))


def time_of_day(p: Picker) -> Sentence:
    """It is already half past three."""
    adverb = _ALREADY if p.chance(0.5) else None
    c = Clause(IT, BE, PRESENT, complement=p.word(words.CLOCK_TIMES), adverb=adverb)
    return lambda: finish(english_statement(c), german_statement(c))


_SENTENCES: tuple[Callable[[Picker], Sentence], ...] = (
    *(statement,) * 20,
    *(question,) * 5,
    *(yes_no_question,) * 4,
    *(because, condition, reported) * 3,
    *(although, existence, indirect_question, liking, purpose, relative_object, relative_subject, request)
    * 2,
    time_of_day,
)

# --------------------------------------------------------------------------------------------- the corpus

# A cautious fraction of what the grammar can say.
CAPACITY: dict[str, int] = {"train": 4_000_000, "valid": 1_000_000, "test": 1_000_000}

# How the hash of the content words, taken modulo 8, decides.
_SHARES: tuple[Split, ...] = (*("train",) * 4, *("valid",) * 2, *("test",) * 2)


def split_of(content: Sequence[str]) -> Split:
    """The split to which all sentences with these content words belong."""
    digest = blake2b("\n".join(sorted(content)).encode(), digest_size=1).digest()
    return _SHARES[digest[0] % len(_SHARES)]


def generate(direction: str, num_pairs: int, seed: int, split: Split) -> Iterator[Pair]:
    """Yields distinct sentence pairs, source first.

    The same arguments give the same pairs; a longer request begins with the pairs of a shorter one; "de-en" is
    "en-de" with the sides exchanged. No sentence of one split occurs in another, on either side, whatever the
    seeds.

    Raises:
        ConfigError: for an unknown direction or split, or more pairs than `CAPACITY`.
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"no demo corpus for {direction!r}", hint=f"there are {' and '.join(DIRECTIONS)}")
    if split not in CAPACITY:
        raise ConfigError(f"no split {split!r} of the demo corpus", hint=f"there are {', '.join(CAPACITY)}")
    if not 0 <= num_pairs <= CAPACITY[split]:
        raise ConfigError(
            f"the demo corpus cannot give {num_pairs} pairs", hint=f"at most {CAPACITY[split]} for {split}"
        )
    pairs = _distinct_pairs(num_pairs, seed, split)
    return pairs if direction == "en-de" else ((de, en) for en, de in pairs)


def _distinct_pairs(num_pairs: int, seed: int, split: Split) -> Iterator[Pair]:
    rng = Random(seed)
    seen: set[str] = set()
    while len(seen) < num_pairs:
        p = Picker(rng)
        sentence = p.any_of(_SENTENCES)(p)
        if split_of(p.content) == split:
            en, de = sentence()
            if en not in seen:
                seen.add(en)
                yield en, de
