"""What `--protect` takes out of a line and puts back."""

from __future__ import annotations

import pytest

from mtkit.decoding.alignment import Aligned, WordLinks, join_links, word_numbers
from mtkit.decoding.protect import protect


def same_order(number: int) -> list[tuple[int, int]]:
    return [(i, i) for i in range(number)]


@pytest.mark.parametrize(
    ("line", "text", "kept"),
    [
        ("It cost 3,500 euros on 12/05/2021.", "It cost 3,500 euros on 12/05/2021.", ("3,500", "12/05/2021")),
        ("See https://a.org/b?c=1, please.", "See, please.", ()),
        ("Write to me@a-b.org (7 days).", "Write to (7 days).", ("7",)),
        ("It is there (www.a.org/7).", "It is there (www.a.org/7).", ("www.a.org/7",)),
        ("A <b>red</b> car<br/> stops", "A red car stops", ()),
        ("Hello {name}, %(count)d new", "Hello, new", ()),
        ("a < b and c > d", "a < b and c > d", ()),
    ],
)
def test_what_is_kept_and_taken_out(line: str, text: str, kept: tuple[str, ...]) -> None:
    found = protect(line, lambda word: True)
    assert found.text.replace(" ,", ",") == text
    assert found.kept == kept


WRITTEN = [
    "A <b>red</b> car",
    "<i>A dog</i> runs",
    "<p>All of this is one paragraph</p>",
    "Press <kbd>Ctrl</kbd> and <kbd>C</kbd> now",
    "line one <br/> line two",
    'an <a href="https://example.com/x?y=1">outer <b>inner</b> link</a> here',
    "at the end </div>",
    "<img src=x.png/> at the start",
    "unknown 語 word",
    "see https://a.org/b?c=1, or ask me@a.org now",
]


@pytest.mark.parametrize("line", WRITTEN)
def test_words_that_stay_in_order_give_the_line_back(line: str) -> None:
    found = protect(line, lambda word: word.isascii())
    assert found.restore(found.text, same_order(len(found.text.split())))[0] == line


def test_tags_go_where_the_words_between_them_went() -> None:
    found = protect("I saw <b>the red</b> car", lambda word: True)
    assert found.text == "I saw the red car"
    links = [(0, 0), (1, 4), (2, 1), (3, 2), (4, 3)]
    assert found.restore("Ich das rote Auto sah", links)[0] == "Ich <b>das rote</b> Auto sah"


@pytest.mark.parametrize("links", [[], [(0, 0)], [(9, 0)]])
def test_nothing_is_lost_whatever_the_alignment(links: list[tuple[int, int]]) -> None:
    for line in WRITTEN:
        found = protect(line, lambda word: word.isascii())
        restored, _ = found.restore("ein paar andere Wörter", links)
        assert all(inset.text in restored for inset in found.insets)


@pytest.mark.parametrize("line", [*WRITTEN, "no tag", "glued<br/>on both sides", "<br/>", ""])
def test_links_are_between_words_of_the_line_and_of_what_is_given(line: str) -> None:
    found = protect(line, lambda word: word.isascii())
    _, links = found.restore(found.text, same_order(len(found.text.split())))
    if "glued" not in line:
        assert list(links) == same_order(len(line.split()))


def test_links_of_words_that_move() -> None:
    line = "See https://a.org/b , I saw <b>the red</b> car"
    found = protect(line, lambda word: True)
    assert found.text == "See , I saw the red car"
    #                         0    1 2  3   4   5    6
    links = [(0, 0), (1, 1), (2, 2), (3, 6), (4, 3), (5, 4), (6, 5)]
    text, restored = found.restore("Siehe , ich das rote Auto sah", links)
    assert text == "Siehe https://a.org/b , ich <b>das rote</b> Auto sah"
    source, target = line.split(), text.split()
    assert [(source[s], target[t]) for s, t in restored] == [
        ("See", "Siehe"), ("https://a.org/b", "https://a.org/b"), (",", ","), ("I", "ich"), ("saw", "sah"),
        ("<b>the", "<b>das"), ("red</b>", "rote</b>"), ("car", "Auto"),
    ]  # fmt: skip


def test_a_tag_between_two_words_is_a_part_of_one_word() -> None:
    found = protect("foo<br/>bar baz", lambda word: True)
    assert found.text == "foo bar baz"
    text, links = found.restore("x y z", same_order(3))
    assert (text, links) == ("x <br/>y z", [(0, 0), (0, 1), (1, 2)])


def test_links_of_the_parts_of_a_line_are_numbered_through() -> None:
    parts = [WordLinks(((0, 1), (1, 0)), 2, 2), WordLinks((), 1, 1), WordLinks(((0, 0),), 1, 2)]
    assert join_links(parts) == ((0, 1), (1, 0), (3, 3))


def test_words_of_pieces() -> None:
    assert word_numbers(["▁Hel", "lo", "▁wor", "ld", "."]) == [0, 0, 1, 1, 1]
    assert word_numbers(["▁", "日", "本", "▁x"]) == [0, 0, 0, 1]


def test_links_are_of_the_upper_layers_and_not_to_eos() -> None:
    import numpy as np

    weights = np.zeros((2, 3, 4), dtype=np.float32)
    weights[:, 0, 1], weights[:, 1, 3], weights[:, 2, 0] = 1, 1, 1
    aligned = Aligned(("▁a", "▁b", "c"), ("▁x", "▁y"), weights)
    assert aligned.word_links() == WordLinks(((1, 0),), 2, 2)


@pytest.mark.parametrize(
    "tag", ['<img src="a>b.png">', "<a title='x > y' href=\"z\">", '<b class="x">', '<p title="open>']
)
def test_a_tag_with_its_quoted_attributes_is_one(tag: str) -> None:
    protected = protect(f"{tag} A man.", lambda word: True)
    assert [inset.text for inset in protected.insets] == [tag]


def test_what_is_put_back_never_becomes_one_word_with_its_neighbour() -> None:
    protected = protect("Visit www.test.org!", lambda word: True)
    text, _ = protected.restore("Besuche Formen", [(0, 0), (1, 1)])
    assert "www.test.org" in text.split() or "www.test.org!" in text
    text, _ = protect("un<b>done</b>ly", lambda word: True).restore(
        "un fertig lich", [(0, 0), (1, 1), (2, 2)]
    )
    assert text.replace(" ", "") == "un<b>fertig</b>lich"
