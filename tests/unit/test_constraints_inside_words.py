"""Constraints, suppressed texts and numbers in scripts without spaces between words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mtkit.config.sections import DecodingConfig, ModelConfig, TokenizerConfig
from mtkit.data.tokenizer import Tokenizer, Tokenizers, make_tokenizers
from mtkit.model.build import make_model
from mtkit.translation.batched_search import search_options
from mtkit.translation.placeholders import unknown_spans
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator
from mtkit.translation.word_boundaries import encode_inside

PAIRS = [
    ("I live in Beijing, since 1990 .", "我住在北京，自1990年以来。"),
    ("Beijing is big .", "北京很大。"),
    ("he likes tea !", "他喜欢茶 !"),
] * 30


def texts_of(ids: list[int], tokenizer: Tokenizer) -> str:
    return tokenizer.decode([ids])[0]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizers(request: pytest.FixtureRequest) -> Tokenizers:
    return make_tokenizers(TokenizerConfig(vocab_size=360, type=request.param, joint=False), PAIRS)


@pytest.mark.parametrize("phrase", ["北京", "1990", "很大。", "鬱京"])
def test_a_phrase_inside_a_sentence_has_no_space_before_it(tokenizers: Tokenizers, phrase: str) -> None:
    tgt = tokenizers.tgt
    [inside] = encode_inside(tgt, [phrase])
    before = tgt.encode(["我"])[0].tolist()
    assert texts_of([*before, *inside], tgt) == f"我{phrase}"
    assert texts_of([*before, *tgt.encode([phrase])[0].tolist()], tgt) == f"我 {phrase}"


def test_a_phrase_of_unknown_characters_is_left_out() -> None:
    without_bytes = TokenizerConfig(vocab_size=60, byte_fallback=False, joint=False)
    tgt = make_tokenizers(without_bytes, PAIRS).tgt
    assert encode_inside(tgt, ["鬱", "鬱京"]) == []


def test_a_suppressed_text_leaves_the_beginning_of_words(tokenizers: Tokenizers) -> None:
    tgt = tokenizers.tgt
    free = search_options(DecodingConfig(), tgt).suppressed
    suppressed = set(search_options(DecodingConfig(suppress=("!", "京")), tgt).suppressed) - set(free)
    pieces = {tgt.piece(token) for token in suppressed}
    assert pieces and "▁" not in pieces
    assert all(piece.strip("▁") in ("!", "京") for piece in pieces)
    own = TokenizerConfig(vocab_size=360, joint=False)
    with_space = make_tokenizers(own, [("I see him .", "我看见他。")] * 30).tgt
    suppressed = set(search_options(DecodingConfig(suppress=("我",)), with_space).suppressed)
    assert {i for i in range(with_space.num_pieces) if with_space.piece(i) in ("我", "▁我")} <= suppressed


def test_what_only_the_target_lacks_is_translated_unless_it_is_a_symbol(tokenizers: Tokenizers) -> None:
    pairs = [(f"{src} ١٩٩٩ ★ 。", tgt) for src, tgt in PAIRS]
    separate = make_tokenizers(TokenizerConfig(vocab_size=360, joint=False), pairs)
    line = "he likes ١٩٩٩ tea ★ 。"
    assert [line[start:end] for start, end in unknown_spans(separate, line)] == ["★"]


def test_constraints_of_unspaced_words_are_met_inside_of_a_sentence(tokenizers: Tokenizers) -> None:
    translator = Translator(
        make_model(ModelConfig(d_model=16, num_heads=2, encoder_layers=1, decoder_layers=1, d_ff=16), tokenizers),
        tokenizers, DecodingConfig(), tgt="zh",
    )  # fmt: skip
    request = Request("he likes tea", constraints=(("北京",),))
    [segmented] = translator.segmenter.segment_lines([request])
    [constraint] = segmented.segments[0].constraints
    before = tokenizers.tgt.encode(["我"])[0].tolist()
    texts = {texts_of([*before, *phrase], tokenizers.tgt) for phrase in constraint.phrases}
    assert texts == {"我北京", "我 北京"}
    [segmented] = translator.segmenter.segment_lines([Request("he likes tea", constraints=(("1990年",),))])
    [constraint] = segmented.segments[0].constraints
    texts = {texts_of([*before, *phrase], tokenizers.tgt) for phrase in constraint.phrases}
    assert texts == {"我1990年", "我 1990年"}
    segment = replace(segmented.segments[0], constraints=(), required_numbers=("1990",))
    [number] = translator.batched_search.with_number_constraints(segment).constraints
    assert {texts_of([*before, *phrase], tokenizers.tgt) for phrase in number.phrases} == {
        "我1990",
        "我 1990",
    }
