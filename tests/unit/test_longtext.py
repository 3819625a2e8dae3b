"""Sentence ends."""

import pytest

from mtkit.decoding.longtext import split_sentences


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
        ["no sentence end"],
        ["It ended. and went on in small letters."],
    ],
)
def test_where_sentences_end(sentences: list[str]) -> None:
    if sentences[1:2] and sentences[1].startswith("Two"):
        sentences = ["One.", "Two!", "Three?", "Yes, three…", "Four"]
    joiner = "" if "。" in sentences[0] else " "
    assert split_sentences(joiner.join(sentences)) == sentences


@pytest.mark.parametrize("line", ["", "  ", ". . .", "a.b. C! D?  E。F"])
def test_nothing_is_lost(line: str) -> None:
    assert "".join(split_sentences(line)).replace(" ", "") == line.replace(" ", "")
