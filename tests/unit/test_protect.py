"""What `--protect` takes out of a line and puts back."""

from __future__ import annotations

import pytest

from mtkit.decoding.alignment import Aligned, word_numbers
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
    assert found.restore(found.text, same_order(len(found.text.split()))) == line


def test_tags_go_where_the_words_between_them_went() -> None:
    found = protect("I saw <b>the red</b> car", lambda word: True)
    assert found.text == "I saw the red car"
    links = [(0, 0), (1, 4), (2, 1), (3, 2), (4, 3)]
    assert found.restore("Ich das rote Auto sah", links) == "Ich <b>das rote</b> Auto sah"


@pytest.mark.parametrize("links", [[], [(0, 0)], [(9, 0)]])
def test_nothing_is_lost_whatever_the_alignment(links: list[tuple[int, int]]) -> None:
    for line in WRITTEN:
        found = protect(line, lambda word: word.isascii())
        restored = found.restore("ein paar andere Wörter", links)
        assert all(inset.text in restored for inset in found.insets)


def test_words_of_pieces() -> None:
    assert word_numbers(["▁Hel", "lo", "▁wor", "ld", "."]) == [0, 0, 1, 1, 1]
    assert word_numbers(["▁", "日", "本", "▁x"]) == [0, 0, 0, 1]


def test_links_are_of_the_upper_layers_and_not_to_eos() -> None:
    import numpy as np

    weights = np.zeros((2, 3, 4), dtype=np.float32)
    weights[:, 0, 1], weights[:, 1, 3], weights[:, 2, 0] = 1, 1, 1
    aligned = Aligned(("▁a", "▁b", "c"), ("▁x", "▁y"), weights)
    assert aligned.word_links() == [(1, 0)]
