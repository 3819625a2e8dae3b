"""Perturbations of a line of text."""

from __future__ import annotations

import random

import pytest

from mtkit.data.perturbation import (
    ALPHABETS,
    NEIGHBOR_KEYS,
    add_typos,
    ends_in_punctuation,
    has_case,
    mistype,
    random_words,
    title,
    upper,
    without_final_punctuation,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ein Haus", True),
        ("Дом", True),
        ("我有一个 iPad", False),
        ("我", False),
        ("", False),
        ("नमस्ते", False),
        ("გამარჯობა", False),
    ],
)
def test_has_case_asks_most_letters(text: str, expected: bool) -> None:
    assert has_case(text) is expected


def test_capitals_and_title_case() -> None:
    assert upper("Straße in «Köln»") == "STRASSE IN «KÖLN»"
    assert upper("Tbilisi, თბილისი") == "TBILISI, თბილისი"
    assert title("he said: «don't go to o'hare», iPad 3d") == "He Said: «Don't Go To O'hare», IPad 3d"
    assert title("我 ein  haus, თბილისი") == "我 Ein  Haus, თბილისი"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ein Haus.", "Ein Haus"),
        ("Ein Haus ?!", "Ein Haus"),
        ("Ein Haus...", "Ein Haus"),
        ("这是一座房子。", "这是一座房子"),
        ("यह घर है।", "यह घर है"),
        ("ខ្ញុំទៅផ្សារ។", "ខ្ញុំទៅផ្សារ"),
        ("Ein 'Haus.'", "Ein 'Haus.'"),
        ("Ein Haus", "Ein Haus"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_final_punctuation(text: str, expected: str) -> None:
    assert without_final_punctuation(text) == expected
    assert ends_in_punctuation(text) is (text != expected)


def test_a_typo_swaps_drops_doubles_or_hits_the_next_key() -> None:
    rng = random.Random(1)
    seen = {mistype("Ab", rng) for _ in range(2000)}
    neighbors = {near.upper() + "b" for near in NEIGHBOR_KEYS["a"]} | {
        "A" + near for near in NEIGHBOR_KEYS["b"]
    }
    assert seen == {"bA", "b", "A", "AAb", "Abb"} | neighbors
    assert set(NEIGHBOR_KEYS["s"]) == set("adwezx")


def test_script_without_keyboard_has_three_kinds_of_typos() -> None:
    rng = random.Random(1)
    assert {mistype("გა", rng) for _ in range(500)} == {"აგ", "ა", "გ", "გგა", "გაა"}


def test_typos_leave_numbers_short_words_and_addresses() -> None:
    rng = random.Random(1)
    line = "in 1999 an a@b.de b2b-2 x, (or) 2.50"
    assert all(add_typos(line, rng, share=1.0) == line for _ in range(20))
    words = ["„Viele“", "bunte", "Häuser,"]
    for _ in range(200):
        changed = add_typos(" ".join(words), rng, share=1.0).split()
        assert all(one != other for one, other in zip(words, changed, strict=True))
        assert changed[0].startswith("„")
        assert changed[0].endswith("“")
        assert changed[2].endswith(",")


@pytest.mark.parametrize("line", ["नमस्ते दुनिया", "สวัสดีชาวโลก", "வணக்கம் உலகம்", "今天天气很好，我们去公园。"])
def test_words_with_marks_get_typos(line: str) -> None:
    assert add_typos(line, random.Random(1)) != line


def test_share_of_words_with_a_typo_is_at_least_one() -> None:
    rng = random.Random(3)
    line = " ".join(["house"] * 40)
    numbers = [sum(word != "house" for word in add_typos(line, rng, share=0.1).split()) for _ in range(400)]
    assert min(numbers) >= 1
    assert 4 < sum(numbers) / len(numbers) < 6  # one of 40, and a tenth of the others


def test_random_words_are_of_one_alphabet() -> None:
    rng = random.Random(1)
    seen = set()
    for _ in range(300):
        words = random_words(rng)
        (alphabet,) = [
            number for number, letters in enumerate(ALPHABETS) if set("".join(words)) <= set(letters)
        ]
        assert 1 <= len(words) <= 6
        assert all(2 <= len(word) <= 5 for word in words)
        seen.add(alphabet)
    assert len(seen) == len(ALPHABETS)


def test_the_same_generator_gives_the_same_text() -> None:
    first, second = random.Random(7), random.Random(7)
    line = "Eine ziemlich lange Zeile mit einigen Wörtern"
    assert [add_typos(line, first) for _ in range(5)] == [add_typos(line, second) for _ in range(5)]
