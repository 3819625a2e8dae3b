"""Translations of protected lines: each of several is restored, and links connect the real words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_translator import make

from mtkit.translation.options import TranslateOptions
from mtkit.translation.segments import Request

LINES = ["the old man <b>sees</b> a bird", "my sister", "see https://a.org/b now, children"]


@pytest.mark.parametrize("keys", [{"n_best": 3}, {"n_best": 2, "sample": True}])
def test_all_translations_of_a_line_are_restored(keys: Any) -> None:
    translator = make(**keys)
    for line, translations in zip(LINES, translator.translate_protected(LINES), strict=True):
        assert len(translations) == keys["n_best"]
        placeholders = [text for text in ("<b>", "</b>", "https://a.org/b") if text in line]
        for translation in translations:
            assert all(translation.text.count(text) == 1 for text in placeholders)


def test_links_are_between_words_of_the_original_line_and_the_restored_translation() -> None:
    translator = make(n_best=2)
    found = translator.translate_protected(LINES, TranslateOptions(keep_links=True))
    for line, translations in zip(LINES, found, strict=True):
        for translation in translations:
            source, target = line.split(), translation.text.split()
            assert all(s < len(source) and t < len(target) for s, t in translation.links)
            if "https://a.org/b" in source:
                own = source.index("https://a.org/b"), target.index("https://a.org/b")
                assert own in translation.links
            assert translation.links


def test_a_placeholder_of_the_prefix_is_not_put_back() -> None:
    request = Request(LINES[2], prefix="see https://a.org/b")
    [[translation]] = make(max_length_extra=30).translate_protected([request])
    assert translation.text.startswith(request.prefix)
    assert translation.text.count("https") == 1


def test_a_copied_line_keeps_its_placeholders() -> None:
    lines = [LINES[0], Request("a <b>bird</b> {x}", prefix="der " * 300)]
    [_, [skipped]] = make().translate_protected(lines, TranslateOptions(on_error="skip"))
    [_, [copied]] = make().translate_protected(lines, TranslateOptions(on_error="copy"))
    assert (skipped.text, copied.text) == ("", "a <b>bird</b> {x}")
    assert copied.fault is not None


def test_only_lines_with_placeholders_are_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtkit.translation import batched_search as module

    translator, num_aligned = make(), 0
    align_batch = module.align_batch

    def counting(ensemble: Any, pairs: Any) -> Any:
        nonlocal num_aligned
        num_aligned += len(pairs)
        return align_batch(ensemble, pairs)

    monkeypatch.setattr(module, "align_batch", counting)
    assert len(list(translator.translate_protected(LINES))) == 3
    assert num_aligned == 2
    found = list(translator.translate([Request(LINES[1], links=True), LINES[1]]))
    assert found[0].links and not found[1].links
    assert num_aligned == 3


def test_a_tag_of_the_model_stays_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    translator, seen = make(), list[str]()
    tokenizers = translator.tokenizers
    tagged = replace(tokenizers, src=tokenizers.src.with_tokens(["<de>"]))
    monkeypatch.setattr(translator, "tokenizers", tagged)

    def capture(requests: Any, options: Any) -> Any:
        seen.extend(request.text for request in requests)
        return iter(())

    monkeypatch.setattr(translator, "translate_n_best", capture)
    list(translator.translate_protected(["<de> a {x} bird", "<de>a bird</de>", "<b> a bird", "a <de> bird"]))
    assert seen == ["<de> a bird", "a bird", "a bird", "a bird"]
