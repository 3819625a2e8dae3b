"""Links and attention: which translations have them, and that matrices do not pile up."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from test_translator import make, sentences

from mtkit.decoding import translation as translation_module
from mtkit.decoding.options import TranslateOptions
from mtkit.decoding.translator import ALIGNED_TOGETHER

LINES = sentences(5 * ALIGNED_TOGETHER, longest=6)


def num_alive(references: list[weakref.ref[Any]]) -> int:
    """How many arrays are still in memory."""
    return sum(reference() is not None for reference in references)


def test_attention_of_earlier_lines_is_gone() -> None:
    """While lines are read one by one, never more than two groups of matrices exist."""
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
    assert most <= ALIGNED_TOGETHER


def test_links_need_no_matrices_but_those_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    align = translation_module.align
    matrices: list[weakref.ref[Any]] = []
    most = 0

    def watching(*arguments: Any) -> Iterator[Any]:
        nonlocal most
        for number, aligned in align(*arguments):
            matrices.append(weakref.ref(aligned.weights))
            most = max(most, num_alive(matrices))
            yield number, aligned
            del aligned

    monkeypatch.setattr(translation_module, "align", watching)
    translator = make(beam_size=2, n_best=2, batch_tokens=60)
    found = list(translator.translate_n_best(LINES, TranslateOptions(keep_links=True)))
    assert len(matrices) == 2 * len(LINES)
    assert most <= 30  # of a batch of 60 pieces, and the newest of the batch before
    assert not any(translation.aligned for translations in found for translation in translations)
    assert all(len(translations) == 2 for translations in found)


def test_links_do_not_depend_on_the_neighbours() -> None:
    translator = make(n_best=2, max_source_pieces=12)
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
