"""Scoring streams of pairs, some of them too long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from pretended_gpu import PretendedGPU
from test_translator import make, sentences
from torch import Tensor

from mtkit.errors import DataError
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.sentence_splitting import split_sentences
from mtkit.translation.translator import Translator

LONG = "the old man sees a bird and my sister hears children in houses and the old man sees a bird."


def test_the_pairs_before_one_that_is_too_long_are_scored() -> None:
    translator = make(max_source_tokens=20)
    pairs = [*zip(sentences(3, longest=4), sentences(3, longest=4), strict=True), (LONG, "x"), ("a", "b")]
    scored = translator.score_stream(pairs)
    alone = translator.score([src for src, _ in pairs[:3]], [tgt for _, tgt in pairs[:3]])
    for (src, tgt), expected in zip(pairs[:3], alone, strict=True):
        source, result = next(scored)
        assert result is not None
        assert (source, result.text) == (src, tgt)
        assert result.score == pytest.approx(expected.score, abs=1e-5)
    with pytest.raises(DataError, match="a source line may have at most 20") as caught:
        next(scored)
    assert caught.value.where == "source line 4"


def test_pairs_that_are_too_long_can_be_left_out() -> None:
    translator = make(max_source_tokens=20)
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


def mean_score(translator: Translator, pairs: Sequence[tuple[str, str]], tag: str = "") -> float:
    scored = translator.score([src for src, _ in pairs], [tgt for _, tgt in pairs], tag=tag)
    return sum(translation.score for translation in scored) / len(pairs)


def test_a_line_is_scored_in_the_segments_in_which_it_is_translated() -> None:
    """Sentences are scored one by one if both sides have as many; otherwise the line is scored as a whole."""
    translator = make(max_length_ratio=2.0)
    src, tgt = "The old man sees. My sister hears a bird.", "Der alte Mann. Meine Schwester hört Vögel."
    sentences = list(zip(split_sentences(src), split_sentences(tgt), strict=True))
    whole = translator.score([src], [tgt])[0].score
    [in_parts, of_one, unsplit] = translator.score(
        [src, src, "a bird"], [tgt, "Der Mann", "x"], split_sentences=True
    )
    assert in_parts.score == pytest.approx(mean_score(translator, sentences), abs=1e-5)
    assert abs(in_parts.score - whole) > 1e-3
    assert of_one.score == pytest.approx(mean_score(translator, [(src, "Der Mann")]), abs=1e-5)
    assert unsplit.score == pytest.approx(mean_score(translator, [("a bird", "x")]), abs=1e-5)
    short = make(max_source_tokens=len(translator.tokenizers.src.encode([src])[0]) - 1, max_length_ratio=2.0)
    assert short.score([src], [tgt])[0].score == pytest.approx(in_parts.score, abs=1e-5)
    with pytest.raises(DataError, match="source line 1"):
        short.score([src], ["Der Mann"])
    [(_, streamed)] = short.score_stream([(src, tgt)], split_sentences=False)
    assert streamed is not None and streamed.score == pytest.approx(in_parts.score, abs=1e-5)


def test_every_segment_is_scored_with_the_tag() -> None:
    """The tag counts like a word of each segment, which it is here."""
    translator = make()
    pairs = [("the old man.", "Der Mann."), ("a bird.", "Vogel.")]
    [tagged] = translator.score(
        ["The old man. A bird."], ["Der Mann. Vogel."], tag="my", split_sentences=True
    )
    alone = [("The old man.", "Der Mann."), ("A bird.", "Vogel.")]
    assert tagged.score == pytest.approx(mean_score(translator, alone, tag="my"), abs=1e-5)
    with_word = mean_score(translator, [(f"my {src}", tgt) for src, tgt in pairs])
    assert mean_score(translator, pairs, tag="my") == pytest.approx(with_word, abs=1e-5)


def test_scores_do_not_depend_on_the_chunk_size_of_the_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    srcs, tgts = sentences(12), sentences(12, seed=3)
    together = [t.score for t in make().score(srcs, tgts)]
    monkeypatch.setattr("mtkit.translation.scoring.LOGITS_CHUNK", 1)
    assert [t.score for t in make().score(srcs, tgts)] == pytest.approx(together, abs=1e-5)


def test_a_gpu_computes_more_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = Ensemble.log_probs

    def log_probs(self: Ensemble, hidden: Sequence[Tensor]) -> Tensor:
        sizes.append(len(hidden[0]))
        return original(self, hidden)

    monkeypatch.setattr(Ensemble, "log_probs", log_probs)
    translator = make()
    monkeypatch.setattr("mtkit.translation.scoring.LOGITS_CHUNK", 2 * translator.tokenizers.tgt.vocab_size)
    for device in ("cpu", "cuda"):
        sizes.clear()
        with PretendedGPU():
            gpu = Translator(translator.model.to(device), translator.tokenizers, translator.decoding)
            gpu.score(sentences(12), sentences(12, seed=3))
        assert max(sizes) == (2 if device == "cpu" else sum(sizes))
