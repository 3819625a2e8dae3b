"""Searches in fixed shapes, on the CPU: what `search` and `sample` find, with steps that could be CUDA graphs.

Steps are recorded and repeated by `taped_calls`, as a GPU would.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from taped_calls import Recorder, tape
from test_translator import make, sentences
from torch import Tensor

from mtkit.config.sections import ModelConfig
from mtkit.errors import TrainingError
from mtkit.model.cuda_graphs import ReplayedCall, cuda_graphs, without_graphs
from mtkit.model.static import Size, round_up, round_up_slots, size_of
from mtkit.model.transformer import Transformer
from mtkit.search.beam import search
from mtkit.search.buckets import Buckets, StaticStepper
from mtkit.search.constraints import Constraint
from mtkit.search.shortlist import Shortlist
from mtkit.search.state import SYNC_EVERY_STEPS, Hypothesis, SearchOptions
from mtkit.search.static_search import static_search
from mtkit.search.steppers import EnsembleStepper, ModelStepper
from mtkit.translation.batched_search import BatchedSearch
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.segments import Request, Segment
from mtkit.translation.translator import Translator

KINDS: dict[str, dict[str, Any]] = {
    "sinusoidal": {},
    "rotary, grouped heads": {"positions": "rotary", "num_kv_heads": 1, "norm": "rmsnorm"},
    "relative": {"positions": "relative", "max_relative_distance": 3},
    "learned, post-norm": {"positions": "learned", "norm_position": "post", "unique_decoder_layers": 1},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": 1},
    "n-best": {"beam_size": 4, "n_best": 3, "keep_log_probs": True},
    "certain": {"beam_size": 3, "stop": "certain", "length_penalty": 0.5},
    "all_unbeaten": {"beam_size": 5, "stop": "all_unbeaten", "min_length": 4, "penalty_kind": "simple"},
    "finished": {"beam_size": 4, "stop": "finished", "length_penalty": -0.5, "n_best": 2},
}
V = 90


def model_of(kind: str, seed: int = 1) -> Transformer:
    """Return a model with random weights, whose hypotheses end now and then."""
    torch.manual_seed(seed)
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_heads": 2,
        "d_ff": 24,
        "dropout": 0.0,
    }
    model = Transformer(ModelConfig.model_validate(sizes | KINDS[kind]), V, V).eval()
    with torch.no_grad():
        model.output.weight.mul_(5)
    return model


def batch_of(count: int, seed: int) -> tuple[Tensor, list[int], list[Sequence[int]]]:
    """Return sources, limits and prefixes of many lengths."""
    generator = torch.Generator().manual_seed(seed)
    src_BS = torch.randint(4, V, (count, 3 + seed % 5), generator=generator)
    for row in range(count):
        src_BS[row, 1 + row % src_BS.shape[1] :] = 0
    limits = [1 + (7 * row + seed) % 41 for row in range(count)]
    prefixes = [range(5, 5 + min(limit - 1, row % 4)) for row, limit in enumerate(limits)]
    return src_BS, limits, prefixes


def options_of(name: str) -> SearchOptions:
    return SearchOptions(bos=1, eos=2, suppressed=(0, 1, 3), **OPTIONS[name])


def check_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    """Check that hypotheses and scores are the same, up to rounding."""
    for own, others in zip(found, expected, strict=True):
        assert [hyp.ids for hyp in own] == [hyp.ids for hyp in others]
        for hyp, other in zip(own, others, strict=True):
            assert (hyp.score, hyp.log_prob) == pytest.approx((other.score, other.log_prob), rel=1e-4)
            assert hyp.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-4)


# --- hypotheses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "number"),
    [
        ("sinusoidal", "n-best", 1),
        ("sinusoidal", "certain", 2),
        ("relative", "finished", 1),
        pytest.param("rotary, grouped heads", "all_unbeaten", 1, marks=pytest.mark.slow),
        ("learned, post-norm", "greedy", 1),
    ],
)
def test_both_ways_find_what_the_growing_search_finds(kind: str, name: str, number: int) -> None:
    """Of several batches in the same buckets, of one model or of an ensemble."""
    models, options = [model_of(kind, 1 + index) for index in range(number)], options_of(name)
    whole, steps = Buckets(models, tape, fewest=1), Buckets(models, tape, fewest=1)
    lengths = []
    for count, seed in ((6, 3), (4, 8), (1, 4)):
        src_BS, limits, prefixes = batch_of(count, seed)
        growing = [ModelStepper(model, src_BS) for model in models]
        expected = search(
            growing[0] if number == 1 else EnsembleStepper(growing), limits, options, prefixes=prefixes
        )
        check_same(static_search(whole, src_BS, limits, options, prefixes), expected)
        if name in ("n-best", "finished"):
            static = [StaticStepper(steps, index, src_BS, options.beam_size) for index in range(number)]
            stepper = static[0] if number == 1 else EnsembleStepper(static)
            check_same(search(stepper, limits, options, prefixes=prefixes), expected)
        lengths += [len(hyp.ids) for hyps in expected for hyp in hyps]
    assert max(lengths) > 24 and len({*lengths}) > 5
    for buckets in (whole, steps) if steps.sizes else (whole,):
        assert {1, 2, 4, 6} <= {size.sentences for size in buckets.sizes} and buckets.num_graphs > 3
    if options.beam_size > 2:
        assert max(size.slots for size in whole.sizes) > min(size.slots for size in whole.sizes)


def decode(translator: Translator, buckets: Buckets | None, **more: Any) -> list[list[Hypothesis]]:
    """Search for translations of sentences with a translator's models, in buckets or with growing caches."""
    tgt, models = translator.tokenizers.tgt, [translator.model]
    ensemble = Ensemble(models, translator.tokenizers, buckets=buckets)
    engine = BatchedSearch(ensemble, translator.decoding, more.get("shortlist"))
    phrase = tuple(tgt.encode(["Vogel"])[0].tolist())
    constraints = (Constraint((phrase,)),) if more.get("constrained") else ()
    ids = translator.tokenizers.src.encode(sentences(7))
    return engine.search_segments(
        [
            Segment(each, 4 + 5 * (n % 4) + 5 * len(constraints), n, constraints=constraints * (n % 2))
            for n, each in enumerate(ids)
        ]
    )


@pytest.mark.parametrize(
    "decoding",
    [
        {"beam_size": 4, "n_best": 2},
        {"beam_size": 4, "groups": 2, "no_repeat_ngram": 2, "renormalize": True},
        {"beam_size": 3, "coverage_penalty": 0.2},
        {"sample": True, "n_best": 3, "top_p": 0.9},
        pytest.param({"beam_size": 2, "mbr": "chrf", "mbr_candidates": 4}, marks=pytest.mark.slow),
        {"beam_size": 4, "constrained": True},
        {"beam_size": 3, "shortlist": True},
    ],
    ids=str,
)
def test_every_search_of_a_translator(decoding: dict[str, Any]) -> None:
    more = {key: decoding[key] for key in ("constrained", "shortlist") if key in decoding}
    translator = make(joint=False, **{key: value for key, value in decoding.items() if key not in more})
    if "shortlist" in more:
        V = translator.tokenizers.src.vocab_size
        targets = np.arange(5 * V, dtype=np.int32) % translator.tokenizers.tgt.num_pieces
        more["shortlist"] = Shortlist(
            targets[:20], 5 * np.arange(V + 1), np.sort(targets.reshape(V, 5)).ravel()
        )
    buckets = Buckets([translator.model], tape)
    check_same(decode(translator, buckets, **more), decode(translator, None, **more))
    assert bool(buckets.sizes) == (not translator.decoding.coverage_penalty)


def test_alternatives_for_the_next_word() -> None:
    translator = make(joint=False)
    buckets = Buckets([translator.model], tape)
    static = Translator(translator.model, translator.tokenizers, translator.decoding, buckets=buckets)
    requests = [Request(line, prefix="der") for line in sentences(2)]
    for own, others in zip(
        static.alternatives(requests, 3), translator.alternatives(requests, 3), strict=True
    ):
        assert [(each.word, each.text) for each in own] == [(each.word, each.text) for each in others]
    assert buckets.sizes


def test_scores_that_are_not_numbers_are_an_error() -> None:
    model = model_of("sinusoidal")
    with torch.no_grad():
        model.output.weight.fill_(torch.nan)
    src_BS, limits, prefixes = batch_of(3, 4)
    with pytest.raises(TrainingError, match="scores are NaN"):
        static_search(Buckets([model]), src_BS, limits, options_of("n-best"), prefixes)
    assert static_search(Buckets([model]), src_BS[:0], [], options_of("n-best"), []) == []


# --- shapes, graphs, memory ---------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_step_does_the_same_with_the_same_shapes_each_time() -> None:
    options, (src_BS, limits, prefixes) = options_of("all_unbeaten"), batch_of(6, 3)
    buckets = Buckets([model_of("rotary, grouped heads")], without_graphs)
    bucket = buckets.bucket(size_of(*src_BS.shape, options.beam_size))
    bucket.load(0, src_BS)
    beam, step = bucket.search(options)
    beam.start(limits, prefixes)
    recorders = []
    for _ in range(SYNC_EVERY_STEPS):
        recorders.append(Recorder())
        with recorders[-1]:
            step()
    assert len(recorders[0].shapes) > 50
    assert all(recorder.shapes == recorders[0].shapes for recorder in recorders)


def test_few_graphs_are_enough_for_a_whole_test_set() -> None:
    """Batches of many sizes and lengths come to a number of graphs that hardly grows any more."""
    buckets, options = Buckets([model_of("sinusoidal")], tape, fewest=3), options_of("greedy")
    counts = []
    for _ in range(2):
        for count in (13, 12, 9, 7, 5, 3, 1):
            src_BS, limits, prefixes = batch_of(count, count)
            static_search(buckets, src_BS, [min(limit, 16) for limit in limits], options, [()] * count)
        counts.append(buckets.num_graphs)
    assert counts[0] <= 10 and counts[1] <= 14  # a step and a beginning of each size
    assert {(size.source, size.slots) for size in buckets.sizes} == {(16, 64)}


@torch.inference_mode()
def test_slots_that_no_hypothesis_sees_are_dropped() -> None:
    model, (src_BS, _, _) = model_of("sinusoidal"), batch_of(3, 4)
    buckets = Buckets([model], tape)
    steppers = [ModelStepper(model, src_BS), StaticStepper(buckets, 0, src_BS, 4)]
    for step in range(36):
        tokens_BK = (7 * step + torch.arange(12)).view(3, 4) % V
        hidden = [stepper.step(tokens_BK) for stepper in steppers]
        torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-4)
        for stepper in steppers:
            stepper.reorder(torch.full((3, 4), step % 4))
    assert [size.slots for size in buckets.sizes] == [64]  # not 4 x 36


def test_memory_is_bounded() -> None:
    """Buckets that were not used for longest are dropped, and batches that would be too large are split."""
    translator = make(joint=False, beam_size=4)
    one = Buckets([translator.model]).num_bytes(Size(1, 16, 4, 64))
    assert one == 2 * 2 * 16 * 4 * (16 + 64)  # keys and values of 2 layers of width 16 in float32
    buckets = Buckets([translator.model], tape, max_bytes=6 * one, fewest=1)
    check_same(decode(translator, buckets), decode(translator, None))
    assert sum(map(buckets.num_bytes, buckets.sizes)) <= 6 * one
    assert buckets.max_sentences(10, 4) == 2 and max(size.sentences for size in buckets.sizes) <= 2
    assert buckets.max_sentences(1000, 4) == 1
    gc.disable()
    try:
        used = weakref.ref(buckets.bucket(buckets.sizes[-1]))
        for source in range(16, 256, 16):
            buckets.bucket(Size(1, source, 4, 64))
        assert used() is None  # at once, not when garbage is collected
    finally:
        gc.enable()


def test_sizes_are_at_most_half_larger() -> None:
    assert [round_up(number) for number in range(1, 14)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert all(number <= round_up(number) <= 1.5 * number for number in range(1, 700))
    assert [round_up_slots(number) for number in (1, 64, 65, 500)] == [64, 64, 128, 512]
    assert size_of(5, 33, 5) == Size(6, 48, 5, 128) and size_of(1, 7, 1, steps=90) == Size(1, 16, 1, 128)


# --- the graphs themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failures",
    [
        [],
        [RuntimeError("not permitted")],
        [torch.OutOfMemoryError("too large")],
        [torch.OutOfMemoryError("too large"), torch.OutOfMemoryError("still too large")],
    ],
)
def test_a_call_is_run_then_captured_then_replayed(
    failures: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as that can be seen without a GPU: in which order PyTorch is asked to do what.

    A pool in which a recording failed is not used again. The first graph of a pool stays, and the pool with it.
    """
    recording = ["blas", "clear", "begin pool 1 thread_local False", "call", "end", "clear"]
    failed, remaining = recording[:-1], list(failures)
    events, pools = list[str](), iter(("pool 1", "pool 2"))
    graphs: list[weakref.ref[Graph]] = []

    class Graph:
        def __init__(self) -> None:
            graphs.append(weakref.ref(self))

        def capture_begin(self, pool: object, capture_error_mode: str) -> None:
            events.append(f"begin {pool} {capture_error_mode} {gc.isenabled()}")

        def capture_end(self) -> None:
            events.append("end")

        def replay(self) -> None:
            events.append("replay")

    stream = mock.MagicMock()
    for name, fake in {
        "graph_pool_handle": lambda: next(pools), "CUDAGraph": Graph, "Stream": lambda device: stream,
        "current_stream": lambda device: stream, "stream": lambda stream: nullcontext(),
        "empty_cache": lambda: events.append("empty cache"),
        "current_blas_handle": lambda: events.append("blas"),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    # PyTorch without CUDA lacks it
    clear = "_cuda_clearCublasWorkspaces"
    monkeypatch.setattr(torch._C, clear, lambda: events.append("clear"), raising=False)

    def call() -> None:
        events.append("call")
        if remaining and recording[0] in events:
            raise remaining.pop(0)

    capture, pool = cuda_graphs(torch.device("cuda")), "pool 1"
    replayed = ReplayedCall(call, capture)
    replayed()
    expected = ["call", *(failed if failures else recording)]
    if failures and isinstance(failures[0], torch.OutOfMemoryError):
        expected += ["empty cache", *(failed if len(failures) == 2 else recording)]
    if len(failures) == 2:
        with pytest.raises(torch.OutOfMemoryError, match="still"):
            replayed()
    elif failures and isinstance(failures[0], RuntimeError) and "empty cache" not in expected:
        with pytest.warns(RuntimeWarning, match="without a CUDA graph, more slowly: not permitted"):
            replayed()
        replayed()
        expected += ["call", "call"]
        pool = "pool 2"
    else:
        replayed()
        replayed()
        expected += ["replay", "replay"]
    assert events == expected and gc.isenabled() and replayed.is_captured == ("replay" in events)
    del replayed
    assert "replay" not in events or graphs[-1]() is not None
    capture(call)
    assert f"begin {pool} thread_local False" in events[len(expected) :]
