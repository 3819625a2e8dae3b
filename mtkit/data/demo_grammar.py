"""The grammar of the demo corpus: how words are inflected and clauses put in order, in English and German.

Top down: the categories (case, gender, person), articles and adjective endings, nouns, verbs and their tenses,
numbers and clock times, noun phrases, and last the `Clause`, which both languages put into words in their own
order. The regular forms are derived; the tables of `demo_lexicon.py` give what cannot be. German after the
spelling of 1996; the English is British.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from typing import Literal, NamedTuple

# ------------------------------------------------------------------------------- grammatical categories


class Case(IntEnum):
    """The German cases in use, the rows of a declension table."""

    NOMINATIVE = 0
    ACCUSATIVE = 1
    DATIVE = 2


class Gender(IntEnum):
    """The columns of a declension table: three genders, and the plural, which knows no gender."""

    MASCULINE = 0
    FEMININE = 1
    NEUTER = 2
    PLURAL = 3


class Agreement(IntEnum):
    """Person and number of a subject, as its verb sees them; "you" is always the informal "du"."""

    FIRST = 0
    SECOND = 1
    THIRD = 2
    FIRST_PLURAL = 3
    THIRD_PLURAL = 4


NOMINATIVE, ACCUSATIVE, DATIVE = Case
MASCULINE, FEMININE, NEUTER, PLURAL = Gender

ByCase = tuple[str, str, str]
ByPerson = tuple[str, str, str, str, str]
Declension = tuple[tuple[str, ...], ...]  # [case][gender]


def _declension(nominative: str, accusative: str, dative: str) -> Declension:
    """A table of three rows with four columns; "-" is the empty form."""
    rows = (nominative, accusative, dative)
    return tuple(tuple(form.strip("-") for form in row.split()) for row in rows)


def _persons(forms: str) -> ByPerson:
    """The forms for ich, du, er, wir, sie (plural); one form alone serves for all."""
    found = forms.split()
    first, second, third, we, they = found if len(found) > 1 else found * 5
    return first, second, third, we, they


class Phrase(NamedTuple):
    """A fixed expression in both languages."""

    en: str
    de: str


# --------------------------------------------------------------------------- articles and adjective endings


@dataclass(frozen=True, eq=False)
class Determiner:
    """An article or what stands in its place, and the adjective endings it asks for.

    `definite` also holds for possessives: what "my book" refers to is known. Definite objects move ahead of
    "nicht", indefinite ones take "kein" instead.
    """

    en: str
    en_plural: str
    german: Declension
    endings: Declension
    definite: bool


# After a word that shows the case itself (der), after one that does not always (ein), after none.
WEAK = _declension("e e e en", "en e e en", "en en en en")
MIXED = _declension("er e es en", "en e es en", "en en en en")
STRONG = _declension("er e es e", "en e es e", "em er em en")

_DER = _declension("der die das die", "den die das die", "dem der dem den")
_NOTHING = _declension("- - - -", "- - - -", "- - - -")


def _stem_with(endings: Declension, stem: str) -> Declension:
    return tuple(tuple(stem + ending for ending in row) for row in endings)


def _like_der(en: str, en_plural: str, stem: str) -> Determiner:
    forms = _stem_with(_declension("er e es e", "en e es e", "em er em en"), stem)
    return Determiner(en, en_plural, forms, WEAK, definite=True)


def _like_ein(en: str, stem: str, *, definite: bool) -> Determiner:
    forms = _stem_with(_declension("- e - e", "en e - e", "em er em en"), stem)
    return Determiner(en, en, forms, MIXED, definite)


def _quantity(en: str, *forms: str) -> Determiner:
    """A number or the like: plural only, the adjective strong. One form alone serves for all cases."""
    nominative, accusative, dative = forms if len(forms) > 1 else forms * 3
    return Determiner(en, en, ((nominative,) * 4, (accusative,) * 4, (dative,) * 4), STRONG, definite=False)


THE = Determiner("the", "the", _DER, WEAK, definite=True)
THIS = _like_der("this", "these", "dies")
WHICH = _like_der("which", "which", "welch")
A = _like_ein("a", "ein", definite=False)
NO = _like_ein("no", "kein", definite=False)
BARE = Determiner("", "", _NOTHING, STRONG, definite=False)
HOW_MANY = _quantity("how many", "wie viele", "wie viele", "wie vielen")
MANY = _quantity("many", "viele", "viele", "vielen")
SOME = _quantity("some", "einige", "einige", "einigen")
MY = _like_ein("my", "mein", definite=True)
YOUR = _like_ein("your", "dein", definite=True)
HIS = _like_ein("his", "sein", definite=True)
HER = _like_ein("her", "ihr", definite=True)
OUR = _like_ein("our", "unser", definite=True)
THEIR = _like_ein("their", "ihr", definite=True)

# Without "ans": one does not think "ans Mädchen".
_CONTRACTIONS = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "von dem": "vom",
    "bei dem": "beim",
    "zu dem": "zum",
    "zu der": "zur",
}


def contract(preposition: str, noun_phrase: str) -> str:
    """Puts a German preposition before a noun phrase, melting it with a definite article: zu + der → zur."""
    article, _, rest = noun_phrase.partition(" ")
    melted = _CONTRACTIONS.get(f"{preposition} {article}")
    return f"{melted} {rest}" if melted else f"{preposition} {noun_phrase}"


def indefinite_article(next_word: str) -> str:
    """ "a" or "an", by the sound with which the next English word begins."""
    if next_word.startswith(("uni", "use", "euro", "Euro")):
        return "a"
    return "an" if next_word.startswith(("a", "e", "i", "o", "u", "E", "I", "hour", "honest")) else "a"


# --------------------------------------------------------------------------------------------- adjectives


@dataclass(frozen=True, eq=False)
class Adjective:
    """An adjective with its comparatives; `stem` is what the German endings are put to (teuer, teur-es)."""

    en: str
    en_more: str
    de: str
    stem: str
    de_more: str


def english_comparative(word: str) -> str:
    """Regular comparison: bigger, nicer, happier, but more modern."""
    stem = word.removesuffix("e")
    groups = sum(
        letter in "aeiouy" and (i == 0 or stem[i - 1] not in "aeiouy") for i, letter in enumerate(stem)
    )
    if word.endswith("y") and groups <= 2:
        return word[:-1] + "ier"
    if groups > 1:
        return f"more {word}"
    return (stem if word.endswith("e") else _doubled(word)) + "er"


# -------------------------------------------------------------------------------------------------- nouns


Role = Literal["thing", "mass", "room", "public", "person", "kin", "language"]


@dataclass(frozen=True, eq=False)
class Noun:
    """A noun with its forms and the adjectives that make sense with it.

    `en` and `singular` are empty for words that are plural only, `en_plural` and `plural` for those without a
    plural. The `role` says which determiners make sense: there is water, but a cup; my sister, but the doctor;
    somebody's car, but nobody's museum.
    """

    de: str
    en: str
    en_plural: str
    gender: Gender
    singular: ByCase
    plural: ByCase
    adjectives: tuple[Adjective, ...]
    role: Role


def english_plural(noun: str) -> str:
    """The regular plural: books, boxes, cherries."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def german_dative_plural(plural: str) -> str:
    """den Häusern; no -n after -n and -s."""
    return plural if plural.endswith(("n", "s")) else plural + "n"


# -------------------------------------------------------------------------------------------------- verbs


@dataclass(frozen=True, eq=False)
class Verb:
    """A verb with all its forms.

    English: `en` is the plain form; words after the first ("turn on") stay behind it. German: `infinitive`,
    `participle` and `to_infinitive` are whole words (einschalten, eingeschaltet, einzuschalten), while
    `present`, `preterite` and `imperative` lack the separable `particle`, which goes to the end of the clause.
    Only verbs with a `preterite` are used in it; the others form their past with haben, or sein if `with_sein`.
    """

    en: str
    third: str
    past: str
    en_participle: str
    ing: str
    particle: str
    infinitive: str
    present: ByPerson
    preterite: ByPerson | None
    participle: str
    with_sein: bool
    imperative: str
    to_infinitive: str

    @property
    def de(self) -> str:
        """The dictionary form."""
        return self.infinitive


_VOWELS = "aeiou"
_INSEPARABLE = ("be", "ge", "er", "ent", "ver", "zer", "emp", "über")


def _doubled(word: str) -> str:
    """Doubles the last consonant of a short syllable: stop → stopp, but not of eat, open or show."""
    short = (
        len(word) > 2
        and word[-1] not in _VOWELS + "wxy"
        and word[-2] in _VOWELS
        and sum(letter in _VOWELS for letter in word) == 1
    )
    return word + word[-1] if short else word


def english_third(verb: str) -> str:
    """reads, watches, goes, carries."""
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        return verb[:-1] + "ies"
    return verb + "s"


def english_past(verb: str) -> str:
    """opened, used, carried, planned."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        return verb[:-1] + "ied"
    return _doubled(verb) + "ed"


def english_ing(verb: str) -> str:
    """opening, using, running."""
    stem = verb[:-1] if verb.endswith("e") and not verb.endswith(("ee", "ye")) and verb != "be" else verb
    return (_doubled(verb) if stem == verb else stem) + "ing"


def german_stem(infinitive: str) -> str:
    """The infinitive without -en or -n: les-, fütter-."""
    return infinitive[:-1] if infinitive.endswith("ern") else infinitive[:-2]


def _needs_e(stem: str) -> bool:
    """Whether -st and -t need an e before them to be pronounceable: du arbeitest, er öffnet."""
    return stem.endswith(("d", "t", "chn", "ffn", "gn"))


def german_present(infinitive: str, third: str = "") -> ByPerson:
    """ich, du, er, wir, sie in the present; `third` gives the er-form of a verb that changes its vowel."""
    stem = german_stem(infinitive)
    third = third or stem + ("et" if _needs_e(stem) else "t")
    base = third[:-1]
    second = base + ("t" if base.endswith(("s", "ß", "z", "x")) else "st")
    return stem + "e", second, third, infinitive, infinitive


def german_participle(infinitive: str) -> str:
    """The participle of a weak verb: gekauft, gearbeitet, verkauft, repariert."""
    stem = german_stem(infinitive)
    prefix = "" if infinitive.startswith(_INSEPARABLE) or infinitive.endswith("ieren") else "ge"
    return prefix + stem + ("et" if _needs_e(stem) else "t")


def german_command(infinitive: str, third: str = "") -> str:
    """The command to a friend: kauf, warte, lies, but fahr."""
    stem = german_stem(infinitive)
    if third and not third.startswith(stem) and not set(third) & set("äö"):
        return third.removesuffix("t")
    return stem + "e" if _needs_e(stem) or infinitive.endswith("ern") else stem


def verb(
    english: str,
    german: str,
    *,
    with_sein: bool = False,
    present: str = "",
    preterite: str = "",
    third: str = "",
) -> Verb:
    """A verb from its principal parts; a separable particle is set off by a bar: `auf|machen`.

    Args:
        english: `write, wrote, written`, `buy, bought` or just `cook`; fourth, an irregular -ing form.
        german: `schreiben, schreibt, geschrieben` (participle without particle), or just `kochen` if weak.
        with_sein: the perfect is formed with sein.
        present: the five German forms, if they cannot be derived.
        preterite: the five German forms, if the past of this verb is not said in the perfect.
        third: the English form of the third person, if irregular.
    """
    parts = [part.strip() for part in english.split(",")]
    en, past = parts[0], parts[1] if len(parts) > 1 else ""
    head, blank, rest = en.partition(" ")
    past = past or english_past(head) + blank + rest
    particle, _, base = german.split(",")[0].rpartition("|")
    _, er_form, participle = ([part.strip() for part in german.split(",")] + ["", ""])[:3]
    return Verb(
        en=en,
        third=third or english_third(head) + blank + rest,
        past=past,
        en_participle=parts[2] if len(parts) > 2 else past,
        ing=parts[3] if len(parts) > 3 else english_ing(head) + blank + rest,
        particle=particle,
        infinitive=particle + base,
        present=_persons(present) if present else german_present(base, er_form),
        preterite=_persons(preterite) if preterite else None,
        participle=particle + (participle or german_participle(base)),
        with_sein=with_sein,
        imperative=german_command(base, er_form),
        to_infinitive=f"{particle}zu{base}" if particle else f"zu {base}",
    )


BE = verb(
    "be, was, been",
    "sein, ist, gewesen",
    with_sein=True,
    present="bin bist ist sind sind",
    preterite="war warst war waren waren",
)
HAVE = verb(
    "have, had",
    "haben, hat, gehabt",
    present="habe hast hat haben haben",
    preterite="hatte hattest hatte hatten hatten",
    third="has",
)


# ------------------------------------------------------------------------------------------------- tenses


@dataclass(frozen=True, eq=False)
class Tense:
    """A tense or a modal verb: what becomes of the verb in each language.

    Args:
        auxiliary: the English verb that agrees with the subject and carries "not" and questions.
        after: the pattern of what follows it.
        affirmative: patterns for affirmative statements, if they lack the auxiliary: third person, others.
        finite: the German finite forms, followed by an infinitive; None if the verb itself or its haben or
            sein is finite.
        adverb: a German adverb that stands for what English says by the tense.
    """

    auxiliary: ByPerson
    after: str
    affirmative: tuple[str, str] | None = None
    finite: ByPerson | None = None
    adverb: str = ""


AM = _persons("am are is are are")
WAS = _persons("was were was were were")
_DO, _DID = _persons("do do does do do"), _persons("did")
_HAVE = _persons("have have has have have")

PRESENT = Tense(_DO, "{plain}", ("{third}", "{plain}"))
PROGRESSIVE = Tense(AM, "{ing}", adverb="gerade")
PAST = Tense(_DID, "{plain}", ("{past}", "{past}"))  # German: the perfect, rarely the preterite
PERFECT = Tense(_HAVE, "{participle}")
LIKE_TO = Tense(_DO, "like to {plain}", ("likes to {plain}", "like to {plain}"), adverb="gern")
FUTURE = Tense(_persons("will"), "{plain}", finite=_persons("werde wirst wird werden werden"))

CAN = Tense(_persons("can"), "{plain}", finite=_persons("kann kannst kann können können"))
COULD = Tense(_persons("could"), "{plain}", finite=_persons("konnte konntest konnte konnten konnten"))
SHOULD = Tense(_persons("should"), "{plain}", finite=_persons("sollte solltest sollte sollten sollten"))
IS_ALLOWED_TO = Tense(AM, "allowed to {plain}", finite=_persons("darf darfst darf dürfen dürfen"))
WAS_ALLOWED_TO = Tense(WAS, "allowed to {plain}", finite=_persons("durfte durftest durfte durften durften"))
WOULD_LIKE_TO = Tense(
    _persons("would"), "like to {plain}", finite=_persons("möchte möchtest möchte möchten möchten")
)
WANT_TO = Tense(
    _DO,
    "want to {plain}",
    affirmative=("wants to {plain}", "want to {plain}"),
    finite=_persons("will willst will wollen wollen"),
)
WANTED_TO = Tense(
    _DID,
    "want to {plain}",
    affirmative=("wanted to {plain}", "wanted to {plain}"),
    finite=_persons("wollte wolltest wollte wollten wollten"),
)
HAVE_TO = Tense(
    _DO,
    "have to {plain}",
    affirmative=("has to {plain}", "have to {plain}"),
    finite=_persons("muss musst muss müssen müssen"),
)
HAD_TO = Tense(
    _DID,
    "have to {plain}",
    affirmative=("had to {plain}", "had to {plain}"),
    finite=_persons("musste musstest musste mussten mussten"),
)
MODALS = (CAN, SHOULD, IS_ALLOWED_TO, WOULD_LIKE_TO, WANT_TO, HAVE_TO)
PAST_MODALS = (COULD, WAS_ALLOWED_TO, WANTED_TO, HAD_TO)

# ------------------------------------------------------------------------------------------------ numbers

_ENGLISH_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_GERMAN_ONES = [
    "null",
    "eins",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "zehn",
    "elf",
    "zwölf",
    "dreizehn",
    "vierzehn",
    "fünfzehn",
    "sechzehn",
    "siebzehn",
    "achtzehn",
    "neunzehn",
]
_ENGLISH_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_GERMAN_TENS = [
    "-",
    "-",
    "zwanzig",
    "dreißig",
    "vierzig",
    "fünfzig",
    "sechzig",
    "siebzig",
    "achtzig",
    "neunzig",
]


def english_number(n: int) -> str:
    """A number from 0 to 999 in words: three hundred and forty-two."""
    if n < 20:
        return _ENGLISH_ONES[n]
    if n < 100:
        tens, ones = divmod(n, 10)
        return _ENGLISH_TENS[tens] + (f"-{_ENGLISH_ONES[ones]}" if ones else "")
    hundreds, rest = divmod(n, 100)
    return f"{_ENGLISH_ONES[hundreds]} hundred" + (f" and {english_number(rest)}" if rest else "")


def german_number(n: int) -> str:
    """A number from 0 to 999 in words, the ones before the tens: dreihundertzweiundvierzig."""
    if n < 20:
        return _GERMAN_ONES[n]
    if n < 100:
        tens, ones = divmod(n, 10)
        return (f"{_german_factor(ones)}und" if ones else "") + _GERMAN_TENS[tens]
    hundreds, rest = divmod(n, 100)
    factor = _german_factor(hundreds) if hundreds > 1 else ""
    return f"{factor}hundert" + (german_number(rest) if rest else "")


def _german_factor(n: int) -> str:
    """A number as the first part of a compound: einundzwanzig, not einsundzwanzig."""
    return "ein" if n == 1 else _GERMAN_ONES[n]


def number(n: int) -> Phrase:
    """A number in words, in both languages."""
    return Phrase(english_number(n), german_number(n))


def clock_time(hour: int, minute: int) -> Phrase:
    """A time of the twelve-hour clock, in steps of five minutes: half past three = halb vier.

    English counts from the last hour up to the half and down to the next after it; German names the half by
    the hour that it leads up to, and counts the five minutes around it from the half.
    """
    next_hour = hour % 12 + 1
    en, en_next = english_number(hour), english_number(next_hour)
    de, de_next = german_number(hour), german_number(next_hour)
    match minute:
        case 0:
            return Phrase(f"{en} o'clock", f"{_german_factor(hour)} Uhr")
        case 5 | 10 | 20:
            return Phrase(f"{english_number(minute)} past {en}", f"{german_number(minute)} nach {de}")
        case 15:
            return Phrase(f"a quarter past {en}", f"Viertel nach {de}")
        case 25:
            return Phrase(f"twenty-five past {en}", f"fünf vor halb {de_next}")
        case 30:
            return Phrase(f"half past {en}", f"halb {de_next}")
        case 35:
            return Phrase(f"twenty-five to {en_next}", f"fünf nach halb {de_next}")
        case 40 | 50 | 55:
            left = 60 - minute
            return Phrase(f"{english_number(left)} to {en_next}", f"{german_number(left)} vor {de_next}")
        case 45:
            return Phrase(f"a quarter to {en_next}", f"Viertel vor {de_next}")
        case _:
            raise ValueError(f"no name for minute {minute}")


NUMERALS = tuple(_quantity(english_number(n), german_number(n)) for n in range(2, 13))
CLOCK_TIMES = tuple(clock_time(hour, minute) for hour in range(1, 13) for minute in range(0, 60, 5))


# ------------------------------------------------------------------------------------- nominals: who and what


@dataclass(frozen=True, eq=False)
class Referent:
    """A pronoun, a name, or another nominal of which all forms are known."""

    de: str
    en: str
    en_object: str
    forms: ByCase
    agreement: Agreement
    gender: Gender
    possessive: Determiner | None  # what refers back to it: the woman sells *her* car
    is_pronoun: bool = False
    definite: bool = True

    def german(self, case: Case, *, negated: bool = False) -> str:
        """The form of this case; negation changes nothing."""
        return self.forms[case]


@dataclass(slots=True)
class NounPhrase:
    """A noun with its determiner and perhaps an adjective."""

    noun: Noun
    determiner: Determiner
    is_plural: bool = False
    adjective: Adjective | None = None

    @property
    def is_pronoun(self) -> bool:
        return False

    @property
    def definite(self) -> bool:
        return self.determiner.definite

    @property
    def gender(self) -> Gender:
        return PLURAL if self.is_plural else self.noun.gender

    @property
    def agreement(self) -> Agreement:
        return Agreement.THIRD_PLURAL if self.is_plural else Agreement.THIRD

    @property
    def possessive(self) -> Determiner | None:
        return _POSSESSIVES[self.gender]

    @property
    def en(self) -> str:
        phrase = self.noun.en_plural if self.is_plural else self.noun.en
        if self.adjective:
            phrase = f"{self.adjective.en} {phrase}"
        if self.determiner is A:
            return f"{indefinite_article(phrase)} {phrase}"
        determiner = self.determiner.en_plural if self.is_plural else self.determiner.en
        return f"{determiner} {phrase}" if determiner else phrase

    @property
    def en_object(self) -> str:
        return self.en

    def german(self, case: Case, *, negated: bool = False) -> str:
        """The inflected phrase; an indefinite one is negated by "kein"."""
        determiner = NO if negated and not self.determiner.definite else self.determiner
        gender = PLURAL if self.is_plural else self.noun.gender
        phrase = self.noun.plural[case] if self.is_plural else self.noun.singular[case]
        if self.adjective:
            phrase = f"{self.adjective.stem}{determiner.endings[case][gender]} {phrase}"
        article = determiner.german[case][gender]
        return f"{article} {phrase}" if article else phrase


Nominal = Referent | NounPhrase

# Nothing refers back to neuters: the girl does it with "her", das Mädchen with "sein".
_POSSESSIVES = {MASCULINE: HIS, FEMININE: HER, NEUTER: None, PLURAL: THEIR}


def _pronoun(
    en: str, en_object: str, forms: str, agreement: Agreement, gender: Gender, possessive: Determiner | None
) -> Referent:
    nominative, accusative, dative = forms.split()
    cases = (nominative, accusative, dative)
    return Referent(nominative, en, en_object, cases, agreement, gender, possessive, is_pronoun=True)


I = _pronoun("I", "me", "ich mich mir", Agreement.FIRST, MASCULINE, MY)  # noqa: E741
YOU = _pronoun("you", "you", "du dich dir", Agreement.SECOND, MASCULINE, YOUR)
HE = _pronoun("he", "him", "er ihn ihm", Agreement.THIRD, MASCULINE, HIS)
SHE = _pronoun("she", "her", "sie sie ihr", Agreement.THIRD, FEMININE, HER)
WE = _pronoun("we", "us", "wir uns uns", Agreement.FIRST_PLURAL, PLURAL, OUR)
THEY = _pronoun("they", "them", "sie sie ihnen", Agreement.THIRD_PLURAL, PLURAL, THEIR)
IT = _pronoun("it", "it", "es es ihm", Agreement.THIRD, NEUTER, None)
WHO = _pronoun("who", "who", "wer wen wem", Agreement.THIRD, NEUTER, None)


def name(name: str, gender: Gender) -> Referent:
    """Somebody's name; it is the same in both languages and all cases."""
    return Referent(name, name, name, (name,) * 3, Agreement.THIRD, gender, _POSSESSIVES[gender])


def described(head: NounPhrase, en: str, de: str) -> Referent:
    """A noun and what is said of it: the train to Berlin; the man who bought the car.

    The German part brings its own blank or comma.
    """
    cases = (head.german(NOMINATIVE) + de, head.german(ACCUSATIVE) + de, head.german(DATIVE) + de)
    phrase = f"{head.en} {en}"
    return Referent(cases[0], phrase, phrase, cases, head.agreement, head.gender, None)


def relative_pronoun(head: Nominal, case: Case) -> str:
    """der, den, die, das: in nominative and accusative the same as the article."""
    return _DER[case][head.gender]


def who_of(head: Nominal) -> Referent:
    """The relative pronoun that is the subject of what is said about `head`."""
    de = relative_pronoun(head, NOMINATIVE)
    return Referent(de, "who", "who", (de,) * 3, head.agreement, head.gender, head.possessive)


def back_reference(nominal: Nominal) -> Referent:
    """The pronoun that takes up a nominal: my sister ... she."""
    if isinstance(nominal, Referent) and nominal.is_pronoun:
        return nominal
    return {MASCULINE: HE, FEMININE: SHE, NEUTER: IT, PLURAL: THEY}[nominal.gender]


# --------------------------------------------------------------------------- the clause, and its two orders


@dataclass(slots=True)
class Clause:
    """One situation. The fields are the places that words can take; each language has its own order of them.

    Args:
        recipient, object: the dative and the accusative object.
        complement: what belongs so closely to the verb that it ends the German middle field.
        standard: what is compared to; in German it follows even the verb.
        place, time: free additions.
        adverb: stands before the English main verb (often, already).
        can_be_negated: whether "not" would be clear.
    """

    subject: Nominal
    verb: Verb
    tense: Tense
    recipient: Nominal | None = None
    object: Nominal | None = None
    complement: Phrase | None = None
    standard: Phrase | None = None
    place: Phrase | None = None
    time: Phrase | None = None
    adverb: Phrase | None = None
    negated: bool = False
    can_be_negated: bool = True


@cache
def english_verb(verb: Verb, tense: Tense, agreement: Agreement, with_auxiliary: bool) -> tuple[str, str]:
    """The auxiliary and the rest of the verb; "do" and "did" stand only where an auxiliary is asked for."""
    if verb.en == "be" and tense in (PRESENT, PAST):
        return (AM if tense is PRESENT else WAS)[agreement], ""
    auxiliary, pattern = tense.auxiliary[agreement], tense.after
    if tense.affirmative and not with_auxiliary:
        auxiliary, pattern = "", tense.affirmative[0 if agreement is Agreement.THIRD else 1]
    rest = pattern.format(
        plain=verb.en, third=verb.third, past=verb.past, ing=verb.ing, participle=verb.en_participle
    )
    return auxiliary, rest


@cache
def german_verb(verb: Verb, tense: Tense, agreement: Agreement) -> tuple[str, str, str]:
    """The finite verb, what closes the main clause, and both together as they end a subordinate clause."""
    if tense.finite:
        finite = tense.finite[agreement]
        return finite, verb.infinitive, f"{verb.infinitive} {finite}"
    if tense is PAST and verb.preterite:
        finite = verb.preterite[agreement]
        return finite, "", finite
    if tense in (PAST, PERFECT):
        finite = (BE if verb.with_sein else HAVE).present[agreement]
        return finite, verb.participle, f"{verb.participle} {finite}"
    finite = verb.present[agreement]
    return finite, verb.particle, verb.particle + finite


def joined(*parts: str | None) -> str:
    """The parts that are there, with blanks between."""
    return " ".join([part for part in parts if part])


def english_rest(c: Clause, *, fronted: bool = False) -> str:
    """What follows the verb: objects, complement, place, time."""
    return joined(
        c.recipient.en_object if c.recipient else None,
        c.object.en_object if c.object else None,
        c.complement and c.complement.en,
        c.standard and c.standard.en,
        c.place and c.place.en,
        c.time.en if c.time and not fronted else None,
    )


def english_statement(c: Clause, *, fronted: bool = False) -> str:
    """Subject, verb, and the rest; with the time first if `fronted`."""
    auxiliary, verb = english_verb(c.verb, c.tense, c.subject.agreement, c.negated)
    if c.negated:
        auxiliary = "cannot" if auxiliary == "can" else f"{auxiliary} not"
    return joined(
        c.time.en if c.time and fronted else None,
        c.subject.en,
        auxiliary,
        c.adverb and c.adverb.en,
        verb,
        english_rest(c, fronted=fronted),
    )


def english_question(c: Clause, question_word: str = "") -> str:
    """The auxiliary before the subject; but who acted is asked in the order of a statement."""
    if c.subject is WHO:
        return english_statement(c)
    auxiliary, verb = english_verb(c.verb, c.tense, c.subject.agreement, True)
    return joined(question_word, auxiliary, c.subject.en, c.adverb and c.adverb.en, verb, english_rest(c))


def german_middle(c: Clause, *, fronted: bool = False) -> str:
    """The middle field: what stands between the finite verb (or the conjunction) and the end of the verb.

    What is known comes early, what is new comes late. A pronoun, and a definite object that "nicht" or "schon"
    is to follow, precede the time; an indefinite object follows time and place and has "kein" for "nicht".
    """
    adverb = c.adverb.de if c.adverb else c.tense.adverb
    place = c.place.de if c.place else None
    early = late = place_before = place_after = None
    if c.object is None:
        place_before = place
    elif c.object.is_pronoun or (c.object.definite and (c.negated or adverb == "schon")):
        early, place_after = c.object.german(ACCUSATIVE), place
    elif c.object.definite:
        late, place_after = c.object.german(ACCUSATIVE), place
    else:
        late, place_before = c.object.german(ACCUSATIVE, negated=c.negated), place
    has_kein = c.object is not None and not c.object.definite
    return joined(
        c.recipient.german(DATIVE) if c.recipient else None,
        early,
        c.time.de if c.time and not fronted else None,
        adverb,
        place_before,
        late,
        place_after,
        "nicht" if c.negated and not has_kein else None,
        c.complement and c.complement.de,
    )


def german_statement(c: Clause, *, fronted: bool = False) -> str:
    """The finite verb second, after the subject or, if `fronted`, the time; the rest of the verb last."""
    if fronted and c.time:
        return _verb_second(c, c.time.de, c.subject.german(NOMINATIVE), german_middle(c, fronted=True))
    return _verb_second(c, c.subject.german(NOMINATIVE), german_middle(c))


def german_question(c: Clause, question_word: str = "") -> str:
    """The finite verb first, or second after the question word; so is a main clause after a subordinate one."""
    if c.subject is WHO:
        return german_statement(c)
    return _verb_second(c, question_word, c.subject.german(NOMINATIVE), german_middle(c))


def _verb_second(c: Clause, first: str, *middle: str) -> str:
    finite, closing, _ = german_verb(c.verb, c.tense, c.subject.agreement)
    return joined(first, finite, *middle, closing, c.standard and c.standard.de)


def german_subordinate(c: Clause, conjunction: str = "") -> str:
    """The whole verb last."""
    verb = german_verb(c.verb, c.tense, c.subject.agreement)[2]
    subject = c.subject.german(NOMINATIVE)
    return joined(conjunction, subject, german_middle(c), verb, c.standard and c.standard.de)


def german_imperative(c: Clause) -> str:
    """A request to a friend: Mach bitte das Fenster zu. Hilf mir bitte."""
    pronoun = ""
    if c.object and c.object.is_pronoun:
        pronoun, c = c.object.german(ACCUSATIVE), replace(c, object=None)
    elif c.recipient and c.recipient.is_pronoun:
        pronoun, c = c.recipient.german(DATIVE), replace(c, recipient=None)
    return joined(c.verb.imperative, pronoun, "bitte", german_middle(c), c.verb.particle)


def german_purpose(c: Clause) -> str:
    """What an action is for: um das Fenster zuzumachen."""
    return joined("um", german_middle(c), c.verb.to_infinitive)
