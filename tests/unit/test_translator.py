"""The translator, with tiny untrained models: order, batches, scores, long lines, streams, loading."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from mtkit.checkpoint import Checkpoint, save_checkpoint, step_folder
from mtkit.cli.systems import config_of
from mtkit.config.loading import dump_config
from mtkit.config.sections import (
    Config,
    DataConfig,
    DecodingConfig,
    ModelConfig,
    SourceConfig,
    TokenizerConfig,
    ValidationConfig,
)
from mtkit.data.readers import Pair
from mtkit.data.tokenizer import Tokenizers, make_tokenizers
from mtkit.errors import ConfigError, DataError, StorageError
from mtkit.model.build import copy_weights, make_model
from mtkit.model.cpu.native.library import instructions
from mtkit.model.transformer import Transformer
from mtkit.search.beam import search
from mtkit.search.sampling import SamplingOptions
from mtkit.search.state import Hypothesis, SearchOptions
from mtkit.translation import batched_search
from mtkit.translation.assembly import Translation
from mtkit.translation.engine import Search
from mtkit.translation.loading import find_checkpoint, load_model
from mtkit.translation.mbr import Utility, minimum_risk
from mtkit.translation.model_folder import read_decoding
from mtkit.translation.options import SERIAL, DecodingOverrides, TranslateOptions
from mtkit.translation.reading import PATIENCE_SECONDS, read_chunks
from mtkit.translation.segments import Request, Segment
from mtkit.translation.sentence_splitting import split_point
from mtkit.translation.translator import Translator

WORDS = ["the", "old", "man", "sees", "a", "bird", "and", "my", "sister", "hears", "children", "in", "houses"]
GERMAN = [
    "der",
    "alte",
    "Mann",
    "sieht",
    "einen",
    "Vogel",
    "und",
    "meine",
    "Schwester",
    "hört",
    "Kinder",
    "in",
]
POSITIONS = ["sinusoidal", "learned", "rotary", "relative"]


def sentences(count: int, words: Sequence[str] = WORDS, longest: int = 12, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(1, longest))) + rng.choice(".?!") for _ in range(count)]


@cache
def tokenizers(joint: bool = True) -> Tokenizers:
    pairs = map(Pair, sentences(100), sentences(100, GERMAN, seed=2))
    return make_tokenizers(TokenizerConfig(vocab_size=325, joint=joint), pairs)


def tiny_config(**keys: Any) -> ModelConfig:
    sizes = {"d_model": 16, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    return ModelConfig(**(sizes | {"tie_embeddings": "none"} | keys))


def make(
    joint: bool = True, max_source_tokens: int = 256, model_keys: Any = None, **decoding: Any
) -> Translator:
    """Return a translator with a random model; large output weights keep continuations from being nearly equal."""
    torch.manual_seed(5)
    model = make_model(tiny_config(**(model_keys or {})), tokenizers(joint)).eval()
    with torch.no_grad():
        model.output.weight.mul_(4)
    keys = {"max_length_ratio": 0.7, "max_length_extra": 3, "beam_size": 3, "avoid_loops": False} | decoding
    return Translator(model, tokenizers(joint), DecodingConfig(**keys), max_source_tokens)


def texts(translator: Translator, lines: Sequence[str]) -> list[str]:
    return [translation.text for translation in translator.translate(lines)]


# --- loops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 4])
def test_what_would_be_a_loop_is_searched_again_without_repetition(beam_size: int) -> None:
    keys = {"beam_size": beam_size, "max_length_ratio": 2.0, "max_length_extra": 20}
    lines = [*sentences(40, longest=9), "the the the the the", "the cat " * 4]
    ids = make().tokenizers.src.encode(lines)
    plain, blocked, found = (
        [hyps[0].ids for hyps in make(**keys, **own).search_ids(ids)]
        for own in ({}, {"no_repeat_ngram": 3}, {"avoid_loops": True})
    )
    repeated = [has_loop(hyp) and not has_loop(src.tolist()) for hyp, src in zip(plain, ids, strict=True)]
    assert True in repeated[:-2] and not any(repeated[-2:])
    for again, *hyps in zip(repeated, plain, blocked, found, strict=True):
        assert hyps[2] == hyps[1 if again else 0]
    weaker = make(**keys, avoid_loops=True, no_repeat_ngram=8).search_ids(ids[:-2])
    assert not any(
        has_loop(hyps[0].ids) for hyps, src in zip(weaker, ids, strict=False) if not has_loop(src.tolist())
    )
    assert any(map(has_loop, plain[-2:]))


def has_loop(ids: Sequence[int]) -> bool:
    """Return whether any tokens come four times in a row."""
    return re.search(r"(.+)\1{3}", "".join(map(chr, ids)), re.DOTALL) is not None


def test_a_number_that_ends_in_zeros_is_no_loop() -> None:
    translator = make(avoid_loops=True)
    tgt = translator.tokenizers.tgt
    [segment] = translator.segmenter.segment_lines([Request("a million birds")])[0].segments
    for text, is_loop in (
        ("0 0 0 0 0 0", False),
        ("9 9 9 9 9 9", True),
        ("x x x x x x", True),
        ("x x x", False),
    ):
        hyp = Hypothesis(tgt.encode([text])[0].tolist(), 0.0, 0.0)
        assert has_loop(hyp.ids) == (text != "x x x")
        assert bool(translator.batched_search._without_loops([segment], [[hyp]])) == is_loop


# --- order and batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positions", "beam_size"), [("sinusoidal", 1), *((kind, 4) for kind in POSITIONS)])
def test_a_batch_of_64_gives_what_64_batches_of_1_give(positions: str, beam_size: int) -> None:
    lines = sentences(64, longest=9)
    keys = {"model_keys": {"positions": positions}, "beam_size": beam_size, "max_length_ratio": 0.4}
    batches, together = watch(make(batch_tokens=10**6, **keys), lines)
    assert [len(batch) for batch in batches] == [64]
    batches, alone = watch(make(batch_tokens=1, **keys), lines)
    assert [len(batch) for batch in batches] == [1] * 64
    assert [t.text for t in together] == [t.text for t in alone]
    assert [t.score for t in together] == pytest.approx([t.score for t in alone], abs=1e-5)


def watch(translator: Translator, lines: Sequence[str]) -> tuple[list[Tensor], list[Translation]]:
    """Return the source batches made from these lines, and their translations."""
    batches: list[Tensor] = []
    encode = translator.model.encode

    def recording(src_BS: Tensor) -> Tensor:
        batches.append(src_BS)
        return encode(src_BS)

    translator.model.encode = recording  # type: ignore[method-assign]
    return batches, list(translator.translate(lines))


def test_order_is_kept_and_empty_lines_stay_empty() -> None:
    translator = make()
    lines = ["", *sentences(9), "   ", "", "x", " a ", "\t", *sentences(5, seed=3), ""]
    out = list(translator.translate(lines))
    assert len(out) == len(lines)
    alone = [next(iter(translator.translate([line]))) for line in lines]
    assert [t.text for t in out] == [t.text for t in alone]
    for line, translation in zip(lines, out, strict=True):
        if not line.strip():
            assert (translation.text, translation.score) == ("", 0.0)
        else:
            assert translation.score < 0
    assert list(translator.translate([])) == []
    assert texts(translator, ["", ""]) == ["", ""]


def test_no_line_break_in_a_translation() -> None:
    lines = [*sentences(20), "\x0b\u2028\x85 a", "日本語 🙂"]
    for n_best in make(beam_size=4, n_best=4).translate_n_best(lines):
        assert not any("\n" in translation.text or "\r" in translation.text for translation in n_best)


def test_batches_hold_their_budget() -> None:
    batches, _ = watch(make(batch_tokens=90, beam_size=3, max_length_ratio=0.2), sentences(40))
    for batch in batches:
        assert batch.numel() <= 90 // 3 or len(batch) == 1


def test_only_read_ahead_lines_are_read_ahead() -> None:
    read = []

    def stream() -> Iterator[str]:
        for line in ["a", "", "the bird", "a man", "b", "sister", "", "c", "d"]:
            read.append(line)
            yield line

    out = make().translate(stream(), TranslateOptions(read_ahead=4))
    assert read == []
    given = 0
    for _ in out:
        given += 1
        assert len(read) == min(9, -(-given // 4) * 4)
    assert given == 9


def test_lines_that_have_arrived_do_not_wait_for_later_ones() -> None:
    """However the lines arrive, they are translated like lines that arrive at once."""
    lines = [*sentences(6), "", "a"]
    translator = make(sample=True, n_best=2, max_source_tokens=12)
    together = [[t.text for t in n_best] for n_best in translator.translate_n_best(lines)]
    comes_late = iter([True, False, False, True, True, True, False, True])
    read: list[str] = []

    def stream() -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    options = TranslateOptions(is_ready=lambda seconds: next(comes_late))
    had = []
    for n_best, expected in zip(translator.translate_n_best(stream(), options), together, strict=True):
        assert [t.text for t in n_best] == expected
        had.append(len(read))
    assert had == [2, 2, 3, 7, 7, 7, 7, 8]


def test_a_steady_writer_does_not_delay_a_line_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(
        "mtkit.translation.reading.time.monotonic", lambda: next(clock) * PATIENCE_SECONDS / 4
    )
    waits: list[float] = []

    def is_ready(seconds: float) -> bool:
        waits.append(seconds)
        return seconds > 0

    assert [len(chunk) for chunk in read_chunks(range(10), 100, is_ready)] == [5, 5]
    assert waits[:5] == pytest.approx([PATIENCE_SECONDS * i / 4 for i in (4, 3, 2, 1, 0)], abs=1e-9)


def test_items_before_any_error_are_kept() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise ValueError("a fault of the caller")

    chunks = read_chunks(items(), 2)
    assert [next(chunks), next(chunks)] == [[1, 2], [3]]
    with pytest.raises(ValueError, match="a fault of the caller"):
        next(chunks)


@pytest.mark.parametrize(("key", "value"), [("read_ahead", 0), ("on_error", "ignore")])
def test_options_that_cannot_be_followed(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        TranslateOptions(**{key: value})
    assert caught.value.where == key


def test_lines_before_a_bad_line_are_translated() -> None:

    def stream() -> Iterator[str]:
        yield from ("a bird", "the man")
        raise DataError("invalid UTF-8", where="line 3")

    out = make().translate(stream(), TranslateOptions(read_ahead=2))
    assert next(out).text != ""
    assert next(out).text != ""
    with pytest.raises(DataError):
        next(out)


# --- the search is of this model ----------------------------------------------------------------------------------


class WholeStepper:
    """A step function that decodes the whole target again at each step: no cache."""

    def __init__(self, model: Transformer, src_BS: Tensor, beam_size: int) -> None:
        self.model, self.src_BS = model, src_BS
        self.vocab_size = model.tgt_embedding.num_embeddings
        self.tgt_BKT = torch.empty(len(src_BS), 1, 0, dtype=torch.long)

    def step(self, tokens_BK: Tensor) -> Tensor:
        self.tgt_BKT = torch.cat([self.tgt_BKT, tokens_BK[:, :, None]], 2)
        B, K = tokens_BK.shape
        hidden = self.model(self.src_BS.repeat_interleave(K, 0), self.tgt_BKT.flatten(0, 1))[:, -1]
        return self.model.logits(hidden).view(B, K, -1)

    def logits(self, hidden_BKD: torch.Tensor, first: int = 0) -> torch.Tensor:
        return hidden_BKD

    def reorder(self, parents_BK: Tensor) -> None:
        self.tgt_BKT = self.tgt_BKT.gather(1, parents_BK[:, :, None].expand(-1, -1, self.tgt_BKT.shape[2]))

    def keep_rows(self, rows_B: Tensor) -> None:
        self.src_BS, self.tgt_BKT = self.src_BS[rows_B], self.tgt_BKT[rows_B]

    def attention(self) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("positions", "beam_size", "joint"), [("learned", 1, False), *((kind, 4, True) for kind in POSITIONS)]
)
def test_cached_search_equals_search_without_a_cache(positions: str, beam_size: int, joint: bool) -> None:
    keys = {"positions": positions, "num_kv_heads": 1}
    translator = make(joint, beam_size=beam_size, n_best=beam_size, model_keys=keys)
    src = translator.tokenizers.src
    found = translator.search_ids(src.encode(sentences(6)))
    for line, ours in zip(sentences(6), found, strict=True):
        ids = src.encode([line])[0]
        src_BS = torch.tensor([[*ids.tolist(), src.eos]])
        whole = WholeStepper(translator.model, src_BS, beam_size)
        (theirs,) = search(whole, [translator.decoding.max_length(len(ids))], translator.search_options)
        assert [h.ids for h in ours] == [h.ids for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-5)


def test_each_key_of_decoding_reaches_the_search() -> None:
    keys: dict[str, Any] = {
        "length_penalty": 0.3, "penalty_kind": "simple", "coverage_penalty": 0.2, "stop": "certain",
        "no_repeat_ngram": 3, "groups": 2, "diversity": 0.7, "renormalize": True, "beam_size": 4, "n_best": 2,
    }  # fmt: skip
    tgt = tokenizers().tgt
    found = asdict(batched_search.search_options(DecodingConfig(min_pieces=2, **keys), tgt))
    assert {key: found[key] for key in (*keys, "min_length")} == keys | {"min_length": 2}
    drawn = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "epsilon": 0.01}
    decoding = DecodingConfig(sample=True, n_best=3, sample_seed=9, **drawn)
    assert batched_search._sampling_options(decoding) == SamplingOptions(num_samples=3, seed=9, **drawn)


def test_greedy_search_takes_the_most_probable_token() -> None:
    translator = make(beam_size=1)
    model, src, tgt = translator.model, translator.tokenizers.src, translator.tokenizers.tgt
    banned = [tgt.pad, tgt.bos, tgt.unk, *range(tgt.num_pieces, tgt.vocab_size)]
    for line, (found,) in zip(sentences(8), translator.search_ids(src.encode(sentences(8))), strict=True):
        ids = src.encode([line])[0].tolist()
        tokens, log_prob = [tgt.bos], 0.0
        with torch.no_grad():
            while tokens[-1] != tgt.eos:
                hidden = model(torch.tensor([[*ids, src.eos]]), torch.tensor([tokens]))[0, -1]
                log_probs = model.logits(hidden).log_softmax(-1)
                allowed = log_probs.clone()
                allowed[banned] = -torch.inf
                last = len(tokens) == translator.decoding.max_length(len(ids))
                tokens.append(tgt.eos if last else int(allowed.argmax()))
                log_prob += log_probs[tokens[-1]].item()
        assert found.ids == tokens[1:-1]
        assert found.log_prob == pytest.approx(log_prob, abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("joint", [True, False])
def test_score_of_a_translation_is_the_score_that_was_printed(joint: bool, length_penalty: float) -> None:
    translator = make(joint, beam_size=4, n_best=4, length_penalty=length_penalty)
    sources = translator.tokenizers.src.encode(sentences(30))
    found = translator.search_ids(sources)
    pairs = [(ids, hypothesis) for ids, n_best in zip(sources, found, strict=True) for hypothesis in n_best]
    targets = [np.array(hypothesis.ids, dtype=np.int32) for _, hypothesis in pairs]
    scores = translator.scorer.score_ids([ids for ids, _ in pairs], targets)
    assert scores == pytest.approx([hypothesis.score for _, hypothesis in pairs], abs=1e-5)
    for _, hypothesis in pairs:
        penalty = ((5 + len(hypothesis.ids) + 1) / 6) ** length_penalty
        assert hypothesis.score == pytest.approx(hypothesis.log_prob / penalty, rel=1e-5)


def test_translations_are_the_hypotheses_as_text() -> None:
    translator = make(beam_size=3, n_best=2)
    lines = sentences(10)
    found = translator.search_ids(translator.tokenizers.src.encode(lines))
    for translations, hypotheses in zip(translator.translate_n_best(lines), found, strict=True):
        decoded = translator.tokenizers.tgt.decode([h.ids for h in hypotheses])
        assert [t.text for t in translations] == decoded
        assert [t.score for t in translations] == [h.score for h in hypotheses]


def test_n_best_are_sorted_and_begin_with_the_best() -> None:
    lines = ["", *sentences(20)]
    translator, first_alone = make(beam_size=5, n_best=5), make(beam_size=5)
    empty, *rest = translator.translate_n_best(lines)
    assert [t.text for t in empty] == [""]
    for n_best in rest:
        scores = [translation.score for translation in n_best]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
    hypotheses = translator.search_ids(translator.tokenizers.src.encode(lines[1:]))
    assert all(len({tuple(h.ids) for h in n_best}) == 5 for n_best in hypotheses)  # all different
    best = list(first_alone.translate(lines[1:]))
    assert all(n_best[0].score >= one.score - 1e-5 for n_best, one in zip(rest, best, strict=True))


@pytest.mark.parametrize(("ratio", "extra"), [(1.5, 3), (0.3, 0), (1.0, 1)])
def test_no_translation_is_longer_than_allowed(ratio: float, extra: int) -> None:
    translator = make(beam_size=3, n_best=3, max_length_ratio=ratio, max_length_extra=extra)
    sources = translator.tokenizers.src.encode(sentences(30))
    longest = 0
    for ids, hypotheses in zip(sources, translator.search_ids(sources), strict=True):
        limit = int(ratio * len(ids)) + extra
        assert translator.decoding.max_length(len(ids)) == limit + 1
        assert all(len(hypothesis.ids) <= limit for hypothesis in hypotheses)
        longest += any(len(hypothesis.ids) == limit for hypothesis in hypotheses)
    assert longest > 0  # the limit is what ended some


def test_special_and_unused_tokens_never_appear() -> None:
    translator = make(beam_size=4, n_best=4)
    tgt = translator.tokenizers.tgt
    assert tgt.vocab_size > tgt.num_pieces  # there are unused rows
    banned = {tgt.pad, tgt.bos, tgt.eos, tgt.unk, *range(tgt.num_pieces, tgt.vocab_size)}
    with torch.no_grad():  # the model likes them best
        rows = sorted(banned - {tgt.eos})
        translator.model.output.weight[rows] *= 10
    for hypotheses in translator.search_ids(translator.tokenizers.src.encode(sentences(20))):
        assert not any(banned & set(hypothesis.ids) for hypothesis in hypotheses)


# --- given translations --------------------------------------------------------------------------------------------


def test_scores_of_given_translations_do_not_depend_on_the_batch() -> None:
    srcs, tgts = ["", *sentences(20)], ["ein Vogel", *sentences(20, GERMAN, seed=2)]
    together, alone = make(batch_tokens=10**6).score(srcs, tgts), make(batch_tokens=1).score(srcs, tgts)
    assert [t.text for t in together] == tgts
    assert [t.score for t in together] == pytest.approx([t.score for t in alone], abs=1e-5)
    assert all(t.score < 0 for t in together)


def test_score_is_the_log_probability_over_the_penalty() -> None:
    translator = make(length_penalty=0.6)
    src, tgt = translator.tokenizers.src, translator.tokenizers.tgt
    source, target = src.encode(["the old man"])[0].tolist(), tgt.encode(["der alte Mann"])[0].tolist()
    with torch.no_grad():
        model = translator.model
        hidden = model(torch.tensor([[*source, src.eos]]), torch.tensor([[tgt.bos, *target]]))[0]
        log_probs = model.logits(hidden).log_softmax(-1)
    total = sum(log_probs[place, piece].item() for place, piece in enumerate([*target, tgt.eos]))
    (scored,) = translator.score(["the old man"], ["der alte Mann"])
    assert scored.score == pytest.approx(total / ((5 + len(target) + 1) / 6) ** 0.6, abs=1e-5)


def test_score_of_an_empty_line_is_what_translate_prints() -> None:
    translator = make()
    (printed,) = translator.translate([""])
    scored = translator.score(["", "a bird", ""], ["", "", ""])
    assert [t.score for t in scored][::2] == [printed.score] * 2 == [0.0] * 2
    assert scored[1].score < 0
    assert translator.score([], []) == []


def test_score_needs_as_many_sources_as_targets() -> None:
    with pytest.raises(DataError, match="2 source lines, but 1 target lines"):
        make().score(["a", "b"], ["c"])


def test_minimum_risk_is_computed_as_soon_as_a_batch_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No work is left after the last line is reported, and candidates are not kept until then."""
    events: list[str | int] = []

    def noted(candidates: Sequence[str], utility: Utility) -> list[tuple[int, float]]:
        events.append("chosen")
        return minimum_risk(candidates, utility)

    monkeypatch.setattr(batched_search, "minimum_risk", noted)
    translator = make(mbr="chrf", mbr_candidates=4, batch_tokens=1)
    found = translator.translate(
        sentences(3), TranslateOptions(on_progress=events.append, parallelism=SERIAL)
    )
    assert len(list(found)) == 3
    assert events == ["chosen", 1] * 3


# --- long lines ---------------------------------------------------------------------------------------------------


class Recorder(Translator):
    """Records the segments that are searched."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.segments: list[list[int]] = []
        self.batched_search.start_search = self.note  # type: ignore[method-assign]

    def note(self, segments: Sequence[Segment], *_: Any) -> Search:
        self.segments = [segment.ids.tolist() for segment in segments]
        return Search(lambda: [[Hypothesis([5], -1.0, -1.0)] for _ in segments])


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20, 256])
def test_segments_lose_no_text(limit: int) -> None:
    base = make()
    recorder = Recorder(base.model, base.tokenizers, base.decoding, limit)
    rng = random.Random(limit)
    alphabet = "a bird, my sister. wow 日本語。 🙂 3.14 x-y\u2028"
    lines = [
        "",
        "x",
        ", " * 300,
        "y" * 400,
        "日本" * 100,
        " ".join(sentences(20)),
        *("".join(rng.choices(alphabet, k=rng.randint(1, 120))) for _ in range(30)),
    ]
    for line in lines:
        recorder.segments = []
        (translation,) = recorder.translate([line])
        whole = base.tokenizers.src.encode([line])[0].tolist()
        decode = base.tokenizers.src.decode
        joined = [token for segment in recorder.segments for token in segment]
        assert decode([joined])[0].replace(" ", "") == decode([whole])[0].replace(" ", "")
        assert all(1 <= len(segment) <= limit for segment in recorder.segments)
        assert len(recorder.segments) <= max(1, -(-2 * len(whole) // limit))  # no more than halves
        assert bool(translation.text) == bool(whole)


def test_a_long_line_is_the_joined_translations_of_its_segments() -> None:
    translator = make(max_source_tokens=20, n_best=2)
    long_line = "the old man sees a bird and my sister, hears children in her garden, near two green houses."
    base = make()
    recorder = Recorder(base.model, base.tokenizers, base.decoding, 20)
    assert len(list(recorder.translate([long_line]))) == 1
    segments = [np.array(segment, dtype=np.int32) for segment in recorder.segments]
    assert len(segments) > 1
    found = translator.search_ids(segments)
    lines = ["a bird.", long_line, "my sister."]
    out = list(translator.translate_n_best(lines))
    for rank in range(2):
        hyps = [n_best[rank] for n_best in found]
        decoded = translator.tokenizers.tgt.decode([hyp.ids for hyp in hyps])
        assert out[1][rank].text == " ".join(decoded)
        assert out[1][rank].score == pytest.approx(np.mean([hyp.score for hyp in hyps]), abs=1e-5)
    assert [t[0].text for t in out[::2]] == texts(translator, lines[::2])


@pytest.mark.parametrize(
    ("pieces", "place"),
    [
        ("▁a ▁b ▁c ▁d ▁e ▁f", 5),  # before the last word
        ("▁a ▁b ▁c ▁d , ▁e ▁f ▁g", 5),  # after the comma
        ("▁a ▁b ▁c, ▁d ▁e. ▁f ▁g", 5),  # after the later of two
        ("▁a , ▁b ▁c ▁d ▁e", 5),  # the comma is in the first half
        ("▁a b c d e f", 6),  # one word: anywhere
        ("▁a ▁b ▁3 . 1 4", 6),  # no clause ends inside a number, and the last word begins in the first half
        ("▁a ▁b ▁c ▁3 . 1 4", 7),
        ("▁a ▁b ▁c ▁d ▁3 . 1 4", 8),
        ("▁a ▁b ▁c ▁d ▁e ▁3 . 1 4", 5),
        ("▁日 本 語 。 日 本 。 語", 7),  # no spaces in Japanese
        ("▁日 本 語 日 本 語", 6),
        ("▁a", 1),
        ("a b", 2),
    ],
)
def test_split_point(pieces: str, place: int) -> None:
    found = pieces.split()
    assert split_point(found, last_characters(found), lambda piece, before: piece.startswith("▁")) == place


def last_characters(pieces: list[str]) -> list[str]:
    """Return the last character before each piece."""
    return ["", *(piece[-1] for piece in pieces[:-1])]


def test_split_point_between_words_whose_pieces_are_marked_at_their_end() -> None:
    pieces = ["ein", "Hun@@", "d", ",", "der", "bel@@", "l@@", "t"]
    before = last_characters(pieces)
    assert split_point(pieces, before, lambda piece, before: not before.endswith("@@")) == 5
    assert split_point(pieces, before, lambda piece, before: True) == 7


# --- progress -----------------------------------------------------------------------------------------------------


def test_progress_counts_lines_each_once() -> None:
    """Covers lines of several sentences, long and empty lines, and lines searched again, over several chunks."""
    translator = make(max_source_tokens=10, batch_tokens=60)
    told: list[int] = []
    options = TranslateOptions(split_sentences=True, read_ahead=7, on_progress=told.append)
    lines: list[str | Request] = ["", "A bird. The man! My sister?", *sentences(9, longest=20), "  "]
    lines += [Request("a bird 77", keep_numbers=True), "the old man. " * 12]
    for num_given, _ in enumerate(translator.translate(lines, options), 1):
        assert sum(told) >= num_given
    assert sum(told) == len(lines)
    assert len(told) > 4
    assert all(number > 0 for number in told)


def test_segments_of_a_line_get_different_samples() -> None:
    translator = make(sample=True, n_best=4)
    sentence = "The old man sees a bird."
    [alone] = translator.translate_n_best([sentence])
    options = TranslateOptions(split_sentences=True)
    [twice] = translator.translate_n_best([f"{sentence} {sentence}"], options)
    for one, both in zip(alone, twice, strict=True):
        assert both.text.startswith(f"{one.text} ")  # the first segment has the samples of the line alone
        assert both.text != f"{one.text} {one.text}"


@pytest.mark.parametrize("on_error", ["skip", "copy"])
@pytest.mark.parametrize("read_ahead", [1, 3, 100])
def test_lines_with_faults_are_skipped_or_copied(on_error: Any, read_ahead: int) -> None:
    """The others are translated as without them, also if it is the search that finds nothing."""
    good = sentences(5)
    unread = DataError("not UTF-8", where="stdin:3")
    bad = {
        2: Request("x\ufffd", fault=unread),
        4: Request("", prefix="der"),
        6: Request("y", constraints=((" ",),)),
    }
    lines: list[str | Request] = [*good[:2], bad[2], good[2], bad[4], good[3], bad[6], good[4]]
    told: list[tuple[int, DataError]] = []
    options = TranslateOptions(
        on_error=on_error, on_fault=lambda *fault: told.append(fault), first_line=10, read_ahead=read_ahead,
        keep_attention=True, keep_links=True,
    )  # fmt: skip
    translator = make(n_best=2)
    found = list(translator.translate_n_best(lines, options))
    expected = list(translator.translate_n_best(good))
    assert [[t.text for t in n] for i, n in enumerate(found) if i not in bad] == [
        [t.text for t in n] for n in expected
    ]
    assert [number for number, _ in told] == [12, 14, 16]
    assert [fault.where for _, fault in told] == ["stdin:3", "line 15", "line 17"]
    for (number, request), (_, fault) in zip(bad.items(), told, strict=True):
        assert found[number] == [Translation(request.text if on_error == "copy" else "", 0.0, fault=fault)]
    told.clear()
    translator.translate_one(bad[2], options)
    assert len(told) == 1

    def nothing(segments: Sequence[Segment], *_: Any, **__: Any) -> Search:
        return Search(lambda: [[] for _ in segments])

    translator.batched_search.start_search = nothing  # type: ignore[method-assign]
    [translation] = translator.translate(["a bird"], options)
    assert (translation.text, told[-1][0]) == ("a bird" if on_error == "copy" else "", 10)
    with pytest.raises(DataError, match="no translation has a score"):
        list(translator.translate(["a bird"]))


def test_lines_with_faults_have_no_alternatives() -> None:
    told: list[int] = []
    options = TranslateOptions(on_error="skip", on_fault=lambda number, _: told.append(number))
    lines = ["a bird", "the man. " * 99, Request("x", fault=DataError("not UTF-8")), "a bird"]
    first, second, third, last = make().alternatives(lines, 2, options)
    assert (first, second, third) == (last, [], [])
    assert told == [1, 2]


def test_calls_are_independent() -> None:
    """Each call draws the same samples and counts its own lines, whether calls follow each other or overlap."""
    translator = make(sample=True, n_best=2)
    lines = sentences(6)
    expected = [[t.text for t in n_best] for n_best in translator.translate_n_best(lines)]
    options = TranslateOptions(read_ahead=2)
    interleaved = zip(
        translator.translate_n_best(lines, options), translator.translate_n_best(lines), strict=True
    )
    for n_best, (one, other) in zip(expected, interleaved, strict=True):
        assert [t.text for t in one] == [t.text for t in other] == n_best
    rest = translator.translate_n_best(lines[4:], TranslateOptions(first_line=4))
    assert [[t.text for t in n_best] for n_best in rest] == expected[4:]
    for first in (0, 0, 7):
        with pytest.raises(DataError) as caught:
            list(translator.translate(["", Request("", prefix="der")], TranslateOptions(first_line=first)))
        assert caught.value.where == f"line {first + 2}"
        with pytest.raises(DataError) as caught:
            list(translator.alternatives(["", "the man. " * 99], 1, TranslateOptions(first_line=first)))
        assert caught.value.where == f"line {first + 2}"


# --- loading --------------------------------------------------------------------------------------------------------


def save(folder: Path, seed: int = 0, joint: bool = True, **state: Any) -> tuple[Config, Transformer]:
    """Save a run folder with one checkpoint."""
    torch.manual_seed(seed)
    data = DataConfig(src="en", tgt="de", train=(SourceConfig(demo="en-de", pairs=10),), max_length=17)
    config = Config(
        run=str(folder),
        data=data,
        tokenizer=TokenizerConfig(joint=joint),
        model=tiny_config(tie_embeddings=None),
        decoding=DecodingConfig(beam_size=2, max_length_extra=3),
    )
    model = make_model(config.model, tokenizers(joint)).eval()
    folder.mkdir(exist_ok=True)
    tokenizers(joint).save(folder)
    checkpoint = Checkpoint(dict(model.named_parameters()), dump_config(config), {"step": seed, **state})
    save_checkpoint(step_folder(folder, seed), checkpoint)
    return config, model


def test_minimum_risk_uses_the_bleu_tokenizer_of_the_config(tmp_path: Path) -> None:
    config, model = save(tmp_path / "run")
    config = config.model_copy(update={"validation": ValidationConfig(bleu_tokenizer="char")})
    decoding = DecodingConfig(mbr="bleu", mbr_candidates=2)
    translator = Translator.of(config, tokenizers(True), model, decoding, torch.device("cpu"), "fp32")
    utility = translator.batched_search.utility
    assert utility is not None and utility(["Vögel"], ["Vogel"]) > 0


@pytest.mark.parametrize(("joint", "compiled"), [(True, True), (False, True), (True, False)])
def test_a_loaded_translator_equals_the_model_in_memory(
    tmp_path: Path, joint: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compiled library, where there is one, and without."""
    if not compiled:
        monkeypatch.setattr("mtkit.model.cpu.native.library._load", lambda: None)
    config, model = save(tmp_path / "run", joint=joint)
    loaded = Translator.load(tmp_path / "run", device="cpu", precision="fp32")
    assert (loaded.backend == "PyTorch") == (instructions() == 0)
    in_memory = Translator(model, tokenizers(joint), config.decoding, 17)
    lines = sentences(10, longest=30)
    ours, theirs = list(loaded.translate(lines)), list(in_memory.translate(lines))
    assert [t.text for t in ours] == [t.text for t in theirs]
    assert [t.score for t in ours] == pytest.approx([t.score for t in theirs], abs=1e-5)
    assert loaded.decoding == config.decoding
    assert loaded.max_source_tokens == 17
    assert not loaded.model.training
    other = DecodingConfig(beam_size=1)
    assert Translator.load(tmp_path / "run", decoding=other, device="cpu").decoding == other


def test_decoding_keys_are_overridden_at_load(tmp_path: Path) -> None:
    config, _ = save(tmp_path / "run")

    def load(**changes: Any) -> DecodingConfig:
        return Translator.load(tmp_path / "run", device="cpu", **changes).decoding

    assert load(beam_size=3) == config.decoding.model_copy(update={"beam_size": 3})
    assert load(n_best=9) == config.decoding.model_copy(update={"n_best": 9, "beam_size": 9})
    assert load(groups=3) == config.decoding.model_copy(update={"groups": 3, "beam_size": 3})
    assert load(groups=2, n_best=7).beam_size == 8
    assert load(suppress=["x"], mbr=None).suppress == ("x",)
    other = DecodingConfig(beam_size=1)
    assert load(sample=True, top_p=0.5).top_p == 0.5
    assert load(top_p=1.0, groups=1) == config.decoding
    assert load(decoding=other, length_penalty=0.5) == DecodingConfig(beam_size=1, length_penalty=0.5)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"beam": 3}, "decoding.beam: unknown key (did you mean beam_size?)"),
        ({"beam_size": 0}, "decoding.beam_size: must be greater than 0, got 0 (the default is 5)"),
        ({"beam_size": "3"}, "decoding.beam_size: expected an integer, got '3' (write 3)"),
        (
            {"stop": "never"},
            "decoding.stop: expected finished, unbeaten, all_unbeaten or certain, got 'never'",
        ),
        ({"beam_size": 4, "groups": 3}, "decoding: beam_size 4 is not a multiple of groups 3"),
        (
            {"top_p": 0.5},
            "decoding.top_p: has no effect without decoding.sample (it applies to sampling only)",
        ),
        (
            {"sample": True, "beam_size": 3},
            "decoding.beam_size: has no effect with decoding.sample (it applies to beam search only)",
        ),
        ({"precision": "fp8"}, "precision: unknown precision 'fp8' (auto, fp32, bf16, fp16 or int8)"),
        ({"device": "gpu"}, "device: unknown device 'gpu' (auto, cpu, cuda or cuda:1)"),
    ],
    ids=str,
)
def test_overrides_are_checked_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], what: str
) -> None:
    save(tmp_path / "run")
    monkeypatch.setattr("mtkit.translation.translator.load_stored_model", lambda path: pytest.fail("loaded"))
    with pytest.raises(ConfigError) as told:
        Translator.load(tmp_path / "run", **changes)
    assert str(told.value) == what


def test_overrides_have_all_keys_of_decoding_with_their_types() -> None:
    types, keys = get_type_hints(DecodingOverrides), get_type_hints(DecodingConfig)
    assert list(types) == list(DecodingConfig.model_fields)
    for name in types:
        assert types[name] == (Sequence[str] if name == "suppress" else keys[name]), name


def test_one_line_is_translated_like_many(tmp_path: Path) -> None:
    save(tmp_path / "run")
    translator = Translator.load(tmp_path / "run", device="cpu", precision="fp32")
    (line,) = sentences(1)
    assert translator.translate_one(line) == next(translator.translate([line]))
    assert translator.translate_one(Request(line, prefix="ein")).text.startswith("ein")


def test_a_single_text_is_rejected(tmp_path: Path) -> None:
    save(tmp_path / "run")
    translator = Translator.load(tmp_path / "run", device="cpu")
    text: Any = "a bird"
    for call in (
        lambda: translator.translate(text),
        lambda: translator.translate_n_best(text),
        lambda: translator.alternatives(text, 2),
        lambda: translator.score(text, ["x"]),
        lambda: translator.score(["x"], text),
    ):
        with pytest.raises(TypeError, match=r"must be a list of lines, not a single text: write \[text\]$"):
            call()
    with pytest.raises(TypeError, match="a line is a str or a Request, not int"):
        list(translator.translate(cast(Any, [1])))


def test_lines_that_are_longer_than_usual_are_translated_sentence_by_sentence(tmp_path: Path) -> None:
    """Older models, which do not store the usual length, do the same on request."""
    line = "The man! A bird."
    for usual, state in ((8, {"usual_src_tokens": 8}), (None, {})):
        save(tmp_path / str(usual), **state)
        translator = Translator.load(tmp_path / str(usual), device="cpu", precision="fp32")
        assert len(translator.tokenizers.src.encode([line])[0]) in range(9, 17)
        parts = texts(translator, ["The man!", "A bird."])
        whole, split = (
            next(translator.translate([line], TranslateOptions(split_sentences=each))).text
            for each in (False, True)
        )
        assert split == " ".join(parts) != whole
        assert next(translator.translate([line])).text == (whole if usual is None else split)
        steered = Request(line, prefix="der")
        assert next(translator.translate([steered])).text.startswith("der")
        assert next(translator.alternatives([steered], 1))
        short = sentences(3, longest=2)
        one_by_one = TranslateOptions(split_sentences=False)
        assert texts(translator, short) == [t.text for t in translator.translate(short, one_by_one)]


def test_tied_weights_are_tied_again_after_loading(tmp_path: Path) -> None:
    _, model = save(tmp_path / "run")
    _, _, loaded = load_model(tmp_path / "run")
    assert loaded.src_embedding.weight is loaded.output.weight
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_translator_in_bfloat16(tmp_path: Path) -> None:
    save(tmp_path / "run")
    loaded = Translator.load(tmp_path / "run", device="cpu", precision="bf16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert len(texts(loaded, sentences(5))) == 5
    exact = Translator.load(tmp_path / "run", device="cpu", precision="fp32")
    half_scores = [t.score for t in loaded.score(["a bird"], ["ein Vogel"])]
    assert half_scores == pytest.approx([t.score for t in exact.score(["a bird"], ["ein Vogel"])], rel=0.05)


def test_find_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run, seed=3)
    save(run, seed=10)
    newest = step_folder(run, 10)
    assert find_checkpoint(run) == newest
    assert find_checkpoint(step_folder(run, 3)) == step_folder(run, 3)
    (newest / "model.safetensors").write_bytes(b"damaged")
    assert find_checkpoint(run) == step_folder(run, 3)
    save_checkpoint(run / "best", Checkpoint({}, ""))
    assert find_checkpoint(run) == run / "best"


def test_a_run_has_the_data_and_decoding_that_it_was_last_trained_with(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config, _ = save(run)
    later = config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": "there"}),
            "decoding": DecodingConfig(beam_size=3),
        }
    )
    (run / "config.yaml").write_text(dump_config(later))
    assert read_decoding(run) == later.decoding
    for found in (config_of(str(run)), load_model(run)[0]):
        assert (found.data, found.decoding) == (later.data, later.decoding)
    assert read_decoding(step_folder(run, 0)) == config.decoding  # a checkpoint keeps its own
    (run / "config.yaml").write_text("damaged")
    assert read_decoding(run) == config.decoding


def test_paths_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, what in (
        ("file", "not a model folder"),
        ("nowhere", "no such folder"),
        ("empty", "no checkpoint"),
    ):
        with pytest.raises(StorageError, match=what):
            Translator.load(tmp_path / name)


def test_weights_of_another_model_are_refused() -> None:
    model = make_model(tiny_config(), tokenizers())
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    deeper = make_model(tiny_config(encoder_layers=3), tokenizers())
    with pytest.raises(StorageError, match=r"the weights do not match the model: encoder\.2"):
        copy_weights(deeper, weights, "here")
    wider = make_model(tiny_config(d_ff=8), tokenizers())
    with pytest.raises(StorageError, match="has the shape"):
        copy_weights(wider, weights, "here")
    copy_weights(model, weights, "here")


def test_options_come_from_the_config_and_the_tokenizer() -> None:
    translator = make(beam_size=4, n_best=2, length_penalty=0.3)
    tgt = translator.tokenizers.tgt
    options = SearchOptions(4, tgt.bos, tgt.eos, 2, 0.3)
    assert replace(translator.search_options, suppressed=()) == options
