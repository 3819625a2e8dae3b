"""Streams of pairs to score, some of them too long."""

from __future__ import annotations

import pytest
from test_translator import make, sentences

from mtkit.errors import DataError

LONG = "the old man sees a bird and my sister hears children in houses and the old man sees a bird."


def test_the_pairs_before_one_that_is_too_long_are_scored() -> None:
    translator = make(max_source_pieces=20)
    pairs = [*zip(sentences(3, longest=4), sentences(3, longest=4), strict=True), (LONG, "x"), ("a", "b")]
    scored = translator.score_stream(pairs)
    alone = translator.score([src for src, _ in pairs[:3]], [tgt for _, tgt in pairs[:3]])
    for (src, tgt), expected in zip(pairs[:3], alone, strict=True):
        source, result = next(scored)
        assert result is not None
        assert (source, result.text) == (src, tgt)
        assert result.score == pytest.approx(expected.score, abs=1e-5)
    with pytest.raises(DataError, match="a source line of at most 20 can be scored") as caught:
        next(scored)
    assert caught.value.where == "source line 4"


def test_pairs_that_are_too_long_can_be_left_out() -> None:
    translator = make(max_source_pieces=20)
    pairs = [("a bird", "a man"), (LONG, "x"), ("x", LONG * 3), ("", ""), ("a man", "a bird")]
    found = list(translator.score_stream(pairs, skip_long=True))
    assert [source for source, _ in found] == [src for src, _ in pairs]
    assert [result is None for _, result in found] == [False, True, True, False, False]
    [first, last] = translator.score(["a bird", "a man"], ["a man", "a bird"])
    assert [r.score for _, r in found if r is not None] == pytest.approx(
        [first.score, 0.0, last.score], abs=1e-5
    )
    with pytest.raises(DataError, match="target line 2"):
        list(translator.score_stream([pairs[0], pairs[2]]))


def test_scores_do_not_depend_on_how_many_places_are_looked_at_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    srcs, tgts = sentences(12), sentences(12, seed=3)
    together = [t.score for t in make().score(srcs, tgts)]
    monkeypatch.setattr("mtkit.decoding.scoring.LOGITS_AT_ONCE", 1)
    assert [t.score for t in make().score(srcs, tgts)] == pytest.approx(together, abs=1e-5)
