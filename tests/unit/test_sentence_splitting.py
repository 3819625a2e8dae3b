"""Sentence splitting."""

import random

import pytest

from mtkit.translation.sentence_splitting import (
    Boundary,
    boundary_at,
    sentence_spans,
    separator,
    split_sentences,
)


@pytest.mark.parametrize(
    "sentences",
    [
        ["One."],
        ["One.", "Two!", "Three? Yes, three…", "Four"],
        ["He said: “Go.”", "She went."],
        ["Mr. Smith met Dr. A. Jones at 5 p.m. in St. Louis.", "It rained."],
        ["Am 3. Mai war es kalt.", "Es schneite."],
        ["Version 3.14 costs 1.000,50 Euro.", "Buy it at example.com today."],
        ["今日は。", "はい！", "そうですか？"],
        ["他说：「走吧。」", "她走了！", "Windows 很好。"],
        ["كيف حالك؟", "أنا بخير!", "شكرا."],
        ["वह आया।", "वह गया॥", "फिर?"],
        ["သူလာသည်။", "သူသွားသည်။"],
        ["وہ آیا۔", "وہ گیا۔"],
        ["እሱ መጣ።", "ሄደ፧"],
        ["no sentence end"],
        ["It ended. and went on in small letters."],
        ["Цена 5 тыс. рублей.", "Дорого."],
        ["ის მოვიდა.", "ის წავიდა."],
        ["Er sprach bzgl. „öffentlicher“ Mittel.", "Ähnlich war es hier."],
    ],
)
def test_split_sentences(sentences: list[str]) -> None:
    if sentences[1:2] and sentences[1].startswith("Two"):
        sentences = ["One.", "Two!", "Three?", "Yes, three…", "Four"]
    space = "" if "。" in "".join(sentences) else " "
    assert split_sentences(space.join(sentences)) == sentences


@pytest.mark.parametrize(
    ("left", "right", "boundary", "space"),
    [
        ("One.", "Two.", "sentence", " "),
        ("他来了。", "她走了。", "sentence", ""),
        ("他来了。", "Windows 很好。", "sentence", ""),
        ("そうですか?", "はい!", "sentence", ""),  # normalisation makes ASCII marks of full-width ones
        ("「そうか。」", "(はい)", "sentence", ""),
        ("I saw 東京.", "It rained.", "sentence", " "),
        ("그는 왔다.", "갔다.", "sentence", " "),
        ("มาแล้ว", "ไปแล้ว", "sentence", " "),
        ("มาแล้ว", "ไปแล้ว", "words", ""),
        ("one and", "two", "words", " "),
        ("他和", "她", "words", ""),
        ("Donau", "dampf", "word", ""),
        ("", "Two.", "sentence", ""),
        ("One.", "", "sentence", ""),
        ("...", "!!!", "sentence", " "),
    ],
)
def test_separator(left: str, right: str, boundary: Boundary, space: str) -> None:
    assert separator(left, right, boundary) == space


@pytest.mark.parametrize(
    ("text", "place", "boundary"),
    [
        ("one two", 3, "words"),
        ("one two", 4, "words"),
        ("他和她", 1, "words"),
        ("Donaudampf", 5, "word"),
        ("......", 3, "word"),
        ("มาแล้ว", 2, "words"),
    ],
)
def test_boundary_at(text: str, place: int, boundary: Boundary) -> None:
    assert boundary_at(text, place) == boundary


@pytest.mark.parametrize("seed", range(20))
def test_splitting_and_joining_gives_the_line(seed: int) -> None:
    rng = random.Random(seed)
    scripts = [
        (" ", ["Mr. Smith sees 3.5 birds.", "Really?!", "„Ja.“", "No", "(Yes.)"]),
        ("", ["他来了。", "「走吧！」", "Windows 很好。", "２０２４年？", "はい。"]),
        (" ", ["كيف حالك؟", "شكرا."]),
        (" ", ["वह आया।", "वह गया॥"]),
        (" ", ["သူလာသည်။", "ဟုတ်တယ်။"]),
    ]
    space, sentences = rng.choice(scripts)
    line = space.join(rng.choices(sentences, k=rng.randint(1, 6)))
    joined = ""
    for sentence in split_sentences(line):
        joined += separator(joined, sentence, "sentence") + sentence
    assert joined == line


@pytest.mark.parametrize("line", ["", "  ", ". . .", "a.b. C! D?  E。F"])
def test_nothing_is_lost(line: str) -> None:
    assert "".join(split_sentences(line)).replace(" ", "") == line.replace(" ", "")


def test_sentence_spans() -> None:
    line = "  One.  Two! 今日は。はい "
    assert [line[start:end] for start, end in sentence_spans(line)] == ["One.", "Two!", "今日は。", "はい"]
