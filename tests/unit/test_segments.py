"""Segments of lines: prefixes and constraints of a line, and the errors when they are impossible."""

from __future__ import annotations

from typing import Any

import pytest
from test_translator import make

from mtkit.config.sections import TokenizerConfig
from mtkit.data.readers import Pair
from mtkit.data.tokenizer import make_tokenizers
from mtkit.errors import DataError
from mtkit.translation.alignment import Link
from mtkit.translation.numbers import has_number
from mtkit.translation.options import TranslateOptions
from mtkit.translation.segments import Request, Segmenter
from mtkit.translation.translator import Translator
from mtkit.translation.word_boundaries import tokens_after_number, tokens_after_word

TWO = "the old man sees a bird. My sister hears children."


@pytest.mark.parametrize(
    ("text", "split", "limit", "what"),
    [
        ("", False, 256, "an empty line cannot have a prefix or constraints"),
        (TWO, True, 256, "a line with a prefix or constraints must be one sentence, but this one has 2"),
        (TWO, False, 8, "a line with a prefix or constraints may have 8 tokens, but this one has "),
        ("the old man sees a bird", True, 4, "a line with a prefix or constraints may have 4 tokens"),
    ],
)
def test_faults_of_prefixes(text: str, split: bool, limit: int, what: str) -> None:
    translator = make(max_source_tokens=limit)
    lines = [Request("a bird"), Request(text, prefix="der")]
    translations = translator.translate(lines, TranslateOptions(split_sentences=split))
    next(translations)
    with pytest.raises(DataError) as caught:
        next(translations)
    assert what in caught.value.what
    assert caught.value.where == "line 2"


def test_faults_of_alternatives() -> None:
    for split, limit, what in (
        (True, 256, "must be one sentence, but this one has 2"),
        (False, 8, "may have 8"),
    ):
        translator = make(max_source_tokens=limit)
        with pytest.raises(DataError, match=f"a line with alternatives {what}"):
            next(translator.alternatives([TWO], 2, TranslateOptions(split_sentences=split)))


def constrained(translator: Translator, *phrases: str) -> str:
    """Return what is reported about a constraint."""
    with pytest.raises(DataError) as caught:
        next(translator.translate([Request("a bird", constraints=(phrases,))]))
    return caught.value.what


def test_faults_of_constraints() -> None:
    pairs = [Pair("a bird sings", "ein Vogel singt")] * 20
    tokenizers = make_tokenizers(TokenizerConfig(vocab_size=40, byte_fallback=False), pairs)
    base = make(suppress=("Vogel",))
    translator = make_like(base, tokenizers)
    assert constrained(translator, "日本") == (
        "the constraint '日本' cannot be met: the vocabulary lacks its characters"
    )
    assert (
        constrained(translator, "Vogel")
        == "the constraint 'Vogel' cannot be met: one of its tokens is suppressed"
    )
    assert constrained(translator, "日本", "Vogel") == (
        "the constraint '日本 | Vogel' cannot be met: "
        "the vocabulary lacks its characters, or one of its tokens is suppressed"
    )
    assert constrained(translator, " ") == "the constraint ' ' cannot be met: it has no tokens"


def make_like(translator: Translator, tokenizers: Any) -> Translator:
    """Return a translator with other tokenizers and the same decoding settings."""
    from test_translator import tiny_config

    from mtkit.model.build import make_model

    return Translator(make_model(tiny_config(), tokenizers).eval(), tokenizers, translator.decoding)


def test_a_comma_ends_a_word_but_not_a_number() -> None:
    lines = ["Hunde, Katzen: 3,500 Vögel; ja!", "ein Hund, eine Katze.", "1,5 bis 2,5: viele"] * 10
    tokenizers = make_tokenizers(
        TokenizerConfig(vocab_size=60, byte_fallback=False), [Pair(t, t) for t in lines]
    )
    tgt = tokenizers.tgt
    for mark, follows in ((",", False), (":", False), ("!", True), (";", True), (".", True)):
        pieces = {i for i in range(tgt.num_pieces) if tgt.piece(i).startswith(mark)}
        assert pieces
        assert pieces <= tokens_after_word(tgt)
        assert (pieces <= tokens_after_number(tgt)) == follows
    inner = {i for i in range(tgt.num_pieces) if tgt.piece(i)[0].isalnum()}
    assert inner and not inner & tokens_after_word(tgt)


def test_an_alternative_has_no_punctuation() -> None:
    """The model likes commas: the word without one has the probability of the word with whatever follows."""
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


def test_a_segment_requires_its_own_numbers() -> None:
    request = Request("The man sees 150 birds. My sister hears 50 children.", keep_numbers=True)
    [line] = make().segmenter.segment_lines([request], options=TranslateOptions(split_sentences=True))
    assert [segment.required_numbers for segment in line.segments] == [("150",), ("50",)]


def test_a_segment_that_lacks_a_number_is_searched_again() -> None:
    translator = make(max_length_ratio=2)
    line = "the old man sees 1,250 birds"
    free, kept = translator.translate([line, Request(line, keep_numbers=True)])
    assert not has_number(free.text, "1,250")
    assert has_number(kept.text, "1,250")
    [segmented] = translator.segmenter.segment_lines([Request(line, keep_numbers=True)])
    [constraint] = translator.batched_search.with_number_constraints(segmented.segments[0]).constraints
    assert translator.tokenizers.tgt.decode(constraint.phrases) == ["1,250", "1.250", "1250"]


TAGGED = make_tokenizers(
    TokenizerConfig(vocab_size=330, user_symbols=("<2de>",)),
    [Pair(f"<2de> {line}", line) for line in ("the old man sees a bird.", "my sister hears children.")] * 10,
)


def test_a_tag_precedes_every_segment() -> None:
    line, limit = "The old man. My sister hears children and birds and houses! A bird.", 12
    tagged = TAGGED.src.encode(["<2de> a bird"])[0].tolist()
    tag = TAGGED.src.encode(["<2de>"])[0].tolist()
    for split in (True, False):
        segmenter = Segmenter(TAGGED, make().decoding, (), limit)
        [whole] = segmenter.segment_lines([Request("a bird", tag="<2de>")])
        assert [segment.ids.tolist() for segment in whole.segments] == [tagged]
        options = TranslateOptions(split_sentences=split, keep_links=True)
        [long_line] = segmenter.segment_lines([Request(line, tag="<2de>")], options=options)
        assert len(long_line.segments) > 3
        for segment in long_line.segments:
            assert segment.ids.tolist()[: segment.num_tag_tokens] == tag
            assert len(segment.ids) <= limit
            assert segment.max_length == segmenter.decoding.max_length(len(segment.ids) - len(tag))
        shorter = Segmenter(TAGGED, make().decoding, (), limit - len(tag))
        [plain] = shorter.segment_lines([Request(line)], options=options)
        without_tag = [s.ids.tolist()[s.num_tag_tokens :] for s in long_line.segments]
        assert without_tag == [s.ids.tolist() for s in plain.segments]
        assert [s.spans for s in long_line.segments] == [s.spans for s in plain.segments]
    single = segmenter.single_segment(Request("a bird", tag="<2de>"), 0)
    assert single is not None and single.ids.tolist() == tagged
    [empty] = segmenter.segment_lines([Request("  ", tag="<2de>")])
    assert empty.segments == []


def test_a_long_sentence_is_cut_after_a_clause_although_its_comma_is_normalized() -> None:
    text = "今天天气很好，我们去公园散步吧"
    config = TokenizerConfig(vocab_size=320, character_coverage=1.0, normalization="nmt_nfkc")
    tokenizers = make_tokenizers(config, [Pair(text, text)] * 10)
    assert "，" not in "".join(tokenizers.src.pieces(text))
    segmenter = Segmenter(tokenizers, make().decoding, (), 8)
    [line] = segmenter.segment_lines([Request(text)], options=TranslateOptions(keep_links=True))
    assert len(tokenizers.src.encode([text])[0]) > 8
    assert [text[s.spans[0][0] : s.spans[-1][1]] for s in line.segments] == [
        "今天天气很好，",
        "我们去公园散步吧",
    ]


def test_a_tag_has_no_links() -> None:
    translator = make_like(make(), TAGGED)
    request = Request("the old man. My sister", tag="<2de>", links=True)
    options = TranslateOptions(split_sentences=True)
    [translation] = translator.translate([request], options)
    assert translation.links
    assert all(s < 5 and t < len(translation.text.split()) for s, t in translation.links)
    segment = translator.segmenter.segment_lines([request])[0].segments[0]
    texts, of_tag, first, eos = ["x", " y", " z"], 0, segment.num_tag_tokens, len(segment.ids)
    found = segment.char_links([of_tag, first, eos], texts, start=0)
    assert found == [Link(segment.spans[0], (1, 3))]


def test_unknown_characters_of_a_prefix_are_kept() -> None:
    pairs = [Pair("a bird sings", "ein Vogel singt")] * 20
    plain = make_tokenizers(TokenizerConfig(vocab_size=40, byte_fallback=False), pairs)
    translator = make_like(make(n_best=3, max_length_ratio=4), plain)
    for prefix in ("日本 ein", "ein 日本", "Vogel日", "日本"):
        request = Request("a bird", prefix=prefix, links=True)
        [found] = translator.translate_n_best([request])
        assert len(found) == 3
        for translation in found:
            assert translation.text.startswith(prefix) and "⁇" not in translation.text
            assert all(t < len(translation.text.split()) for _, t in translation.links)
        [found_words] = translator.alternatives([request], 2)
        assert found_words and all(word.text.startswith(prefix) for word in found_words)


def test_max_line_tokens() -> None:
    translator = make(max_source_tokens=8)
    num_tokens = len(translator.tokenizers.src.encode([TWO])[0])
    for longest, ends in ((num_tokens, 2), (num_tokens - 1, 1)):
        options = TranslateOptions(max_line_tokens=longest, on_error="skip")
        found = list(translator.translate(["a bird", TWO], options))
        assert [bool(translation.text) for translation in found] == [True, ends == 2]
    fault = found[1].fault
    assert fault is not None and fault.where == "line 2"
    assert fault.what == f"{num_tokens} tokens, but a line may have {num_tokens - 1}"
