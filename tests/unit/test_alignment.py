"""Links and attention: which translations have them, and that matrices do not pile up in memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_translator import make, sentences, tiny_config

from mtkit.cli.attention_file import AttentionFile
from mtkit.config.sections import TokenizerConfig
from mtkit.data.alignments import WordIndex
from mtkit.data.readers import Pair
from mtkit.data.tokenizer import make_tokenizers
from mtkit.model.build import make_model
from mtkit.translation import batched_search
from mtkit.translation.assembly import MAX_LINES_WITH_ATTENTION
from mtkit.translation.options import TranslateOptions
from mtkit.translation.translator import Translator

LINES = sentences(5 * MAX_LINES_WITH_ATTENTION, longest=6)


def num_alive(references: list[weakref.ref[Any]]) -> int:
    """Return the number of arrays still in memory."""
    return sum(reference() is not None for reference in references)


def test_attention_of_earlier_lines_is_released() -> None:
    """When lines are read one by one, at most two groups of matrices exist."""
    translator = make(beam_size=1)
    matrices: list[weakref.ref[Any]] = []
    most = 0
    for translation in translator.translate(LINES, TranslateOptions(keep_attention=True)):
        [aligned] = translation.aligned
        assert aligned.weights.base is None  # a view would hold the whole batch
        matrices.append(weakref.ref(aligned.weights))
        most = max(most, num_alive(matrices))
        del translation, aligned
    assert len(matrices) == len(LINES)
    assert most <= MAX_LINES_WITH_ATTENTION


def test_links_hold_the_matrices_of_one_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    align_batch = batched_search.align_batch
    matrices: list[weakref.ref[Any]] = []
    most = 0

    def watching(*arguments: Any) -> list[Any]:
        nonlocal most
        batch = align_batch(*arguments)
        matrices.extend(weakref.ref(aligned.weights) for aligned in batch)
        most = max(most, num_alive(matrices))
        return batch

    monkeypatch.setattr(batched_search, "align_batch", watching)
    translator = make(beam_size=2, n_best=2, batch_tokens=60)
    found = list(translator.translate_n_best(LINES, TranslateOptions(keep_links=True)))
    assert len(matrices) == 2 * len(LINES)
    assert most <= 30  # of a batch of 60 tokens, and the newest of the batch before
    assert not any(translation.aligned for translations in found for translation in translations)
    assert all(len(translations) == 2 for translations in found)


def test_links_do_not_depend_on_the_batch() -> None:
    translator = make(n_best=2, max_source_tokens=12)
    links, attention = TranslateOptions(keep_links=True), TranslateOptions(keep_attention=True)
    lines = ["", *LINES[:6], " ".join(LINES[:4])]
    together = list(translator.translate_n_best(lines, links))
    for line, translations in zip(lines, together, strict=True):
        [alone] = translator.translate_n_best([line], links)
        assert [t.links for t in translations] == [t.links for t in alone]
        for translation in translations:
            assert all(
                s < len(line.split()) and t < len(translation.text.split()) for s, t in translation.links
            )
    for line, translations in zip(lines, translator.translate_n_best(lines, attention), strict=True):
        num_parts = len(translations[0].aligned)
        assert num_parts >= bool(line) and not any(t.aligned for t in translations[1:])


def test_words_in_a_span() -> None:
    words = WordIndex("  ab  cd\u3000e ")
    spans = [(0, 0), (0, 2), (2, 3), (1, 4), (4, 8), (6, 6), (3, 7), (8, 9), (11, 11), (10, 11)]
    found = [list(words.words_in(span)) for span in spans]
    assert found == [[0], [0], [0], [0], [1], [1], [0, 1], [2], [2], [2]]
    assert list(WordIndex(" \t").words_in((0, 1))) == []


ODD = [
    "  the  old\tman\u3000sees ",
    "the \u200b old \u200bman\u200b sees\u200b",
    "´ the´old ´´ man",
    "ﬁne ① ½ ｶﾞ the™ man… a\u0301",
    "the\u00a0old\u2003man\u2028sees\x1ca",
    "\ufeffthe old\u00adman \u200d sees",
    "日本 the 日本語man 😀😀",
    "\u200b \u200b",
    "▁the ▁ old",
]


@pytest.mark.parametrize("limit", [256, 7])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_links_are_between_words_as_typed(byte_fallback: bool, limit: int) -> None:
    plain = [Pair(text, text) for text in sentences(40)]
    both = make_tokenizers(
        TokenizerConfig(vocab_size=325 if byte_fallback else 60, byte_fallback=byte_fallback), plain
    )
    model = make_model(tiny_config(), both).eval()
    translator = Translator(model, both, make(max_length_ratio=1).decoding, limit)
    for line, translation in zip(
        ODD, translator.translate(ODD, TranslateOptions(keep_links=True)), strict=True
    ):
        source, target = line.split(), translation.text.split()
        assert all(s < len(source) and t < len(target) for s, t in translation.links)
        assert bool(translation.links) == bool(target)


def test_each_token_belongs_to_the_word_it_came_from() -> None:
    """A zero-width space separates tokens but not words; a lone accent becomes two tokens."""
    src = make().tokenizers.src
    for line in ODD:
        spans, words = src.spans(line), WordIndex(line)
        assert len(spans) == len(src.encode([line])[0])
        covered = {number for span in spans for number in words.words_in(span)}
        assert covered == {i for i, word in enumerate(line.split()) if len(src.encode([word])[0])}
        assert "".join(src.token_texts(src.encode([line])[0].tolist())) == src.decode(src.encode([line]))[0]


def test_sources_without_eos_have_no_column_for_it(tmp_path: Path) -> None:
    translator = make(model_keys={"source_eos": False})
    path = tmp_path / "a.npz"
    lines = ["the man", "the old man sees a bird in the garden"]
    options = TranslateOptions(keep_attention=True)
    with AttentionFile(str(path)) as file:
        for number, translation in enumerate(translator.translate(lines, options), 1):
            file.add(number, translation.aligned)
    arrays = np.load(path)
    for number, line in enumerate(lines, 1):
        pieces = translator.tokenizers.src.pieces(line)
        assert arrays[f"src-{number}-1"].tolist() == pieces
        weights = arrays[f"weights-{number}-1"]
        assert weights.shape[2] == len(pieces)
        assert weights.sum(axis=-1) == pytest.approx(np.ones(weights.shape[:2]), abs=1e-5)
