"""The words of the demo corpus, read from `lexicon.toml`: their forms, and which words go together.

Regular forms are derived; the tables have the irregular ones. German in the spelling of 1996, British English.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
TABLES: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("lexicon.toml").read_text("utf-8"))

Case = IntEnum("Case", ["NOMINATIVE", "ACCUSATIVE", "DATIVE"], start=0)
"""The German cases in use: the rows of a declension."""
Gender = IntEnum("Gender", ["MASCULINE", "FEMININE", "NEUTER", "PLURAL"], start=0)
"""Three genders, and the plural, which has none: the columns of a declension."""
Agreement = IntEnum("Agreement", ["FIRST", "SECOND", "THIRD", "FIRST_PLURAL", "THIRD_PLURAL"], start=0)
"""Person and number of a subject, with which the verb agrees; "you" is always the informal "du"."""
NOMINATIVE, ACCUSATIVE, DATIVE = Case
MASCULINE, FEMININE, NEUTER, PLURAL = Gender
FIRST, SECOND, THIRD, FIRST_PLURAL, THIRD_PLURAL = Agreement
Forms = tuple[str, ...]
"""One form for each case, or for each person."""


class Phrase(NamedTuple):
    """A fixed expression in both languages, or nothing."""

    en: str = ""
    de: str = ""


def entries(table: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the entries `a, b = c, d` of a table as ([a, b], [c, d])."""
    for entry in table.strip().replace("\n", ";").split(";"):
        english, _, german = entry.partition(" = ")
        yield [part.strip() for part in english.split(",")], [part.strip() for part in german.split(",")]


def phrases(table: str) -> tuple[Phrase, ...]:
    """Read entries `english = german`."""
    return tuple(Phrase(en, de) for (en,), (de,) in entries(table))


def several(text: str, groups: Mapping[str, tuple[T, ...]]) -> tuple[T, ...]:
    """Read `a*2 (b c)*3`: words that are drawn more often are repeated in the result."""
    found: list[T] = []
    for names, times in re.findall(r"(\([^)]*\)|\w+)(?:\*(\d+))?", text):
        for name in names.strip("()").split() * int(times or 1):
            found += groups[name]
    return tuple(found)


def grouped(table: str, groups: Mapping[str, tuple[T, ...]]) -> dict[str, tuple[T, ...]]:
    """Add the groups of a table, each made of the given groups and of groups before it."""
    found = dict(groups)
    for name, text in TABLES[table].items():
        found[name] = several(text, found)
    return found


def regular(word: str, form: str) -> str:
    """Return a regular English form, made by the first rule that matches the whole word."""
    matches = ((re.fullmatch(rule, word), result) for rule, result in TABLES["regular"][form])
    return next(match.expand(result) for match, result in matches if match)


# ---- words with their forms -----------------------------------------------------------------------------------------


class Determiner:
    """An article or a word in its place; `german` and the adjective `endings` it asks for are [case][gender].

    `definite` includes possessives: the reader knows which book "my book" is. Definite objects precede "nicht",
    indefinite ones take "kein" instead.
    """

    def __init__(self, en: str, en_plural: str, stem: str, forms: str, endings: str, definite: bool) -> None:
        tables = TABLES["declensions"]
        self.en, self.en_plural, self.definite = en, en_plural, definite
        self.german = [[stem + form.strip("-") for form in row.split()] for row in tables[forms]]
        self.endings = [row.split() for row in tables[endings]]


class Adjective:
    """An adjective with its comparatives; `stem` is the form before German endings (teuer, teur-es)."""

    def __init__(self, en: str, de: str, de_more: str = "", stem: str = "") -> None:
        base = de.removesuffix("e")
        self.en, self.en_more = en, regular(en, "comparative")
        self.de, self.de_more, self.stem = de, de_more or base + "er", stem or base


class Noun:
    """A noun with its forms by case, and the adjectives that make sense with it.

    A noun without a German plural has none in English. The `role` determines which determiners make sense: water,
    but a cup; my sister, but the doctor; somebody's car, but nobody's museum.
    """

    def __init__(self, english: list[str], german: list[str], adjectives: str, role: str) -> None:
        self.en, en_plural = (*english, "")[:2]
        first, plural, oblique = (*german, "", "")[:3]
        article, _, singular = first.rpartition(" ")
        self.de, self.role, self.adjectives = singular or plural, role, ADJECTIVES[adjectives]
        self.gender = {"der": MASCULINE, "die": FEMININE, "das": NEUTER, "": PLURAL}[article]
        self.en_plural = en_plural or (regular(self.en, "plural") if plural else "")
        self.singular = (singular, oblique or singular, oblique or singular)
        # den Häusern, but no -n after -n and -s
        self.plural = (plural, plural, re.sub("(?<=[^ns])$", "n", plural))


class Verb:
    """A verb with all its forms, from its principal parts.

    English: `en` is the plain form; words after the first ("turn on") stay behind it. German: `de`, `participle` and
    `to_infinitive` are whole words (einschalten, eingeschaltet, einzuschalten), while `present`, `preterite` and
    `imperative` lack the separable `particle`, which goes to the end of the clause. Only verbs with a `preterite` are
    used in it; the others form their past with haben, or sein if `with_sein`.
    """

    def __init__(self, parts: str) -> None:
        (english, german), *others = entries(parts)
        irregular = {key: forms for key, _, forms in (words[0].partition(" ") for words, _ in others)}

        self.en, past, participle, ing = (*english, "", "", "")[:4]
        head, blank, rest = self.en.partition(" ")
        self.third = irregular.get("third") or regular(head, "third") + blank + rest
        self.past = past or regular(head, "past") + blank + rest
        self.en_participle = participle or self.past
        self.ing = ing or regular(head, "ing") + blank + rest

        infinitive, er_form, german_past = (*german, "", "")[:3]
        self.particle, _, base = infinitive.rpartition("|")
        self.de, self.with_sein = self.particle + base, "sein" in irregular
        self.to_infinitive = f"{self.particle}zu{base}" if self.particle else f"zu {base}"
        stem = base[:-1] if base.endswith("ern") else base[:-2]
        e = "e" if stem.endswith(("d", "t", "chn", "ffn", "gn")) else ""  # du arbeitest, er öffnet
        third = er_form or f"{stem}{e}t"
        second = third[:-1] + ("t" if third[:-1].endswith(("s", "ß", "z", "x")) else "st")
        self.present = _persons(irregular.get("present", f"{stem}e {second} {third} {base} {base}"))
        self.preterite = _persons(irregular.get("preterite", ""))
        has_prefix = base.startswith(("be", "ge", "er", "ent", "ver", "zer", "emp", "über"))
        ge = "" if has_prefix or base.endswith("ieren") else "ge"
        self.participle = self.particle + (german_past or f"{ge}{stem}{e}t")
        # the imperatives are lies, but fahr
        changes_vowel = er_form and not er_form.startswith(stem) and not set(er_form) & set("äö")
        plain = f"{stem}e" if base.endswith("ern") else stem + e
        self.imperative = er_form.removesuffix("t") if changes_vowel else plain


class Tense:
    """A tense or a modal verb, and the form of the main verb in each language."""

    def __init__(self, rules: Mapping[str, Any]) -> None:
        self.auxiliary, self.finite = _persons(rules["auxiliary"]), _persons(rules.get("finite", ""))
        self.after, self.affirmative = rules["after"], rules.get("affirmative")
        self.adverb = rules.get("adverb", "")


def _persons(forms: str) -> Forms:
    """Return the forms for I, you, he, we, they; a single form is used for all."""
    found = forms.split()
    return tuple(found if len(found) > 1 else found * len(Agreement))


class Action:
    """A verb and its possible constituents; `lexicon.toml` explains the entries."""

    def __init__(self, kind: str, entry: Mapping[str, str]) -> None:
        do = entry["do"]
        self.kind, self.verb = kind, VERBS[do] if do in VERBS else Verb(do)
        self.to_whom, self.memorable = "to_whom" in entry, "memorable" in entry
        self.preposition, self.case = entry.get("preposition", ""), Case[entry.get("case", "ACCUSATIVE")]
        self.objects, self.about = (several(entry.get(key, ""), NOUNS) for key in ("objects", "about"))
        self.complements, self.means, self.places = (
            several(entry.get(key, ""), PHRASES) for key in ("complements", "means", "places")
        )


# ---- numbers and clock times ----------------------------------------------------------------------------------------

_ONES, _TENS, _CLOCK_TIMES = (phrases(TABLES["numbers"][key]) for key in ("ones", "tens", "clock_times"))


def number(n: int) -> Phrase:
    """Put a number from 0 to 999 in words: three hundred and forty-two = dreihundertzweiundvierzig."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        tens, ones = _TENS[n // 10], _ONES[n % 10]
        und = ones.de.replace("eins", "ein") + "und"
        return Phrase(f"{tens.en}-{ones.en}", und + tens.de) if n % 10 else tens
    hundreds = Phrase(f"{_ONES[n // 100].en} hundred", f"{_ONES[n // 100].de if n >= 200 else ''}hundert")
    rest = number(n % 100)
    return Phrase(f"{hundreds.en} and {rest.en}", hundreds.de + rest.de) if n % 100 else hundreds


def clock_time(hour: int, minute: int) -> Phrase:
    """Name a time of the twelve-hour clock, in steps of five minutes: half past three = halb vier."""
    pattern, now, later = _CLOCK_TIMES[minute // 5], number(hour), number(hour % 12 + 1)
    german = pattern.de.format(now=now.de, later=later.de).replace("eins Uhr", "ein Uhr")
    return Phrase(pattern.en.format(now=now.en, later=later.en), german)


# ---- the tables -----------------------------------------------------------------------------------------------------

_COUNTS = tuple(map(number, range(2, 13)))
DETERMINERS = {name: Determiner(*entry) for name, entry in TABLES["determiners"].items()}
NUMERALS = tuple(Determiner(count.en, count.en, count.de, "none", "strong", False) for count in _COUNTS)
_ADJECTIVES = {en: (Adjective(en, *german),) for (en,), german in entries(TABLES["adjectives"]["words"])}
ADJECTIVES: dict[str, tuple[Adjective, ...]] = grouped("adjective_groups", _ADJECTIVES)
Nouns = tuple[Noun, ...]
_NOUNS = {
    name: tuple(Noun(english, german, adjectives, role) for english, german in entries(words))
    for name, (adjectives, role, words) in TABLES["nouns"].items()
}
NOUNS: dict[str, Nouns] = grouped("noun_groups", _NOUNS)
_PHRASES = {name: phrases(table) for key in ("phrases", "places") for name, table in TABLES[key].items()}
for _name, (_en, _group, _de) in TABLES["after_prepositions"].items():
    _PHRASES[_name] = tuple(Phrase(f"{_en} {en}", f"{_de} {de}") for en, de in _PHRASES[_group])
_PHRASES["counts"] = _COUNTS
_PHRASES["clock_times"] = tuple(clock_time(hour, five * 5) for hour in range(1, 13) for five in range(12))
PHRASES: dict[str, tuple[Phrase, ...]] = grouped("phrase_groups", _PHRASES)
TENSES = {name: Tense(rules) for name, rules in TABLES["tenses"].items()}
TENSES_OF, ASKED_TENSES_OF = (
    grouped(table, {name: (name,) for name in TENSES}) for table in ("tenses_of", "asked_tenses_of")
)
VERBS: dict[str, Verb] = {name: Verb(parts) for name, parts in TABLES["verbs"].items()}
_ACTIONS = {kind: tuple(Action(kind, entry) for entry in rows) for kind, rows in TABLES["actions"].items()}
ACTIONS = grouped("action_groups", _ACTIONS)
_PEOPLE = NOUNS["persons"]
_WITH_THINGS = tuple(
    a for a in ACTIONS["all"] if a.objects and a.objects not in (_PEOPLE, NOUNS["languages"])
)
ACTIONS |= {
    "with_things": _WITH_THINGS,
    # "Was trägt er?" is ambiguous: he wears or carries it.
    "with_telling_verb": tuple(a for a in _WITH_THINGS if a.verb is not VERBS["carry"]),
    "done_to_things": tuple(a for a in ACTIONS["doings"] if a in _WITH_THINGS and not a.to_whom),
    "with_persons": tuple(a for a in ACTIONS["all"] if a.objects == _PEOPLE),
    "with_places": tuple(a for a in ACTIONS["all"] if a.places),
    "with_goals": tuple(a for a in ACTIONS["task"] if a.complements and not a.means),
    "favours": tuple(a for a in ACTIONS["task"] if a.objects or a.to_whom),
}
