"""The sentences of the demo corpus: sensible situations drawn at random, then expressed in both languages.

Tense and adverb of one language fix those of the other (the progressive is "gerade", the simple past is the perfect),
and "you" is always "du", so that every sentence has exactly one translation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from mtkit.demo import grammar
from mtkit.demo import lexicon as words
from mtkit.demo.grammar import NAMES, NOBODY, NOTHING, PRONOUNS, Clause, Nominal, NounPhrase, Referent, joined
from mtkit.demo.lexicon import ACTIONS, ADJECTIVES, NOUNS, PHRASES, VERBS, Phrase

T = TypeVar("T")
W = TypeVar("W", bound=Phrase | words.Adjective | words.Noun | words.Verb | Referent)
Sentence = Callable[[], tuple[str, str]]
"""A sentence that is drawn but not yet put into words; calling it returns (English, German)."""
Question = tuple[str, str, Clause]
"""A question word in both languages, and the clause without the constituent it asks for."""

# ---- the choices ----------------------------------------------------------------------------------------------------

NOMINATIVE, ACCUSATIVE, DATIVE = words.Case
A, BARE, NO, THE, MANY, _SOME = (words.DETERMINERS[key] for key in ("a", "bare", "no", "the", "many", "some"))
_DETERMINERS = {name: (determiner,) for name, determiner in words.DETERMINERS.items()}
_ONE, _SEVERAL, _DEFINITE = (
    words.grouped(f"{kind}_determiners", {**_DETERMINERS, "numerals": words.NUMERALS})
    for kind in ("singular", "plural", "definite")
)
I, YOU, HE, SHE, WE, THEY, _IT, WHO = PRONOUNS.values()  # noqa: E741
SUBJECTS = (I, YOU, HE, SHE, WE, THEY)
# A sentence must not have two translations, so objects exclude "sie" (she or they) and "her" (perhaps a possessive).
# There are no reflexive actions, nor "we" acting on "me".
OBJECTS = {
    (case, subject.agreement): tuple(
        other for other in others if other.agreement is not subject.agreement and {other, subject} != {I, WE}
    )
    for case, others in ((ACCUSATIVE, (I, YOU, HE, WE)), (DATIVE, (I, YOU, HE, WE, THEY)))
    for subject in SUBJECTS
}
_SPOTS = {
    posture: [(Phrase(en, de), words.several(nouns, NOUNS)) for en, de, nouns in rows]
    for posture, rows in words.TABLES["spots"].items()
}
_ERRANDS = [[words.Action("task", entry) for entry in pair] for pair in words.TABLES["errands"]["pairs"]]
_PROFESSIONS = [
    (Phrase(en, he), she) for (en,), (he, she) in words.entries(words.TABLES["professions"]["words"])
]
_WEAKNESSES = ADJECTIVES["weaknesses"]
_COMPARABLE, _TOO_MUCH, _ABSOLUTE = (
    words.TABLES["comparison"][key].split() for key in ("comparable", "too_much", "absolute")
)
_REPORTS = (("know", "present"), ("think", "present"), ("say", "present"), ("say", "past"), ("hear", "past"))
_ALREADY, _JUST, _YET = Phrase("already", "schon"), Phrase("just", "gerade"), Phrase("yet", "noch")


def finish(en: str, de: str, mark: str = ".") -> tuple[str, str]:
    """Add capitals and punctuation."""
    return en[0].upper() + en[1:] + mark, de[0].upper() + de[1:] + mark


def said(c: Clause, *, fronted: bool = False) -> Sentence:
    """Make a statement of a clause."""
    return lambda: finish(c.english_statement(fronted=fronted), c.german_statement(fronted=fronted))


def asked(c: Clause, en: str = "", de: str = "") -> Sentence:
    """Make a question of a clause."""
    return lambda: finish(c.english_question(en), c.german_question(de), "?")


def _with_subordinate(main: Clause, en: str, de: str, c: Clause) -> Sentence:
    """Make a sentence of a main and a subordinate clause."""
    return lambda: finish(
        joined(main.english_statement(), en, c.english_statement()),
        f"{main.german_statement()}, {c.german_subordinate(de)}",
    )


def _usual_age(person: Nominal) -> tuple[int, int]:
    """Return the minimum and maximum plausible age of a person."""
    return words.TABLES["ages"].get(person.noun.en if person.noun else "", (20, 59))


class Author:
    """Generator of random sentences that records their content words.

    Args:
        rng: the source of all random choices.
    """

    def __init__(self, rng: Random) -> None:
        self._random = rng.random
        self.content: list[str] = []

    # ---- drawing ----------------------------------------------------------------------------------------------------

    def any_of(self, choices: Sequence[T]) -> T:
        """Make a grammatical choice; an item that is repeated in `choices` is more likely."""
        return choices[int(self._random() * len(choices))]

    def keep(self, word: W) -> W:
        """Record a content word, and return it."""
        self.content.append(word.de)
        return word

    def word(self, choices: Sequence[W], unlike: object = None) -> W:
        """Choose a content word that is not `unlike`."""
        while (word := choices[int(self._random() * len(choices))]) is unlike:
            pass
        self.content.append(word.de)
        return word

    def phrase(self, group: str) -> Phrase:
        return self.word(PHRASES[group])

    def noun(self, group: str) -> words.Noun:
        return self.word(NOUNS[group])

    def integer(self, first: int, last: int) -> int:
        return first + int(self._random() * (last - first + 1))

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def now_or_then(self) -> str:
        return "past" if self.chance(0.3) else "present"

    # ---- who and what -----------------------------------------------------------------------------------------------

    def some_adjective(self, noun: words.Noun, probability: float) -> words.Adjective | None:
        return self.word(noun.adjectives) if noun.adjectives and self.chance(probability) else None

    def some_plural(self, noun: words.Noun, probability: float) -> bool:
        """Decide for or against the plural, if the noun has both numbers."""
        return not noun.en or (bool(noun.en_plural) and self.chance(probability))

    def own(self, noun: words.Noun, owner: Nominal) -> words.Determiner | None:
        """Decide whether something belongs to the subject; if so, return the possessive: she sells *her* car."""
        is_own = owner.possessive and self.chance(words.TABLES["owned"].get(noun.role, 0))
        return owner.possessive if is_own else None

    def noun_phrase(
        self, noun: words.Noun, owner: Nominal = NOBODY, definite: bool = False, adjective: float = 0.3
    ) -> NounPhrase:
        """Give a noun a determiner and perhaps an adjective; `definite` if the reader must know which one is meant."""
        is_plural = self.some_plural(noun, 0.3)
        roles = _DEFINITE if definite else _SEVERAL if is_plural else _ONE
        determiner = self.own(noun, owner) or self.any_of(roles[noun.role])
        return NounPhrase(noun, determiner, is_plural, self.some_adjective(noun, adjective))

    def the(self, group: str, adjective: float = 0.3) -> NounPhrase:
        return self.noun_phrase(self.noun(group), definite=True, adjective=adjective)

    def things_in_general(self, noun: words.Noun, owner: Nominal = NOBODY) -> NounPhrase:
        """Name objects of habitual actions: long novels, cold milk, her flowers, the kitchen."""
        if noun.role == "room":
            return self.noun_phrase(noun, owner)
        adjective = self.some_adjective(noun, 0.35)
        return NounPhrase(noun, self.own(noun, owner) or BARE, bool(noun.en_plural), adjective)

    def person(self, *, unlike: Nominal = NOBODY, adult: bool = False) -> Nominal:
        """Draw a subject. An adult is never neuter, so that a pronoun can refer back to it."""
        if self.chance(0.36):
            return self.word(SUBJECTS, unlike)
        if self.chance(0.25):
            return self.word(NAMES, unlike)
        group = "kin" if self.chance(0.45) else "adults" if adult else "people"
        noun = self.word(NOUNS[group], unlike.noun)
        definite = self.chance(0.8)
        return self.noun_phrase(noun, definite=definite, adjective=0.05 if noun.role == "kin" else 0.25)

    def other_person(self, subject: Nominal, *, definite: bool = False) -> Nominal:
        """Draw a person other than the subject, as a name or noun."""
        if self.chance(0.25):
            return self.word(NAMES, subject)
        noun = self.word(NOUNS["persons"], subject.noun)
        return self.noun_phrase(noun, subject, definite, adjective=0.15)

    def person_object(self, subject: Nominal, case: words.Case, *, definite: bool = False) -> Nominal:
        """Draw a person as the object of what the subject does."""
        if self.chance(0.2):
            return self.word(OBJECTS[case, subject.agreement])
        return self.other_person(subject, definite=definite)

    def relative_or_name(self) -> Nominal:
        """Draw one person: my sister, Paul."""
        if self.chance(0.5):
            return self.word(NAMES)
        return NounPhrase(self.noun("single_kin"), self.any_of(_DEFINITE["kin"]))

    # ---- when -------------------------------------------------------------------------------------------------------

    def date(self, first_year: int = 0, last_year: int = 0) -> Phrase:
        """Draw a date, with a year if a range is given: on 3 May 2021 = am 3. Mai 2021."""
        day, month = self.integer(1, 28), self.any_of(PHRASES["months"])
        year = f" {self.integer(first_year, last_year)}" if first_year else ""
        return self.keep(Phrase(f"on {day} {month.en}{year}", f"am {day}. {month.de}{year}"))

    def clock(self) -> Phrase:
        """Draw a time of day: at half past three = um halb vier."""
        time = self.phrase("clock_times")
        return Phrase(f"at {time.en}", f"um {time.de}")

    def span(self, when: str, units: str) -> Phrase:
        """Draw a distance in time: two days ago = vor zwei Tagen; in two days = in zwei Tagen."""
        count, unit = self.phrase("counts"), self.phrase(units)
        en, de = f"{count.en} {unit.en}", f"{count.de} {unit.de}"
        return Phrase(f"{en} ago", f"vor {de}") if when == "past" else Phrase(f"in {en}", f"in {de}")

    def time(self, when: str, *, distant: bool) -> Phrase:
        """Draw a time in the past or future: yesterday, on Monday, in two days; if `distant`, also on 3 May 2021."""
        if distant and self.chance(0.6 if when == "past" else 0.4):
            if when == "future" or self.chance(0.5):
                return self.phrase(f"distant_{when}_times")
            return self.date(1990, 2024) if self.chance(0.6) else self.span("past", "long_units")
        kind = self.integer(1, 8)
        if kind > 2:
            return self.day_or_hour(when)
        return self.span(when, "short_units") if kind == 1 else self.date()

    def day_or_hour(self, when: str) -> Phrase:
        """Draw a time of day, a weekday or another day."""
        kind = self.integer(1, 6)
        return self.clock() if kind == 1 else self.phrase("weekdays" if kind == 2 else f"{when}_times")

    def set_time(self, c: Clause, action: words.Action) -> None:
        """Add an adverb or a time that goes with the tense and the action."""
        if action.kind == "state" or c.tense == "progressive":
            return
        if c.tense == "present":
            c.can_be_negated = False  # "does not often read": the scope of "not" is unclear.
            if self.chance(0.5):
                c.adverb = self.phrase("frequencies")
            else:
                c.time = self.phrase("habits")
        elif c.tense == "perfect":
            c.adverb = self.any_of((_ALREADY, _ALREADY, _JUST))
        elif c.tense == "past" or c.tense in words.TENSES_OF["past_modals"]:
            distant = action.memorable and c.tense == "past"
            c.time = self.time("past", distant=distant) if self.chance(0.6) else NOTHING
        elif c.tense == "future":
            c.time = self.time("future", distant=action.memorable) if self.chance(0.7) else NOTHING
        elif self.chance(0.4):
            c.time = self.day_or_hour("future")

    # ---- scenes: what can happen ------------------------------------------------------------------------------------

    def act(
        self,
        action: words.Action,
        subject: Nominal,
        tense: str,
        without: str = "",
        *,
        negated: bool = False,
        definite: bool = False,
    ) -> Clause:
        """Draw an action of a subject, `without` one constituent: the object, place, complement or time."""
        c = Clause(subject, self.keep(action.verb), tense, negated=negated)
        if action.objects and without != "object":
            in_general = tense == "present" and action.kind != "state" and without != "time"
            c.object = self.thing(action.objects, subject, ACCUSATIVE, definite or negated, in_general)
        if action.to_whom:
            c.recipient = self.person_object(subject, DATIVE, definite=True)
        if action.about:
            about = self.thing(action.about, subject, action.case, definite=True)
            german = grammar.contract(action.preposition, about.german(action.case))
            c.complement = Phrase(about.en_object, german)
        if action.complements and without != "complement":
            c.complement = self.complement(action)
        if action.places and without != "place" and not negated and self.chance(0.3):
            c.place = self.word(action.places)
        if without != "time":
            self.set_time(c, action)
        return c

    def thing(
        self, nouns: words.Nouns, subject: Nominal, case: words.Case, definite: bool, in_general: bool = False
    ) -> Nominal:
        if nouns == NOUNS["persons"]:
            return self.person_object(subject, case, definite=definite)
        if in_general:
            return self.things_in_general(self.word(nouns), subject)
        return self.noun_phrase(self.word(nouns), subject, definite)

    def complement(self, action: words.Action) -> Phrase:
        """Draw the end of a clause: to Berlin by train = mit dem Zug nach Berlin."""
        goal = self.word(action.complements)
        if not action.means:
            return goal
        means = self.word(action.means)
        return Phrase(f"{goal.en} {means.en}", f"{means.de} {goal.de}")

    def doing(self) -> Clause:
        """Draw e.g.: The woman is reading a book in the garden."""
        action = self.any_of(ACTIONS["all"])
        return self.act(action, self.person(), self.any_of(words.TENSES_OF[action.kind]))

    def description(self) -> Clause:
        """Draw e.g.: The coat is too expensive. My sister was very tired."""
        if self.chance(0.5):
            subject = self.person()
            adjectives = ADJECTIVES[self.any_of(("traits", "emotions", "weaknesses"))]
        else:
            subject = self.the("things", adjective=0)
            adjectives = subject.noun.adjectives
        adjective = self.word(adjectives)
        return Clause(subject, VERBS["be"], self.now_or_then(), complement=self.degree(adjective))

    def degree(self, adjective: words.Adjective) -> Phrase:
        """Choose old, very old or too old."""
        if adjective.en in _ABSOLUTE or not self.chance(0.35):
            return Phrase(adjective.en, adjective.de)
        too = adjective.en in _TOO_MUCH and self.chance(0.5)
        very, sehr = ("too", "zu") if too else ("very", "sehr")
        return Phrase(f"{very} {adjective.en}", f"{sehr} {adjective.de}")

    def comparison(self) -> Clause:
        """Draw e.g.: The car is more expensive than the bicycle. Anna is not as tall as her brother."""
        if self.chance(0.4):
            subject = self.person()
            other = self.other_person(subject, definite=True)
            adjective = self.word(ADJECTIVES["traits"])
        else:
            group = NOUNS[self.any_of(_COMPARABLE)]
            noun = self.word(group)
            subject = self.noun_phrase(noun, definite=True, adjective=0)
            other = self.noun_phrase(self.word(group, noun), definite=True, adjective=0)
            adjective = self.word(ADJECTIVES["compared"])
        c = Clause(subject, VERBS["be"], "present", can_be_negated=False)
        en, de = other.en, other.german(NOMINATIVE)
        if self.chance(0.6):
            c.complement = Phrase(adjective.en_more, adjective.de_more)
            c.standard = Phrase(f"than {en}", f"als {de}")
        else:
            c.negated = self.chance(0.5)
            c.complement = Phrase(f"as {adjective.en}", f"{'so' if c.negated else 'genauso'} {adjective.de}")
            c.standard = Phrase(f"as {en}", f"wie {de}")
        return c

    def fact(self, subject: Nominal, en: str, de: str, verb: str = "be", tense: str = "present") -> Clause:
        """Make a clause that is never negated, because its negation would raise the question what else."""
        return Clause(subject, VERBS[verb], tense, complement=Phrase(en, de), can_be_negated=False)

    def profession(self) -> Clause:
        """Draw e.g.: My sister is a teacher. Paul was a famous singer."""
        subject = self.word((I, YOU, HE, SHE)) if self.chance(0.3) else self.relative_or_name()
        gender, (job, feminine) = subject.gender, self.any_of(_PROFESSIONS)
        en, de = self.keep(job).en, feminine if gender is words.FEMININE else job.de
        if self.chance(0.4):
            adjective = self.word(ADJECTIVES["professions"])
            inflected = adjective.stem + A.endings[NOMINATIVE][gender]
            en, de = f"{adjective.en} {en}", f"{A.german[NOMINATIVE][gender]} {inflected} {de}"
        return self.fact(subject, f"{grammar.indefinite_article(en)} {en}", de, tense=self.now_or_then())

    def age(self) -> Clause:
        """Draw e.g.: My aunt is forty-one years old. The castle is three hundred and fifty years old."""
        if self.chance(0.7):
            subject = self.relative_or_name()
            years = self.integer(*_usual_age(subject))
        elif self.chance(0.5):
            subject, years = self.the("children"), self.integer(2, 15)
        else:
            subject, years = self.the("sights"), self.integer(4, 18) * 50
        count = self.keep(words.number(years))
        return self.fact(subject, f"{count.en} years old", f"{count.de} Jahre alt")

    def price(self) -> Clause:
        """Draw e.g.: This coat costs eighty-five euros."""
        is_dear = self.chance(0.3)
        subject = self.the("dear_goods" if is_dear else "cheap_goods")
        euros = self.keep(words.number(self.integer(2, 19) * 50 if is_dear else self.integer(2, 99)))
        return self.fact(subject, f"{euros.en} euros", f"{euros.de} Euro", "cost")

    def timetable(self, *, timed: bool = True) -> Clause:
        """Draw e.g.: The train to Berlin leaves at half past three. The course took place on 3 May 2021."""
        kind = self.integer(1, 5)
        if kind <= 2:
            leaves = self.chance(0.5)
            where = self.phrase("to_cities" if leaves else "from_cities")
            vehicle = NounPhrase(self.noun("train_and_bus"), THE)
            subject = vehicle.described(where.en, f" {where.de}")
            c = Clause(subject, VERBS["leave" if leaves else "arrive"], "present")
        elif kind < 5:
            place = NounPhrase(self.noun("events" if kind == 3 else "public_places"), THE)
            verb = self.any_of(("begin", "end") if kind == 3 else ("open", "close"))
            c = Clause(place, self.keep(VERBS[verb]), "present")
        else:
            c = Clause(NounPhrase(self.noun("events"), THE), VERBS["take_place"], "past")
            c.place = self.phrase("at_cities") if self.chance(0.3) else NOTHING
        if timed:
            c.time = self.clock() if c.tense == "present" else self.date(1990, 2024)
        c.can_be_negated = False
        return c

    def birth(self) -> Clause:
        """Draw e.g.: Anna was born in Vienna on 3 May 1987."""
        subject = self.relative_or_name()
        youngest, oldest = _usual_age(subject)
        c = self.fact(subject, "born", "geboren", "be_born", "past")
        c.time = self.date(2024 - oldest, 2024 - youngest)
        c.place = self.phrase("at_cities") if self.chance(0.4) else NOTHING
        return c

    def weather(self) -> Clause:
        """Draw e.g.: It is raining in Paris. It was very cold in Berlin yesterday."""
        tense = self.any_of(("progressive", "past", "future"))
        if tense == "progressive" or self.chance(0.5):
            c = Clause(_IT, self.word((VERBS["rain"], VERBS["snow"])), tense)
        else:
            c = self.feeling(_IT, tense, ADJECTIVES["temperatures"])
        c.place = self.phrase("at_cities") if self.chance(0.7) else NOTHING
        if tense != "progressive":
            c.time = self.phrase(f"{tense}_times")
        return c

    def posture(self) -> str:
        """Decide whether things lie or stand, which German distinguishes and English does not."""
        return "stand" if self.chance(0.3) else "lie"

    def spot(self, posture: str, case: words.Case) -> Phrase:
        """Choose a spot: on the table = auf dem Tisch (where), auf den Tisch (where to)."""
        preposition, nouns = self.any_of(_SPOTS[posture])
        noun = self.word(nouns)
        self.keep(preposition)
        adjective = self.some_adjective(noun, 0.2)
        where = NounPhrase(noun, self.any_of((THE, THE, THE, THE, *_DEFINITE["kin"])), adjective=adjective)
        return Phrase(f"{preposition.en} {where.en}", grammar.contract(preposition.de, where.german(case)))

    def location(self, *, asked: bool = False) -> Clause:
        """Draw e.g.: The key is on the table."""
        posture = self.posture()
        c = Clause(self.the(posture), VERBS[posture], self.now_or_then())
        c.complement = NOTHING if asked else self.spot(posture, DATIVE)
        return c

    def placing(self) -> Clause:
        """Draw e.g.: Anna is putting the book on the shelf."""
        posture = self.posture()
        c = self.act(ACTIONS[posture][0], self.person(), self.any_of(words.TENSES_OF["task"]))
        c.complement = self.spot(posture, ACCUSATIVE)
        return c

    def ownership(self) -> Clause:
        """Draw e.g.: This car belongs to my aunt."""
        subject = self.the("goods")
        recipient = self.person_object(subject, DATIVE, definite=True)
        return Clause(subject, VERBS["belong"], "present", recipient=recipient)

    def scene(self) -> Clause:
        return self.any_of(_KINDS["scenes"])(self)

    # ---- questions --------------------------------------------------------------------------------------------------

    def content_question(self) -> Question:
        """Draw e.g.: Who bought the car? What did Anna buy? Where is the key?"""
        kind, en, de, group, missing = self.any_of(_KINDS["questions"])
        if kind == "when" and self.chance(0.3):
            return en, de, self.timetable(timed=False)
        if kind == "where" and self.chance(0.2):
            return en, de, self.location(asked=True)
        tense = self.any_of(("past", "past", "future", "have_to", "want_to")) if kind == "when" else ""
        action = self.any_of(ACTIONS[group])
        if kind == "which":
            noun = self.word(action.objects)
            is_plural = self.some_plural(noun, 0.4)
            which = words.DETERMINERS["how_many" if is_plural and noun.en else "which"]
            wanted = NounPhrase(noun, which, is_plural, self.some_adjective(noun, 0.2))
            en, de, action = wanted.en, wanted.german(ACCUSATIVE), self.any_of((action,))
        subject = WHO if kind == "who" else self.person(unlike=I)
        tense = tense or self.any_of(words.ASKED_TENSES_OF[action.kind])
        return en, de, self.act(action, subject, tense, missing)

    # ---- sentences --------------------------------------------------------------------------------------------------

    def statement(self) -> Sentence:
        """Draw e.g.: Anna did not buy the red coat yesterday. At half past three the train leaves."""
        c = self.negated(self.scene(), 0.25)
        return said(c, fronted=c.time not in (NOTHING, _YET) and self.chance(0.4))

    def negated(self, c: Clause, probability: float) -> Clause:
        """Perhaps negate a clause, if that is clear: not "two books" (how many then?) or a place (where else?)."""
        determiner = c.object.determiner if isinstance(c.object, NounPhrase) else THE
        is_clear = c.can_be_negated and c.place is NOTHING and c.tense != "would_like_to"
        if is_clear and (determiner.definite or determiner in (A, BARE)) and self.chance(probability):
            c.negated = True
            if c.tense == "perfect":  # The opposite of "already" is "not yet"
                c.adverb, c.time = NOTHING, _YET
        return c

    def yes_no_question(self) -> Sentence:
        """Draw e.g.: Does your sister live in Berlin? About oneself it remains a statement."""
        c = self.scene()
        return said(c) if c.subject in (I, WE) or c.negated else asked(c)

    def question(self) -> Sentence:
        """Draw e.g.: Where did Anna buy the coat?"""
        en, de, c = self.content_question()
        return asked(c, en, de)

    def indirect_question(self) -> Sentence:
        """Draw e.g.: Do you know where Anna bought the coat? I do not know whether the train has already arrived."""
        en, de, c = ("whether", "ob", self.scene()) if self.chance(0.3) else self.content_question()
        if self.chance(0.3):
            english = joined("do you know", en, c.english_statement())
            return lambda: finish(english, f"weißt du, {c.german_subordinate(de)}", "?")
        tense = self.any_of(("present", "want_to", "would_like_to"))
        main = Clause(self.person(unlike=c.subject), VERBS["know"], tense, negated=tense == "present")
        return _with_subordinate(main, en, de, c)

    def reported(self) -> Sentence:
        """Draw e.g.: Anna thinks that the train has already arrived."""
        verb, tense = self.any_of(_REPORTS)
        main = Clause(self.person(), self.keep(VERBS[verb]), tense)
        return _with_subordinate(main, "that", "dass", self.negated(self.scene(), 0.2))

    def feeling(self, subject: Nominal, tense: str, adjectives: Sequence[words.Adjective]) -> Clause:
        """Say how somebody feels: She is very tired."""
        return Clause(subject, VERBS["be"], tense, complement=self.degree(self.word(adjectives)))

    def duty(self, subject: Nominal, tense: str, *, negated: bool = False) -> Clause:
        """Say what somebody has to do: Paul has to work."""
        return self.act(self.any_of(ACTIONS["duties"]), subject, tense, "time", negated=negated)

    def because(self) -> Sentence:
        """Draw e.g.: Anna is happy because she found the key. Paul cannot come because he has to work."""
        subject = self.person(adult=True)
        again = grammar.back_reference(subject)
        be, can, have_to = ("past", "could", "had_to") if self.chance(0.4) else ("present", "can", "have_to")
        if self.chance(0.5):
            main = self.feeling(subject, be, ADJECTIVES["emotions"])
            doer = again if self.chance(0.6) else self.person(unlike=subject)
            reason = self.act(self.any_of(ACTIONS["doings"]), doer, "past")
        else:
            main = self.duty(subject, can, negated=True)
            is_weak = self.chance(0.4)
            reason = self.feeling(again, be, _WEAKNESSES) if is_weak else self.duty(again, have_to)
        return _with_subordinate(main, "because", "weil", reason)

    def although(self) -> Sentence:
        """Draw e.g.: Anna is cleaning the kitchen although she is tired."""
        subject = self.person(adult=True)
        do, be = ("past", "past") if self.chance(0.5) else ("progressive", "present")
        main = self.duty(subject, do)
        obstacle = self.feeling(grammar.back_reference(subject), be, _WEAKNESSES)
        return _with_subordinate(main, "although", "obwohl", obstacle)

    def condition(self) -> Sentence:
        """Draw e.g.: If it rains tomorrow, we will stay at home."""
        subject = self.person(adult=True)
        kind = self.integer(1, 3)
        duty = self.any_of(ACTIONS["duties"])
        if kind == 1:
            given = Clause(_IT, self.word((VERBS["rain"], VERBS["snow"])), "present")
            given.time = self.phrase("near_future_times")
            main = self.act(duty, subject, "future", "time", negated=self.chance(0.5))
        elif kind == 2:
            given = self.feeling(subject, "present", _WEAKNESSES)
            tense = self.any_of(("have_to", "should", "can"))
            main = self.act(duty, grammar.back_reference(subject), tense, "time", negated=True)
        else:
            given = self.act(duty, subject, "present", "time")
            main = self.feeling(self.person(unlike=subject), "future", ADJECTIVES["emotions"])
        return lambda: finish(
            f"if {given.english_statement()}, {main.english_statement()}",
            f"{given.german_subordinate('wenn')}, {main.german_question()}",
        )

    def relative_subject(self) -> Sentence:
        """Draw e.g.: The woman who bought the red car lives in Vienna."""
        head = NounPhrase(self.noun("people"), THE, self.chance(0.3))
        c = self.act(self.any_of(ACTIONS["doings"]), head.who(), "past")
        subject = head.described(c.english_statement(), f", {c.german_subordinate()},")
        if self.chance(0.3):
            return said(Clause(subject, VERBS["live"], "present", complement=self.phrase("at_cities")))
        tense, fitting = self.now_or_then(), self.any_of(("traits", "emotions", "weaknesses"))
        return said(self.feeling(subject, tense, ADJECTIVES[fitting]))

    def relative_object(self) -> Sentence:
        """Draw e.g.: The coat that Anna bought yesterday is very expensive."""
        action = self.any_of(ACTIONS["done_to_things"])
        noun = self.word(action.objects)
        head = NounPhrase(noun, THE, self.some_plural(noun, 0.3))
        c = self.act(action, self.person(), "past", "object")
        relative = c.german_subordinate(head.relative_pronoun(ACCUSATIVE))
        subject = head.described(f"that {c.english_statement()}", f", {relative},")
        return said(self.feeling(subject, self.now_or_then(), noun.adjectives))

    def purpose(self) -> Sentence:
        """Draw e.g.: Anna is going to the bakery to buy bread."""
        going, errand = self.any_of(_ERRANDS)
        subject = self.person()
        main = self.act(going, subject, self.any_of(("progressive", "past", "future", "have_to", "want_to")))
        fronted = main.time is not NOTHING and self.chance(0.5)
        aim = self.act(errand, subject, "present", "time")
        return lambda: finish(
            joined(main.english_statement(fronted=fronted), "to", aim.verb.en, aim.english_rest()),
            f"{main.german_statement(fronted=fronted)}, {aim.german_purpose()}",
        )

    def existence(self) -> Sentence:
        """Draw e.g.: There are two cups on the table. German begins with the spot."""
        posture = self.posture()
        noun = self.noun(posture)
        is_plural = self.some_plural(noun, 0.4)
        determiner = self.any_of((MANY, _SOME, *words.NUMERALS) if is_plural else (A, A, NO))
        thing = NounPhrase(noun, determiner, is_plural, self.some_adjective(noun, 0.3))
        where, tense = self.spot(posture, DATIVE), self.now_or_then()
        be, _ = grammar.english_verb(VERBS["be"], tense, thing.agreement, True)
        lies, _, _ = grammar.german_verb(VERBS[posture], tense, thing.agreement)
        en, de = f"{thing.en} {where.en}", thing.german(NOMINATIVE)
        if determiner is not NO and self.chance(0.2):
            return lambda: finish(f"{be} there {en}", f"{lies} {where.de} {de}", "?")
        return lambda: finish(f"there {be} {en}", f"{where.de} {lies} {de}")

    def request(self) -> Sentence:
        """Draw e.g.: Please close the window. Please do not throw away the newspaper."""
        negated = self.chance(0.3)
        favour, definite = self.any_of(ACTIONS["favours"]), self.chance(0.7)
        c = self.act(favour, YOU, "present", "time", negated=negated, definite=definite)
        if not negated and self.chance(0.2):
            c.time = self.phrase("near_future_times")
        please = "please do not" if negated else "please"
        return lambda: finish(joined(please, c.verb.en, c.english_rest()), c.german_imperative())

    def liking(self) -> Sentence:
        """Draw e.g.: Anna likes to drink cold milk. German has an adverb for that."""
        action = self.any_of(ACTIONS["pleasure"])
        c = Clause(self.person(), action.verb, "like_to")
        c.object = self.things_in_general(self.word(action.objects)) if action.objects else NOBODY
        c.complement = self.complement(action) if action.complements else NOTHING
        c.place = self.word(action.places) if action.places else NOTHING
        return asked(c) if c.subject not in (I, WE) and self.chance(0.2) else said(c)

    def time_of_day(self) -> Sentence:
        """Draw e.g.: It is already half past three."""
        adverb = _ALREADY if self.chance(0.5) else NOTHING
        time = self.phrase("clock_times")
        return said(Clause(_IT, VERBS["be"], "present", complement=time, adverb=adverb))

    def sentence(self) -> Sentence:
        return self.any_of(_KINDS["sentences"])(self)


_METHODS = {name: (method,) for name, method in vars(Author).items()}
_QUESTIONS = {kind: ((kind, *entry),) for kind, entry in words.TABLES["questions"].items()}
_KINDS = words.grouped("kinds", {**_METHODS, **_QUESTIONS})
