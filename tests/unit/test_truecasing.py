"""Lines in capitals or title case: their usual case by the vocabulary, and translations in the same case."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from test_translator import tiny_config

from mtkit.config.sections import DecodingConfig, TokenizerConfig
from mtkit.data.perturbation import upper
from mtkit.data.readers import Pair
from mtkit.data.tokenizer import Tokenizers, make_tokenizers
from mtkit.model.build import make_model
from mtkit.translation.options import TranslateOptions
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator
from mtkit.translation.truecasing import is_in_capitals, may_be_title, restore_title, truecase, usual_case

PAIRS = [
    Pair(f"{who} {sees} {what} in {where}{end}", f"{wer} {sieht} {das} in {where}{end}")
    for who, wer in (("Tom", "Tom"), ("the old man", "der alte Mann"), ("NATO", "die NATO"), ("I", "ich"))
    for sees, sieht in (("sees", "sieht"), ("hears", "hört"))
    for what, das in (("a bird", "einen Vogel"), ("the street", "die Straße"), ("it", "es"))
    for where in ("Boston", "Paris")
    for end in (".", "?")
]


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return make_tokenizers(TokenizerConfig(vocab_size=420, type="bpe", character_coverage=1.0), PAIRS)


@pytest.fixture(scope="module")
def translator(tokenizers: Tokenizers) -> Translator:
    torch.manual_seed(1)
    return Translator(make_model(tiny_config(), tokenizers).eval(), tokenizers, DecodingConfig(beam_size=2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HELLO", True), ("THE STRAßE, 3!", True), ("ΚΑΛΗΜΕΡΑ ΚΟΣΜΕ", True), ("NATO", True),
        ("I", False), ("A 1", False), ("Hello", False), ("HELLO <b>", False), ("123 ...", False), ("", False),
        ("日本語", False), ("他在XYZ公司工作。", False), ("شركة IBM", False),
    ],
)  # fmt: skip
def test_what_is_in_capitals(text: str, expected: bool) -> None:
    assert is_in_capitals(text) == expected


TITLES = (
    "The Old Man Sees It.", "The Old Man and the Sea", "“The Old Man” (A Story)", "Der Alte Mann und das Meer",
    "(The Old Man) and [the Sea]", "The Best Movies Of 2024", "Angela Merkel Visits Paris",
    "Write To a@b.de Or Www.x.de",
)  # fmt: skip
NO_TITLES = (
    "Tom and Mary are in the US.", "Is Tom in the US or UK?", "We got PCs and TVs.", "The UN and the EU met.",
    "A PhD in IT is fun.", "How old is the Eiffel Tower?", "I saw Tom on Monday.", "I see Tom and Mary.", "Tom Smith",
    "When in Rome, do as the Romans do.", "Did Tom go to Boston?", "Are you OK, Tom?", "NASA, ESA and JAXA",
    "The aged Man Sees Tom", "I am Tom", "", "123 ...", "日本語 日本語 日本語", "Tom Sees iphones Here",
    "شاهدت The Old Man And The Sea أمس",
)  # fmt: skip


def test_what_may_be_a_title() -> None:
    assert [text for text in TITLES if not may_be_title(text)] == []
    assert [text for text in NO_TITLES if may_be_title(text)] == []


def test_titles_are_told_from_names_and_german(tokenizers: Tokenizers) -> None:
    src, tgt = tokenizers.src, tokenizers.tgt
    for line in (
        "Tom Tom Tom Boston Paris", "NATO Tom Paris", "Vogel, Straße, Mann.", "the old man sees it.",
        "Angela Merkel Emmanuel Macron Joe Biden", "Boeing, Airbus, Lockheed, Raytheon",
    ):  # fmt: skip
        assert usual_case(line, src) == (line, None)
    assert usual_case("The Old Man Sees Tom in Boston.", src) == (
        "The old man sees Tom in Boston.",
        restore_title,
    )
    assert usual_case("Der Alte Mann Sieht Die Straße", tgt) == (
        "Der alte Mann sieht die Straße",
        restore_title,
    )
    assert (
        usual_case("The Old <B>Man</B> Sees A@b.c In 1984", src)[0] == "The old <B>Man</B> sees A@b.c in 1984"
    )
    assert usual_case("The Old Man-İ Sees The Street", src)[0] == "The old Man-İ sees the street"
    assert usual_case("THE OLD MAN", src) == ("The old man", upper)


def test_what_titles_get_back() -> None:
    assert (
        restore_title("„der alte“ mann: a@b.de, www.x.de und <b>er</b> ŉ")
        == "„Der Alte“ Mann: a@b.de, www.x.de Und <b>er</b> ŉ"
    )


@pytest.mark.parametrize("pair", PAIRS[::7])
def test_lines_that_the_vocabulary_was_learned_from_get_their_case_back(
    pair: Pair, tokenizers: Tokenizers
) -> None:
    for text, tokenizer in zip(pair, (tokenizers.src, tokenizers.tgt), strict=True):
        usual = text[:1].upper() + text[1:]
        assert truecase(text.upper().replace("STRASSE", "STRAßE"), tokenizer) == usual
        assert truecase(f"{text.upper().replace('STRASSE', 'STRAßE')} {text.upper()}", tokenizer).startswith(
            f"{usual} {text[:1].upper()}"
        )


def test_any_text_keeps_its_length_and_its_letters(tokenizers: Tokenizers) -> None:
    rng = random.Random(1)
    letters = "ABCÄÖÜIİŁΣΆЖԱႠǅǄŉﬁẞß'’-.,!?()\"«»123 \t  "
    for _ in range(300):
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(30)))
        found = truecase(text, tokenizers.src)
        assert len(found) == len(text)
        assert all(
            a == b or a.lower() == b.lower() or a.upper() == b for a, b in zip(found, text, strict=True)
        )


@pytest.mark.parametrize("change", [upper, restore_title])
def test_a_line_is_translated_as_in_its_usual_case(
    translator: Translator, change: Callable[[str], str]
) -> None:
    plain = "The old man sees the street in Boston."
    options = TranslateOptions(keep_links=True, keep_log_probs=True)
    usual, changed, mixed = translator.translate([plain, change(plain), "Tom SEES it."], options)
    assert changed.text == change(usual.text) and changed.score == pytest.approx(usual.score)
    assert changed.links == usual.links and changed.text != usual.text
    assert [sum(part.lengths) for part in changed.log_probs] == [len(changed.text)]
    assert mixed.text == next(translator.translate(["Tom SEES it."])).text


def test_what_is_taken_as_it_is(translator: Translator, tokenizers: Tokenizers) -> None:
    line = "THE STREET"
    [ids] = tokenizers.src.encode([line])

    def taken(request: Request, translator: Translator = translator) -> tuple[bool, bool]:
        [found] = translator.segmenter.segment_lines([request])
        [segment] = found.segments
        return segment.restore_case is not None, segment.ids.tolist() == ids.tolist()

    assert taken(Request(line)) == (True, False)
    for request in (
        Request(line, keep_case=True), Request(line, prefix="der"), Request(line, constraints=(("Vogel",),)),
    ):  # fmt: skip
        assert taken(request) == (False, True)
    without = Translator(translator.model, tokenizers, DecodingConfig(truecase=False))
    assert taken(Request(line), without) == (False, True)
    [nato] = translator.segmenter.segment_lines([Request("NATO")])
    assert nato.segments[0].restore_case is None, "the usual case is capitals"
    usual, given = translator.score(["The street", line], ["die Straße", "die Straße"])
    assert usual.score != given.score, "pairs are scored as they are"
