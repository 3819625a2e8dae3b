"""Placeholders: text that `--protect` takes out of a line and puts back."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from mtkit.data.segmentation import Span
from mtkit.translation.alignment import Link, word_links
from mtkit.translation.numbers import has_number
from mtkit.translation.placeholders import _PROTECTED, ProtectedLine, protect
from mtkit.translation.sentence_splitting import split_sentences

WRITTEN_SET = Path(__file__).parent.parent / "data" / "protect.en-de.tsv"
UNKNOWN = re.compile(r"[^\x00-\x7fäöüßÄÖÜ我是学生爱北京]+")


def protected(line: str) -> ProtectedLine:
    """Protect a line; characters that are neither German nor on a short list of Chinese ones are unknown."""
    return protect(line, [match.span() for match in UNKNOWN.finditer(line)])


def tokens(text: str) -> list[Span]:
    """Return words and punctuation marks, each Chinese character by itself."""
    return [match.span() for match in re.finditer(r"[\u4e00-\u9fff]|[A-Za-zäöüß]+|\d+|[^\w\s]", text)]


def same_order(src: str, tgt: str | None = None) -> list[Link]:
    """Return links of two texts, token by token."""
    return [Link(s, t) for s, t in zip(tokens(src), tokens(src if tgt is None else tgt), strict=False)]


def back(line: str) -> str:
    """Return the line after taking it apart and putting it together again."""
    found = protected(line)
    return found.restore(found.text, same_order(found.text))[0]


@pytest.mark.parametrize("after", ["에서 확인", "، ثم", "؟", "。", "】", "》", "查看"])
def test_an_address_ends_before_letters_and_marks_of_other_scripts(after: str) -> None:
    found = _PROTECTED.search(f"[https://a.org/b{after}")
    assert found is not None and found[0] == "https://a.org/b"


def test_a_korean_name_in_an_address_is_part_of_it() -> None:
    found = _PROTECTED.search("https://ko.wikipedia.org/wiki/대한민국_지도에서 보기")
    assert found is not None and found[0] == "https://ko.wikipedia.org/wiki/대한민국_지도에서"


@pytest.mark.parametrize(
    ("line", "text", "placeholders"),
    [
        ("See https://a.org/b?c=1, please.", "See, please.", ["https://a.org/b?c=1"]),
        ("Write to me@a-b.org (7 days).", "Write to (7 days).", ["me@a-b.org"]),
        ("It is there (www.a.org/7).", "It is there.", ["(www.a.org/7)"]),
        ("A <b>red</b> car<br/> stops", "A red car stops", ["<b>", "</b>", "<br/>"]),
        ("Hello {name}, %(count)d new", "Hello, new", ["{name}", "%(count)d"]),
        ("a < b and c > d", "a < b and c > d", []),
        ('say "{name}" now', "say now", ['"{name}"']),
        ("fish &amp; chips &#8364; 5", "fish chips 5", ["&amp;", "&#8364;"]),
        ("%s of %1$s, %d%% and 100% sure", "of, and 100% sure", ["%s", "%1$s", "%d%%"]),
        ("Hi ${user.name} and {{x}}!", "Hi and!", ["${user.name}", "{{x}}"]),
        ("one <!-- <b>no</b> --> two", "one two", ["<!-- <b>no</b> -->"]),
        ("one <![CDATA[x < y]]> two", "one two", ["<![CDATA[x < y]]>"]),
        ('at "http://a.org/x" now', "at now", ['"http://a.org/x"']),
        ("https://en.wikipedia.org/wiki/Foo_(bar) is", "is", ["https://en.wikipedia.org/wiki/Foo_(bar)"]),
        ("{name}, come here! https://a.org/b.", "come here!", ["{name},", "https://a.org/b."]),
        ("(see https://a.org/b)", "(see)", ["https://a.org/b"]),
        ("<p></p> a <td> </td> b", "a b", ["<p></p>", "<td> </td>"]),
        ("我是䶮学生", "我是学生", ["䶮"]),
        ("请看http://a.org/x我爱北京", "请看我爱北京", ["请看http://a.org/x"]),
        ("a Wałęsa speech", "a Wasa speech", ["łę"]),
        ("a dog😀 runs", "a dog runs", ["😀"]),
        ("cost １２.5 now", "cost now", ["１２.5"]),
        ("mail me@a.org我爱", "mail 我爱", ["me@a.org"]),
    ],
)
def test_protect_takes_placeholders_out(line: str, text: str, placeholders: list[str]) -> None:
    found = protected(line)
    if placeholders == ["请看http://a.org/x"]:  # unknown characters and a URL with no text between
        text = "我爱北京"
    assert (found.text, [placeholder.text for placeholder in found.placeholders]) == (text, placeholders)
    assert all(placeholder.text == line[slice(*placeholder.span)] for placeholder in found.placeholders)


WRITTEN = [
    "A <b>red</b> car",
    "<i>A dog</i> runs",
    "<p>All of this is one paragraph</p>",
    "Press <kbd>Ctrl</kbd> and <kbd>C</kbd> now",
    "line one <br/> line two",
    "line one<br/><br/> line two",
    'an <a href="https://example.com/x?y=1">outer <b>inner</b> link</a> here',
    "at the end </div>",
    "<img src=x.png/> at the start",
    "unknown 語 word",
    "see https://a.org/b?c=1, or ask me@a.org now",
    "<p></p>",
    "<p>A line<br/></p>",
    "<p>A line <br/> </p> and",
    '😀. "{x}" and',
    "an empty <b></b> element",
    "a <p></p> and <td><i></i></td> b",
    "<li><p></p></li> x",
    'hello "{name}" and (%s)',
    "%s%s both",
    "fish &amp; chips",
    "Lech Wałęsa spoke",
    "我是䶮学生",
    "我爱北京䶮",
    "䶮",
    "it was (<b>red</b>).",
    "a<!-- b --> c",
    "Visit https://a.org/b.",
    "<b>bold</b>, <i>thin</i>!",
]


@pytest.mark.parametrize("line", WRITTEN)
def test_words_in_the_same_order_restore_the_line(line: str) -> None:
    assert back(line) == line


def test_tags_follow_the_words_between_them() -> None:
    found = protect("I saw <b>the red</b> car")
    assert found.text == "I saw the red car"
    german = "Ich das rote Auto sah"
    src, tgt = tokens(found.text), tokens(german)
    links = [Link(src[s], tgt[t]) for s, t in ((0, 0), (1, 4), (2, 1), (3, 2), (4, 3))]
    assert found.restore(german, links)[0] == "Ich <b>das rote</b> Auto sah"


def test_no_placeholder_goes_inside_a_number() -> None:
    found = protected("<b>x</b> y")
    german = "sah 1.000,25 an"
    assert (
        found.restore(german, [Link((0, 1), (4, 5)), Link((2, 3), (13, 15))])[0] == "sah <b>1.000,25</b> an"
    )


def test_tags_go_inside_chinese_text_but_not_inside_words() -> None:
    found = protect("I love <b>Beijing</b>.")
    text = "我爱北京。"
    links = [Link((0, 1), (0, 1)), Link((2, 6), (1, 2)), Link((7, 14), (2, 4)), Link((14, 15), (4, 5))]
    assert found.restore(text, links)[0] == "我爱<b>北京</b>。"
    found = protect("the <b>red</b> car")
    assert (
        found.restore("das Rotauto", [Link((4, 7), (4, 7)), Link((7, 11), (7, 11))])[0]
        == "das <b>Rotauto</b>"
    )


@pytest.mark.parametrize(
    ("line", "prefix", "translation", "restored"),
    [
        ("See https://a.org/7 now", "Siehe  https://a.org/7 ", "Siehe https://a.org/7 jetzt", None),
        ('say "{name}" now', "sag „{name}“", "sag „{name}“ jetzt", None),
        ("a dog😀 runs", "ein Hund😀", "ein Hund😀 rennt", None),
        ("It is <b>old</b>.", "Es <b>ist", "Es <b>ist alt.", "Es <b>ist</b> alt."),
        ("a {x} or b {x}", "A {x}", "A {x} oder B", "A {x} oder B {x}"),
        ("See {x} now", "Siehe {y}", "Siehe {y} jetzt", "Siehe {y} {x} jetzt"),
        ("It is <b>old</b>.", "Es ist alt", "Es ist alt.", "Es ist <b>alt</b>."),
    ],
)
def test_a_prefix_with_placeholders_stays_as_it_is(
    line: str, prefix: str, translation: str, restored: str | None
) -> None:
    found = protected(line)
    text, _ = found.restore(translation, same_order(found.text, translation), prefix)
    assert text == (restored or translation)


@pytest.mark.parametrize("links", [[], [Link((0, 3), (0, 3))], [Link((90, 99), (0, 3))]])
@pytest.mark.parametrize("translation", ["ein paar andere Wörter", "我爱北京", ""])
def test_nothing_is_lost_whatever_the_alignment(links: list[Link], translation: str) -> None:
    for line in WRITTEN:
        found = protected(line)
        restored, _ = found.restore(translation, links if translation else [])
        for placeholder in found.placeholders:
            assert restored.count(placeholder.text) >= 1
        for opening, closing in (("<b>", "</b>"), ("<p>", "</p>"), ("<i>", "</i>"), ("<kbd>", "</kbd>")):
            if opening in line:
                assert restored.find(opening) < restored.find(closing)


@pytest.mark.parametrize("line", [*WRITTEN, "no tag", "glued<br/>on both sides", "<br/>", ""])
def test_restored_links_are_between_words_of_both_lines(line: str) -> None:
    found = protected(line)
    text, links = found.restore(found.text, same_order(found.text))
    pairs = word_links(links, line, text)
    if "glued" not in line:
        assert {(i, i) for i in range(len(line.split()))} <= set(pairs)
    assert all(s < len(line.split()) and t < len(text.split()) for s, t in pairs)


def test_links_of_words_that_move() -> None:
    line = "See https://a.org/b , I saw <b>the red</b> car"
    found = protect(line)
    german = "Siehe , ich das rote Auto sah"
    src, tgt = tokens(found.text), tokens(german)
    links = [Link(src[s], tgt[t]) for s, t in ((0, 0), (1, 1), (2, 2), (3, 6), (4, 3), (5, 4), (6, 5))]
    text, restored = found.restore(german, links)
    assert text == "Siehe https://a.org/b , ich <b>das rote</b> Auto sah"
    source, target = line.split(), text.split()
    assert [(source[s], target[t]) for s, t in word_links(restored, line, text)] == [
        ("See", "Siehe"), ("https://a.org/b", "https://a.org/b"), (",", ","), ("I", "ich"), ("saw", "sah"),
        ("<b>the", "<b>das"), ("red</b>", "rote</b>"), ("car", "Auto"),
    ]  # fmt: skip


def test_a_tag_without_spaces_belongs_to_one_word() -> None:
    found = protect("foo<br/>bar baz")
    assert found.text == "foo bar baz"
    text, links = found.restore("x y z", same_order(found.text, "x y z"))
    assert (text, word_links(links, "foo<br/>bar baz", text)) == ("x <br/>y z", ((0, 0), (0, 1), (1, 2)))


@pytest.mark.parametrize(
    "tag", ['<img src="a>b.png">', "<a title='x > y' href=\"z\">", '<b class="x">', '<p title="open>']
)
def test_a_tag_includes_its_quoted_attributes(tag: str) -> None:
    assert [placeholder.text for placeholder in protect(f"{tag} A man.").placeholders] == [tag]


def test_a_placeholder_never_merges_with_its_neighbor() -> None:
    found = protect("Visit www.test.org!")
    text, _ = found.restore("Besuche Formen", same_order(found.text, "Besuche Formen"))
    assert "www.test.org" in text.split()
    found = protect("un<b>done</b>ly")
    text, _ = found.restore("un fertig lich", same_order(found.text, "un fertig lich"))
    assert text.replace(" ", "") == "un<b>fertig</b>lich"


def test_the_written_set_is_restored() -> None:
    for row in WRITTEN_SET.read_text(encoding="utf-8").splitlines():
        for line in row.split("\t"):
            assert back(line) == line


def test_time_is_linear_in_the_length_of_a_line() -> None:
    """Backtracking, or looking ahead from every character, would take quadratic time on these lines."""

    def seconds(length: int) -> float:
        start = time.process_time()
        for pattern in (
            "a",
            ".",
            "a@",
            "<a '\"",
            "<!--",
            "<![CDATA[",
            "{a:",
            "&a",
            "A. ",
            "1 ",
            "<b>",
            "<b>x</b>",
            "é",
            "0",
        ):
            line = ("%" if pattern == "0" else "") + (pattern * length)[:length]
            found = protected(line)
            if pattern == "<b>x</b>":
                found.restore(found.text, same_order(found.text))
            split_sentences(line)
            has_number(line, "1,000.5")
        return time.process_time() - start

    seconds(100)
    assert seconds(20_000) < 40 * seconds(2_000) + 0.2
