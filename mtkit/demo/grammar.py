"""The grammar of the demo corpus: noun phrases, and clauses in the word order of each language.

German puts the finite verb second and the rest of the verb last, sends the finite verb to the end of subordinate
clauses, inflects articles and adjectives for gender, case and number, and chooses between haben and sein.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from mtkit.demo import lexicon as words
from mtkit.demo.lexicon import ACCUSATIVE, DATIVE, DETERMINERS, NOMINATIVE, TENSES, Agreement, Case, Phrase

# ---- noun phrases ---------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Referent:
    """A pronoun, a name, or another nominal with all its forms; `possessive` refers back to it: she sells *her* car."""

    en: str
    en_object: str
    forms: words.Forms
    agreement: Agreement
    gender: words.Gender
    possessive: words.Determiner | None = None
    is_pronoun: bool = False
    definite: bool = True
    noun: None = None

    @property
    def de(self) -> str:
        return self.forms[NOMINATIVE]

    def german(self, case: Case, *, negated: bool = False) -> str:
        """Return the form of a case; negation changes nothing."""
        return self.forms[case]


@dataclass(eq=False, slots=True)
class NounPhrase:
    """A noun with its determiner and perhaps an adjective."""

    noun: words.Noun
    determiner: words.Determiner
    is_plural: bool = False
    adjective: words.Adjective | None = None
    is_pronoun = False

    @property
    def definite(self) -> bool:
        return self.determiner.definite

    @property
    def agreement(self) -> Agreement:
        return words.THIRD_PLURAL if self.is_plural else words.THIRD

    @property
    def gender(self) -> words.Gender:
        return words.PLURAL if self.is_plural else self.noun.gender

    @property
    def possessive(self) -> words.Determiner | None:
        return _POSSESSIVES[self.gender]

    @property
    def en(self) -> str:
        phrase = self.noun.en_plural if self.is_plural else self.noun.en
        if self.adjective:
            phrase = f"{self.adjective.en} {phrase}"
        if self.determiner is DETERMINERS["a"]:
            return f"{indefinite_article(phrase)} {phrase}"
        determiner = self.determiner.en_plural if self.is_plural else self.determiner.en
        return f"{determiner} {phrase}".lstrip()

    en_object = en

    def german(self, case: Case, *, negated: bool = False) -> str:
        """Return the inflected phrase; an indefinite one is negated by "kein"."""
        determiner = DETERMINERS["no"] if negated and not self.definite else self.determiner
        phrase = (self.noun.plural if self.is_plural else self.noun.singular)[case]
        if self.adjective:
            phrase = f"{self.adjective.stem}{determiner.endings[case][self.gender]} {phrase}"
        return f"{determiner.german[case][self.gender]} {phrase}".lstrip()

    def relative_pronoun(self, case: Case) -> str:
        """Return der, den, die or das: in nominative and accusative the same as the article."""
        return DETERMINERS["the"].german[case][self.gender]

    def who(self) -> Referent:
        """Return the relative pronoun that refers to this noun, as a subject."""
        de = self.relative_pronoun(NOMINATIVE)
        return Referent("who", "who", (de,) * 3, self.agreement, self.gender, self.possessive)

    def described(self, en: str, de: str) -> Referent:
        """Append a description, whose German begins with a space or comma: the train to Berlin; the man who left."""
        cases, phrase = tuple(self.german(case) + de for case in Case), f"{self.en} {en}"
        return Referent(phrase, phrase, cases, self.agreement, self.gender)


Nominal = Referent | NounPhrase

# No possessive refers to a neuter: "the girl" takes "her", but "das Mädchen" takes "sein".
_POSSESSIVES = [DETERMINERS.get(key) for key in ("his", "her", "", "their")]
"""Possessive determiners by gender."""
NOBODY, NOTHING = Referent("", "", ("",) * 3, words.THIRD, words.NEUTER), Phrase()
PRONOUNS = {
    name: Referent(en, me, tuple(de.split()), Agreement[who], words.Gender[gender], DETERMINERS.get(my), True)
    for name, (en, me, de, who, gender, my) in words.TABLES["pronouns"].items()
}
NAMES = tuple(
    Referent(name, name, (name,) * 3, words.THIRD, gender, _POSSESSIVES[gender])
    for gender in (words.FEMININE, words.MASCULINE)
    for name in words.TABLES["names"][gender.name].split()
)


def back_reference(nominal: Nominal) -> Referent:
    """Return the pronoun that refers back to a nominal: my sister ... she."""
    if isinstance(nominal, Referent) and nominal.is_pronoun:
        return nominal
    return PRONOUNS[("he", "she", "it", "they")[nominal.gender]]


def contract(preposition: str, noun_phrase: str) -> str:
    """Put a German preposition before a noun phrase, contracted with a definite article: zu + der → zur."""
    article, _, rest = noun_phrase.partition(" ")
    contraction = words.TABLES["contractions"].get(f"{preposition} {article}")
    return f"{contraction} {rest}" if contraction else f"{preposition} {noun_phrase}"


def indefinite_article(next_word: str) -> str:
    """Choose "a" or "an" by the sound with which the next English word begins."""
    if next_word.startswith(("uni", "use", "euro", "Euro")):
        return "a"
    return "an" if next_word.startswith(("a", "e", "i", "o", "u", "E", "I", "hour", "honest")) else "a"


# ---- the clause, and its two orders ---------------------------------------------------------------------------------


def joined(*parts: str) -> str:
    """Join the non-empty parts with spaces."""
    return " ".join(filter(None, parts))


@cache
def english_verb(verb: words.Verb, tense: str, agreement: Agreement, with_auxiliary: bool) -> tuple[str, str]:
    """Return the auxiliary and the rest of the verb; "do" and "did" appear only if `with_auxiliary`."""
    rule = TENSES.get(f"{tense} of {verb.en}", TENSES[tense])
    auxiliary, pattern = rule.auxiliary[agreement], rule.after
    if rule.affirmative and not with_auxiliary:
        auxiliary, pattern = "", rule.affirmative[0 if agreement is words.THIRD else 1]
    return auxiliary, pattern.format_map(vars(verb))


@cache
def german_verb(verb: words.Verb, tense: str, agreement: Agreement) -> tuple[str, str, str]:
    """Return the finite verb, the end of a main clause, and both joined as the end of a subordinate clause."""
    if tense == "past" and verb.preterite:
        return verb.preterite[agreement], "", verb.preterite[agreement]
    if TENSES[tense].finite:
        finite, closing = TENSES[tense].finite[agreement], verb.de
    elif tense in ("past", "perfect"):
        finite, closing = words.VERBS["be" if verb.with_sein else "have"].present[agreement], verb.participle
    else:
        finite = verb.present[agreement]
        return finite, verb.particle, verb.particle + finite
    return finite, closing, f"{closing} {finite}"


@dataclass(slots=True)
class Clause:
    """A clause as a set of constituents, which each language puts in its own order.

    Attributes:
        recipient, object: the dative and the accusative object.
        complement: the constituent closest to the verb, at the end of the German middle field.
        standard: the standard of a comparison; in German it follows even the verb.
        place, time: adverbials.
        adverb: an adverb before the English main verb (often, already).
        can_be_negated: whether the scope of "not" would be clear.
    """

    subject: Nominal
    verb: words.Verb
    tense: str
    recipient: Nominal = NOBODY
    object: Nominal = NOBODY
    complement: Phrase = NOTHING
    standard: Phrase = NOTHING
    place: Phrase = NOTHING
    time: Phrase = NOTHING
    adverb: Phrase = NOTHING
    negated: bool = False
    can_be_negated: bool = True

    def english_rest(self) -> str:
        """Return what follows the verb: objects, complement, place, time."""
        objects = (self.recipient.en_object, self.object.en_object)
        return joined(*objects, self.complement.en, self.standard.en, self.place.en, self.time.en)

    def english_statement(self, *, fronted: bool = False) -> str:
        """Return subject, verb and the rest, with the time first if `fronted`."""
        if fronted:
            return f"{self.time.en} {replace(self, time=NOTHING).english_statement()}"
        auxiliary, verb = english_verb(self.verb, self.tense, self.subject.agreement, self.negated)
        if self.negated:
            auxiliary = "cannot" if auxiliary == "can" else f"{auxiliary} not"
        return joined(self.subject.en, auxiliary, self.adverb.en, verb, self.english_rest())

    def english_question(self, question_word: str = "") -> str:
        """Put the auxiliary before the subject; a question about the subject has the order of a statement."""
        if self.subject is PRONOUNS["who"]:
            return self.english_statement()
        auxiliary, verb = english_verb(self.verb, self.tense, self.subject.agreement, True)
        return joined(question_word, auxiliary, self.subject.en, self.adverb.en, verb, self.english_rest())

    def german_middle(self) -> str:
        """Return the middle field: everything between the finite verb (or the conjunction) and the end of the verb.

        Known information comes early, new information late. A pronoun, and a definite object before "nicht" or
        "schon", precede the time; an indefinite object follows time and place, and is negated by "kein".
        """
        adverb = self.adverb.de or TENSES[self.tense].adverb
        recipient, place = self.recipient.german(DATIVE), self.place.de
        thing = self.object.german(ACCUSATIVE, negated=self.negated)
        if not self.object.definite:
            return joined(recipient, self.time.de, adverb, place, thing, self.complement.de)
        nicht = "nicht" if self.negated else ""
        if self.object.is_pronoun or nicht or adverb == "schon":
            return joined(recipient, thing, self.time.de, adverb, place, nicht, self.complement.de)
        return joined(recipient, self.time.de, adverb, thing, place, self.complement.de)

    def german_statement(self, *, fronted: bool = False) -> str:
        """Put the finite verb second, after the subject or, if `fronted`, the time; the rest of the verb last."""
        if fronted:
            return replace(self, time=NOTHING).german_question(self.time.de)
        finite, closing, _ = german_verb(self.verb, self.tense, self.subject.agreement)
        subject = self.subject.german(NOMINATIVE)
        return joined(subject, finite, self.german_middle(), closing, self.standard.de)

    def german_question(self, front: str = "") -> str:
        """Put the finite verb first, or second after `front`: a question word, a time, a subordinate clause."""
        if self.subject is PRONOUNS["who"]:
            return self.german_statement()
        finite, closing, _ = german_verb(self.verb, self.tense, self.subject.agreement)
        subject = self.subject.german(NOMINATIVE)
        return joined(front, finite, subject, self.german_middle(), closing, self.standard.de)

    def german_subordinate(self, conjunction: str = "") -> str:
        """Put the whole verb last."""
        _, _, verb = german_verb(self.verb, self.tense, self.subject.agreement)
        subject = self.subject.german(NOMINATIVE)
        return joined(conjunction, subject, self.german_middle(), verb, self.standard.de)

    def german_imperative(self) -> str:
        """Return a request to a friend: Mach bitte das Fenster zu. Hilf mir bitte."""
        pronoun, rest = "", self
        if self.object.is_pronoun:
            pronoun, rest = self.object.german(ACCUSATIVE), replace(self, object=NOBODY)
        elif self.recipient.is_pronoun:
            pronoun, rest = self.recipient.german(DATIVE), replace(self, recipient=NOBODY)
        return joined(self.verb.imperative, pronoun, "bitte", rest.german_middle(), self.verb.particle)

    def german_purpose(self) -> str:
        """Return a purpose: um das Fenster zuzumachen."""
        return joined("um", self.german_middle(), self.verb.to_infinitive)
