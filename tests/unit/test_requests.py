"""From lines to parts: what is demanded of a line, and what is said where that is impossible."""

from __future__ import annotations

from typing import Any

import pytest
from test_translator import make

from mtkit.config import TokenizerConfig
from mtkit.data.pairs import Pair
from mtkit.data.tokenizer import make_tokenizers
from mtkit.decoding.options import TranslateOptions
from mtkit.decoding.requests import Cutter, Request, holds
from mtkit.decoding.translator import Translator
from mtkit.errors import DataError

TWO = "the old man sees a bird. My sister hears children."


@pytest.mark.parametrize(
    ("text", "split", "limit", "what"),
    [
        ("", False, 256, "an empty line has no prefix or constraints"),
        (TWO, True, 256, "a line with a prefix or constraints must be one sentence, but this one has 2"),
        (TWO, False, 8, "a line with a prefix or constraints may have 8 pieces, but this one has "),
        ("the old man sees a bird", True, 4, "a line with a prefix or constraints may have 4 pieces"),
    ],
)
def test_why_a_line_has_no_prefix(text: str, split: bool, limit: int, what: str) -> None:
    translator = make(max_source_pieces=limit)
    lines = [Request("a bird"), Request(text, prefix="der")]
    translations = translator.translate(lines, TranslateOptions(split_sentences=split))
    next(translations)
    with pytest.raises(DataError) as caught:
        next(translations)
    assert what in caught.value.what
    assert caught.value.where == "line 2"


def test_why_a_line_has_no_alternatives() -> None:
    for split, limit, what in (
        (True, 256, "must be one sentence, but this one has 2"),
        (False, 8, "may have 8"),
    ):
        translator = make(max_source_pieces=limit)
        with pytest.raises(DataError, match=f"a line with alternatives {what}"):
            next(translator.alternatives([TWO], 2, TranslateOptions(split_sentences=split)))


def constrained(translator: Translator, *phrases: str) -> str:
    """What is said of a constraint."""
    with pytest.raises(DataError) as caught:
        next(translator.translate([Request("a bird", constraints=(phrases,))]))
    return caught.value.what


def test_why_a_constraint_cannot_be_met() -> None:
    pairs = [Pair("a bird sings", "ein Vogel singt")] * 20
    tokenizers = make_tokenizers(TokenizerConfig(vocab_size=40, byte_fallback=False), pairs)
    base = make(suppress=("Vogel",))
    translator = make_like(base, tokenizers)
    assert constrained(translator, "日本") == (
        "the constraint '日本' cannot be met: the vocabulary lacks its characters"
    )
    assert (
        constrained(translator, "Vogel")
        == "the constraint 'Vogel' cannot be met: a piece of it is suppressed"
    )
    assert constrained(translator, "日本", "Vogel") == (
        "the constraint '日本 | Vogel' cannot be met: "
        "the vocabulary lacks its characters, or a piece of it is suppressed"
    )
    assert constrained(translator, " ") == "the constraint ' ' cannot be met: it has no pieces"


def make_like(translator: Translator, tokenizers: Any) -> Translator:
    """Another vocabulary, the same search."""
    from test_translator import tiny_config

    from mtkit.decoding.loading import make_model

    return Translator(make_model(tiny_config(), tokenizers).eval(), tokenizers, translator.decoding)


def test_a_comma_ends_a_word_but_not_a_number() -> None:
    lines = ["Hunde, Katzen: 3,500 Vögel; ja!", "ein Hund, eine Katze.", "1,5 bis 2,5: viele"] * 10
    tokenizers = make_tokenizers(
        TokenizerConfig(vocab_size=60, byte_fallback=False), [Pair(t, t) for t in lines]
    )
    cutter = Cutter(tokenizers, make().decoding, (), 256)
    tgt = tokenizers.tgt
    for mark, follows in ((",", False), (":", False), ("!", True), (";", True), (".", True)):
        pieces = {i for i in range(tgt.num_pieces) if tgt.piece(i).startswith(mark)}
        assert pieces
        assert pieces <= cutter.word_ends
        assert (pieces <= cutter.followers) == follows
    inner = {i for i in range(tgt.num_pieces) if tgt.piece(i)[0].isalnum()}
    assert inner and not inner & cutter.word_ends


def test_punctuation_is_no_part_of_an_alternative() -> None:
    """A model that likes commas: the word without one has the probability of the word with whatever follows."""
    lines = ["Hunde, Katzen, Vögel", "ein Hund, eine Katze, ein Vogel"] * 10
    tokenizers = make_tokenizers(
        TokenizerConfig(vocab_size=60, byte_fallback=False), [Pair(t, t) for t in lines]
    )
    translator = make_like(make(), tokenizers)
    tgt, log_probs = tokenizers.tgt, translator.ensemble.log_probs
    comma = next(i for i in range(tgt.num_pieces) if tgt.piece(i) == ",")

    def likes_commas(*arguments: Any) -> Any:
        found = log_probs(*arguments).clone()
        found[..., comma] += 5
        return found.log_softmax(dim=-1)

    translator.ensemble.log_probs = likes_commas  # type: ignore[method-assign]
    [found] = translator.alternatives([Request("ein Hund", prefix="ein")], 12)
    assert len(found) == 12
    assert not [a.word for a in found if a.word.endswith(",") and a.word.strip(",")]
    assert found[0].word == ","


@pytest.mark.parametrize(
    ("text", "kept", "there"),
    [
        ("er hat 3 Hunde", "3", True),
        ("er hat 13 Hunde", "3", False),
        ("3000 Hunde", "3", False),
        ("am 3.", "3", True),
        ("3日に", "3", True),
        ("第3章", "3", True),
        ("3rd", "3", False),
        ("H2O", "2", False),
        ("3ä", "3", False),
        ("ein a+b.de.", "a+b.de", True),
    ],
)
def test_what_a_translation_holds(text: str, kept: str, there: bool) -> None:
    assert holds(text, kept) == there


def test_a_part_keeps_only_what_stands_in_it_as_a_word() -> None:
    translator = make()
    request = Request("The man sees 15 birds. My sister hears 5 children.", kept=("15", "5"))
    [parts] = translator.cutter.parts([request], 0, split=True)
    texts = translator.tokenizers.src.decode([part.ids for part in parts])
    assert [part.kept for part in parts] == [tuple(k for k in request.kept if holds(t, k)) for t in texts]
    assert all(
        "5" not in part.kept for part, text in zip(parts, texts, strict=True) if " 5 " not in f" {text} "
    )
