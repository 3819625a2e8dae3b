"""The demo corpus: its grammar against hand-written forms, and the promises of `generate`."""

import re
from collections import Counter
from hashlib import sha256
from itertools import islice
from random import Random

import pytest

from mtkit.demo import lexicon
from mtkit.demo.generator import Split, generate
from mtkit.demo.grammar import PRONOUNS, Clause, NounPhrase, contract, german_verb, indefinite_article
from mtkit.demo.lexicon import Agreement, Determiner, Phrase, Verb, clock_time, number, regular
from mtkit.demo.sentences import Author
from mtkit.errors import ConfigError

NOUNS = {noun.de: noun for group in lexicon.NOUNS.values() for noun in group}
ADJECTIVES = {word.en: word for group in lexicon.ADJECTIVES.values() for word in group}
VERBS = {action.verb.en: action.verb for action in lexicon.ACTIONS["all"]}
A, BARE, HER, MANY, MY, NO, OUR, THE, THIS = (
    lexicon.DETERMINERS[name] for name in ["a", "bare", "her", "many", "my", "no", "our", "the", "this"]
)
I, YOU, HE, SHE, WE, THEY, _, WHO = PRONOUNS.values()  # noqa: E741
NOMINATIVE, ACCUSATIVE, DATIVE = lexicon.Case
THREE = lexicon.NUMERALS[1]


def phrase(
    noun: str, determiner: Determiner = THE, adjective: str | None = None, *, plural: bool = False
) -> NounPhrase:
    return NounPhrase(NOUNS[noun], determiner, plural, ADJECTIVES[adjective] if adjective else None)


# ------------------------------------------------------------------------------------------------ inflection


@pytest.mark.parametrize(
    ("given", "nominative", "accusative", "dative"),
    [
        (phrase("Mantel", THE, "old"), "der alte Mantel", "den alten Mantel", "dem alten Mantel"),
        (phrase("Mantel", A, "old"), "ein alter Mantel", "einen alten Mantel", "einem alten Mantel"),
        (phrase("Kaffee", BARE, "cold"), "kalter Kaffee", "kalten Kaffee", "kaltem Kaffee"),
        (phrase("Frau", THIS, "young"), "diese junge Frau", "diese junge Frau", "dieser jungen Frau"),
        (phrase("Frau", A, "young"), "eine junge Frau", "eine junge Frau", "einer jungen Frau"),
        (phrase("Milch", BARE, "fresh"), "frische Milch", "frische Milch", "frischer Milch"),
        (phrase("Haus", THE, "big"), "das große Haus", "das große Haus", "dem großen Haus"),
        (phrase("Haus", OUR, "big"), "unser großes Haus", "unser großes Haus", "unserem großen Haus"),
        (phrase("Brot", BARE, "fresh"), "frisches Brot", "frisches Brot", "frischem Brot"),
        (phrase("Auto", A, "expensive"), "ein teures Auto", "ein teures Auto", "einem teuren Auto"),
        (phrase("Hund", THE, "tired"), "der müde Hund", "den müden Hund", "dem müden Hund"),
        (
            phrase("Kind", THE, "nice", plural=True),
            "die netten Kinder",
            "die netten Kinder",
            "den netten Kindern",
        ),
        (
            phrase("Buch", MY, "new", plural=True),
            "meine neuen Bücher",
            "meine neuen Bücher",
            "meinen neuen Büchern",
        ),
        (phrase("Apfel", BARE, "good", plural=True), "gute Äpfel", "gute Äpfel", "guten Äpfeln"),
        (phrase("Uhr", THREE, "old", plural=True), "drei alte Uhren", "drei alte Uhren", "drei alten Uhren"),
        (
            phrase("Ball", MANY, "red", plural=True),
            "viele rote Bälle",
            "viele rote Bälle",
            "vielen roten Bällen",
        ),
        (
            phrase("Foto", NO, "old", plural=True),
            "keine alten Fotos",
            "keine alten Fotos",
            "keinen alten Fotos",
        ),
        (phrase("Student"), "der Student", "den Studenten", "dem Studenten"),
        (phrase("Nachbar", HER), "ihr Nachbar", "ihren Nachbarn", "ihrem Nachbarn"),
        (phrase("Eltern", MY, plural=True), "meine Eltern", "meine Eltern", "meinen Eltern"),
    ],
)
def test_german_noun_phrases(given: NounPhrase, nominative: str, accusative: str, dative: str) -> None:
    assert [given.german(case) for case in (NOMINATIVE, ACCUSATIVE, DATIVE)] == [
        nominative,
        accusative,
        dative,
    ]


def test_negation_turns_indefinite_articles_into_kein() -> None:
    assert phrase("Mantel", A, "new").german(ACCUSATIVE, negated=True) == "keinen neuen Mantel"
    assert phrase("Blume", BARE, "red", plural=True).german(ACCUSATIVE, negated=True) == "keine roten Blumen"
    assert phrase("Mantel", MY).german(ACCUSATIVE, negated=True) == "meinen Mantel"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (phrase("Apfel", A), "an apple"),
        (phrase("Apfel", A, "fresh"), "a fresh apple"),
        (phrase("Koffer", A, "old"), "an old suitcase"),
        (phrase("Frau", THIS, plural=True), "these women"),
        (phrase("Messer", THREE, plural=True), "three knives"),
        (phrase("Wasser", BARE, "cold"), "cold water"),
        (phrase("Kirche", MANY, plural=True), "many churches"),
    ],
)
def test_english_noun_phrases(given: NounPhrase, expected: str) -> None:
    assert given.en == expected


@pytest.mark.parametrize(
    ("verb", "present", "participle", "imperative", "with_to"),
    [
        ("buy", "kaufe kaufst kauft kaufen kaufen", "gekauft", "kauf", "zu kaufen"),
        ("work", "arbeite arbeitest arbeitet arbeiten arbeiten", "gearbeitet", "arbeite", "zu arbeiten"),
        ("read", "lese liest liest lesen lesen", "gelesen", "lies", "zu lesen"),
        ("eat", "esse isst isst essen essen", "gegessen", "iss", "zu essen"),
        ("give", "gebe gibst gibt geben geben", "gegeben", "gib", "zu geben"),
        ("drive", "fahre fährst fährt fahren fahren", "gefahren", "fahr", "zu fahren"),
        ("sell", "verkaufe verkaufst verkauft verkaufen verkaufen", "verkauft", "verkauf", "zu verkaufen"),
        (
            "repair",
            "repariere reparierst repariert reparieren reparieren",
            "repariert",
            "reparier",
            "zu reparieren",
        ),
        ("feed", "füttere fütterst füttert füttern füttern", "gefüttert", "füttere", "zu füttern"),
        ("draw", "zeichne zeichnest zeichnet zeichnen zeichnen", "gezeichnet", "zeichne", "zu zeichnen"),
        ("open", "mache machst macht machen machen", "aufgemacht", "mach", "aufzumachen"),
        ("invite", "lade lädst lädt laden laden", "eingeladen", "lade", "einzuladen"),
        ("give back", "gebe gibst gibt geben geben", "zurückgegeben", "gib", "zurückzugeben"),
        (
            "prepare",
            "bereite bereitest bereitet bereiten bereiten",
            "vorbereitet",
            "bereite",
            "vorzubereiten",
        ),
        (
            "translate",
            "übersetze übersetzt übersetzt übersetzen übersetzen",
            "übersetzt",
            "übersetz",
            "zu übersetzen",
        ),
    ],
)
def test_german_verbs(verb: str, present: str, participle: str, imperative: str, with_to: str) -> None:
    found = VERBS[verb]
    assert " ".join(found.present) == present
    assert (found.participle, found.imperative, found.to_infinitive) == (participle, imperative, with_to)


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("carry", ("carries", "carried", "carried", "carrying")),
        (
            "watch television",
            ("watches television", "watched television", "watched television", "watching television"),
        ),
        ("put on", ("puts on", "put on", "put on", "putting on")),
        ("write", ("writes", "wrote", "written", "writing")),
        ("swim", ("swims", "swam", "swum", "swimming")),
        ("travel", ("travels", "travelled", "travelled", "travelling")),
        ("visit", ("visits", "visited", "visited", "visiting")),
        ("go", ("goes", "went", "gone", "going")),
    ],
)
def test_english_verbs(verb: str, forms: tuple[str, ...]) -> None:
    found = VERBS[verb]
    assert (found.third, found.past, found.en_participle, found.ing) == forms


def test_auxiliaries_and_the_end_of_the_german_clause() -> None:
    open_ = VERBS["open"]
    assert german_verb(open_, "present", Agreement.SECOND) == ("machst", "auf", "aufmachst")
    assert german_verb(open_, "past", Agreement.THIRD) == ("hat", "aufgemacht", "aufgemacht hat")
    assert german_verb(open_, "can", Agreement.FIRST) == ("kann", "aufmachen", "aufmachen kann")
    assert german_verb(VERBS["swim"], "perfect", Agreement.THIRD_PLURAL) == (
        "sind",
        "geschwommen",
        "geschwommen sind",
    )
    assert german_verb(lexicon.VERBS["be"], "past", Agreement.FIRST_PLURAL) == ("waren", "", "waren")
    assert german_verb(lexicon.VERBS["have"], "past", Agreement.SECOND) == ("hattest", "", "hattest")


def test_regular_english() -> None:
    assert [regular(noun, "plural") for noun in ("box", "story", "boy", "church")] == [
        "boxes",
        "stories",
        "boys",
        "churches",
    ]
    assert [regular(word, "ing") for word in ("run", "open", "use", "show", "eat")] == [
        "running",
        "opening",
        "using",
        "showing",
        "eating",
    ]
    assert [
        regular(word, "comparative") for word in ("nice", "big", "happy", "modern", "tired", "young")
    ] == [
        "nicer",
        "bigger",
        "happier",
        "more modern",
        "more tired",
        "younger",
    ]
    assert [
        indefinite_article(word) for word in ("hour", "university", "ugly hat", "honest man", "used car")
    ] == [
        "an",
        "a",
        "an",
        "an",
        "a",
    ]


def test_regular_german() -> None:
    assert [
        Verb(f"do = {v}").participle
        for v in ("danken", "warten", "gehören", "erzählen", "fotografieren", "regnen")
    ] == [
        "gedankt",
        "gewartet",
        "gehört",
        "erzählt",
        "fotografiert",
        "geregnet",
    ]
    assert [
        contract(*given) for given in (("in", "dem Haus"), ("zu", "der Bank"), ("an", "das Mädchen"))
    ] == [
        "im Haus",
        "zur Bank",
        "an das Mädchen",
    ]


@pytest.mark.parametrize(
    ("n", "english", "german"),
    [
        (1, "one", "eins"),
        (12, "twelve", "zwölf"),
        (16, "sixteen", "sechzehn"),
        (17, "seventeen", "siebzehn"),
        (21, "twenty-one", "einundzwanzig"),
        (30, "thirty", "dreißig"),
        (77, "seventy-seven", "siebenundsiebzig"),
        (100, "one hundred", "hundert"),
        (101, "one hundred and one", "hunderteins"),
        (361, "three hundred and sixty-one", "dreihunderteinundsechzig"),
    ],
)
def test_numbers(n: int, english: str, german: str) -> None:
    assert number(n) == (english, german)


@pytest.mark.parametrize(
    ("hour", "minute", "english", "german"),
    [
        (1, 0, "one o'clock", "ein Uhr"),
        (1, 5, "five past one", "fünf nach eins"),
        (3, 15, "a quarter past three", "Viertel nach drei"),
        (3, 20, "twenty past three", "zwanzig nach drei"),
        (3, 25, "twenty-five past three", "fünf vor halb vier"),
        (3, 30, "half past three", "halb vier"),
        (3, 35, "twenty-five to four", "fünf nach halb vier"),
        (12, 30, "half past twelve", "halb eins"),
        (4, 45, "a quarter to five", "Viertel vor fünf"),
        (12, 50, "ten to one", "zehn vor eins"),
    ],
)
def test_clock_times(hour: int, minute: int, english: str, german: str) -> None:
    assert clock_time(hour, minute) == Phrase(english, german)


# ------------------------------------------------------------------------------------------------ word order

WOMAN, STUDENT = phrase("Frau"), phrase("Student")
YESTERDAY, TOMORROW = Phrase("yesterday", "gestern"), Phrase("tomorrow", "morgen")
KITCHEN = Phrase("in the kitchen", "in der Küche")

BUY_COAT = Clause(WOMAN, VERBS["buy"], "past", object=phrase("Mantel", THE, "red"), time=YESTERDAY)
BUY_A_COAT = Clause(WOMAN, VERBS["buy"], "past", object=phrase("Mantel", A), time=YESTERDAY)


def negated(c: Clause) -> Clause:
    return Clause(c.subject, c.verb, c.tense, c.recipient, c.object, c.complement, time=c.time, negated=True)


@pytest.mark.parametrize(
    ("clause", "english", "german"),
    [
        (
            BUY_COAT,
            "the woman bought the red coat yesterday",
            "die Frau hat gestern den roten Mantel gekauft",
        ),
        (
            negated(BUY_COAT),
            "the woman did not buy the red coat yesterday",
            "die Frau hat den roten Mantel gestern nicht gekauft",
        ),
        (
            negated(BUY_A_COAT),
            "the woman did not buy a coat yesterday",
            "die Frau hat gestern keinen Mantel gekauft",
        ),
        (
            Clause(
                SHE, VERBS["give"], "future", recipient=STUDENT, object=phrase("Ball", HER), time=TOMORROW
            ),
            "she will give the student her ball tomorrow",
            "sie wird dem Studenten morgen ihren Ball geben",
        ),
        (
            Clause(I, VERBS["call"], "perfect", object=YOU, adverb=Phrase("already", "schon")),
            "I have already called you",
            "ich habe dich schon angerufen",
        ),
        (
            Clause(WE, VERBS["read"], "progressive", object=phrase("Buch", A), place=KITCHEN),
            "we are reading a book in the kitchen",
            "wir lesen gerade in der Küche ein Buch",
        ),
        (
            Clause(WE, VERBS["read"], "progressive", object=phrase("Buch"), place=KITCHEN),
            "we are reading the book in the kitchen",
            "wir lesen gerade das Buch in der Küche",
        ),
        (
            Clause(THEY, VERBS["open"], "present", object=phrase("Fenster"), adverb=Phrase("often", "oft")),
            "they often open the window",
            "sie machen oft das Fenster auf",
        ),
        (
            Clause(
                HE,
                lexicon.VERBS["go"],
                "is_allowed_to",
                complement=Phrase("to the cinema", "ins Kino"),
                negated=True,
            ),
            "he is not allowed to go to the cinema",
            "er darf nicht ins Kino gehen",
        ),
        (
            Clause(YOU, VERBS["help"], "have_to", recipient=I),
            "you have to help me",
            "du musst mir helfen",
        ),
        (
            Clause(SHE, VERBS["drink"], "like_to", object=phrase("Milch", BARE, "cold")),
            "she likes to drink cold milk",
            "sie trinkt gern kalte Milch",
        ),
    ],
)
def test_statements(clause: Clause, english: str, german: str) -> None:
    assert (clause.english_statement(), clause.german_statement()) == (english, german)


def test_a_fronted_time_inverts_german_only() -> None:
    assert BUY_A_COAT.english_statement(fronted=True) == "yesterday the woman bought a coat"
    assert BUY_A_COAT.german_statement(fronted=True) == "gestern hat die Frau einen Mantel gekauft"


def test_questions() -> None:
    assert BUY_COAT.english_question() == "did the woman buy the red coat yesterday"
    assert BUY_COAT.german_question() == "hat die Frau gestern den roten Mantel gekauft"
    asked = Clause(STUDENT, VERBS["invite"], "would_like_to")
    assert asked.english_question("who") == "who would the student like to invite"
    assert asked.german_question("wen") == "wen möchte der Student einladen"
    who = Clause(WHO, VERBS["invite"], "present", object=WE)
    assert (who.english_question(), who.german_question()) == ("who invites us", "wer lädt uns ein")


def test_subordinate_clauses_end_with_the_verb() -> None:
    assert BUY_COAT.german_subordinate("weil") == "weil die Frau gestern den roten Mantel gekauft hat"
    invite = Clause(STUDENT, VERBS["invite"], "present", object=WE)
    assert invite.german_subordinate("wenn") == "wenn der Student uns einlädt"
    compared = Clause(
        STUDENT,
        lexicon.VERBS["be"],
        "present",
        complement=Phrase("older", "älter"),
        standard=Phrase("than I", "als ich"),
    )
    assert compared.german_subordinate("dass") == "dass der Student älter ist als ich"


def test_relative_clauses_belong_to_their_noun() -> None:
    relative = Clause(WOMAN.who(), VERBS["sleep"], "past").german_subordinate()
    sleeper = WOMAN.described("who slept", f", {relative},")
    lives = Clause(sleeper, VERBS["live"], "present", complement=Phrase("in Vienna", "in Wien"))
    assert lives.english_statement() == "the woman who slept lives in Vienna"
    assert lives.german_statement() == "die Frau, die geschlafen hat, wohnt in Wien"


def test_requests_and_purposes() -> None:
    close = Clause(YOU, VERBS["close"], "present", object=phrase("Fenster"))
    assert close.german_imperative() == "mach bitte das Fenster zu"
    assert Clause(YOU, VERBS["help"], "present", recipient=I).german_imperative() == "hilf mir bitte"
    assert close.german_purpose() == "um das Fenster zuzumachen"


# ------------------------------------------------------------------------------------------------ the corpus


@pytest.fixture(scope="module")
def splits() -> dict[str, list[tuple[str, str]]]:
    return {split: list(generate("en-de", 30_000, 1, split)) for split in ("train", "valid", "test")}


def test_the_corpus_is_the_same_everywhere() -> None:
    pairs = generate("en-de", 1000, 1, "train")
    text = "\n".join(f"{en}\t{de}" for en, de in pairs)
    assert (
        sha256(text.encode()).hexdigest()
        == "b6631c26bb5fef0ffdd8ea5ad8332786c7f3d126d0a54b291201af145139a9ed"
    )


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "9c1475c33536d217754d34f3366acaa0c47aab4cd2df4ca639d8b22a5919d1c9"),
        ("valid", "ca305782e51afe7b2614abd888f48261623cfb9aa9f91ea4aa59f50f796a4f43"),
        ("test", "923706dc0ca030da1ccae6db5c93634db0428d9e6f3bf27eeadbf1c130928cbb"),
    ],
)
def test_ten_thousand_pairs_are_the_same_to_the_letter(
    splits: dict[str, list[tuple[str, str]]], split: str, expected: str
) -> None:
    text = "\n".join(f"{en}\t{de}" for en, de in splits[split][:10_000])
    assert sha256(text.encode()).hexdigest() == expected


def test_a_longer_request_begins_with_a_shorter_one(splits: dict[str, list[tuple[str, str]]]) -> None:
    assert list(generate("en-de", 300, 1, "valid")) == splits["valid"][:300]
    assert list(generate("en-de", 0, 1, "valid")) == []


def test_the_other_direction_is_the_same_corpus(splits: dict[str, list[tuple[str, str]]]) -> None:
    assert list(generate("de-en", 300, 1, "test")) == [(de, en) for en, de in splits["test"][:300]]


def test_seeds_differ(splits: dict[str, list[tuple[str, str]]]) -> None:
    other = set(generate("en-de", 1000, 2, "train"))
    assert len(other & set(splits["train"])) < 200


def test_no_sentence_is_in_two_splits_on_either_side(splits: dict[str, list[tuple[str, str]]]) -> None:
    for side in (0, 1):
        train, valid, test = ({pair[side] for pair in splits[split]} for split in ("train", "valid", "test"))
        assert not train & valid
        assert not train & test
        assert not valid & test


def test_splits_share_no_sentence_under_other_seeds(splits: dict[str, list[tuple[str, str]]]) -> None:
    train = {de for _, de in splits["train"]}
    assert train.isdisjoint(de for _, de in generate("en-de", 3000, 7, "test"))


def test_pairs_are_distinct_and_a_sentence_has_one_translation(
    splits: dict[str, list[tuple[str, str]]],
) -> None:
    pairs = [pair for split in splits.values() for pair in split]
    assert len(set(pairs)) == 90_000
    assert len({en for en, _ in pairs}) == 90_000
    assert len({de for _, de in pairs}) == 90_000


def test_both_sentences_determine_the_content_words() -> None:
    """The splits rely on this: a sentence, in either language, cannot come from two lists of content words."""
    rng = Random(3)
    known: dict[str, list[str]] = {}
    for _ in range(20_000):
        author = Author(rng)
        sentence = author.sentence()
        for text in sentence():
            assert known.setdefault(text, sorted(author.content)) == sorted(author.content), text


def test_sentences_are_well_formed(splits: dict[str, list[tuple[str, str]]]) -> None:
    well_formed = re.compile(r"[A-ZÄÖÜ0-9][\wäöüÄÖÜßé',. -]*\w[.?]")
    for en, de in splits["train"]:
        for text in (en, de):
            assert well_formed.fullmatch(text), text
            assert "  " not in text
            assert " ," not in text
            assert " ." not in text
        assert en[-1] == de[-1]


def test_lengths_are_mixed(splits: dict[str, list[tuple[str, str]]]) -> None:
    lengths = Counter(len(en.split()) for en, _ in splits["train"])
    assert sum(count for length, count in lengths.items() if 4 <= length <= 16) > 0.9 * 30_000
    assert max(lengths) < 30
    assert len([length for length, count in lengths.items() if count > 300]) >= 12


def test_words_are_translated_not_copied(splits: dict[str, list[tuple[str, str]]]) -> None:
    copied = sum(len(set(en.split()) & set(de.split())) / len(en.split()) for en, de in splits["train"])
    assert copied / 30_000 < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("en-fr", 1, 1, "train"), "en-fr"),
        (("en-de", 1, 1, "dev"), "dev"),
        (("en-de", 10**9, 1, "test"), "1000000000"),
        (("en-de", -1, 1, "test"), "-1"),
    ],
)
def test_what_it_cannot_give_is_refused_at_once(arguments: tuple[str, int, int, Split], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        generate(*arguments)
    assert caught.value.hint


# ------------------------------------------------------------------------------------------------ the lexicon


def test_lexemes_translate_one_to_one() -> None:
    assert len({noun.en or noun.en_plural for noun in NOUNS.values()}) == len(NOUNS)
    for adjective in ADJECTIVES.values():
        same = {other.en for other in ADJECTIVES.values() if other.de == adjective.de}
        assert same == {adjective.en} or same == {"big", "tall"}


def test_nouns_have_the_forms_they_need() -> None:
    for noun in NOUNS.values():
        assert bool(noun.en) == bool(noun.singular[0])
        assert bool(noun.en_plural) == bool(noun.plural[0])
        assert noun.en or noun.en_plural
        for form in (*noun.singular, *noun.plural):
            assert form == "" or re.fullmatch(r"[A-ZÄÖÜ][\wäöüßé]+", form)
    assert len(NOUNS) >= 200


def test_verbs_translate_one_to_one_but_for_what_stands_beside_them() -> None:
    pairs = {(action.verb.en, action.verb.de) for action in lexicon.ACTIONS["all"]}
    assert len(pairs) >= 100
    ambiguous = {en for en, count in Counter(en for en, _ in pairs).items() if count > 1}
    assert ambiguous == {"go"}  # on foot or not: to the park by bus


def test_verb_reads_principal_parts() -> None:
    found = Verb("take off, took off, taken off = aus|ziehen, zieht, gezogen")
    assert (found.third, found.past, found.ing) == ("takes off", "took off", "taking off")
    assert (found.de, found.particle, found.participle) == ("ausziehen", "aus", "ausgezogen")


def test_the_first_pairs_can_be_taken_without_drawing_the_rest() -> None:
    assert len(list(islice(generate("en-de", 1_000_000, 5, "valid"), 3))) == 3
