"""Shortlists: a reduced vocabulary gives what the whole one gives when all other tokens are impossible."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from test_translator import make, sentences, tokenizers
from torch import Tensor

from mtkit.config.sections import Config, DataConfig, DecodingConfig, SourceConfig
from mtkit.data.batching import Ids
from mtkit.data.tokenizer import Tokenizers
from mtkit.errors import StorageError
from mtkit.model.attention import Linear
from mtkit.model.cpu.packing import Int8Linear, PackedLinear, can_pack, int8_quant_max, select_rows
from mtkit.search.beam import search
from mtkit.search.constraints import Constraint
from mtkit.search.sampling import sample
from mtkit.search.shortlist import Shortlist
from mtkit.search.state import Hypothesis
from mtkit.search.steppers import ModelStepper
from mtkit.translation import shortlist as shortlists
from mtkit.translation.batched_search import BatchedSearch
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.model_folder import SHORTLIST_FILE
from mtkit.translation.segments import Segment
from mtkit.translation.shortlist import (
    ShortlistSize,
    load_shortlist,
    make_shortlist,
    measure_coverage,
    save_shortlist,
    shortlist_of_counts,
)
from mtkit.translation.translator import Translator


def random_shortlist(both: Tokenizers, num_first: int = 4, most: int = 4) -> Shortlist:
    rng = np.random.default_rng(5)
    usable = [token for token in range(both.tgt.num_pieces) if token not in (*both.tgt.special, both.tgt.unk)]
    rows = [
        np.sort(rng.choice(usable, rng.integers(0, most), replace=False)) for _ in range(both.src.vocab_size)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    first = np.sort(rng.choice(usable, num_first, replace=False)).astype(np.int32)
    return Shortlist(first, offsets, np.concatenate(rows).astype(np.int32))


def tokens_of(shortlist: Shortlist, ids: Ids) -> set[int]:
    """Return the target tokens that the shortlist allows for source tokens, one source token after the other."""
    found = set(shortlist.first.tolist())
    for token in ids.tolist():
        found.update(shortlist.targets[shortlist.offsets[token] : shortlist.offsets[token + 1]].tolist())
    return found


def test_the_tokens_of_a_sentence_are_those_of_its_source_tokens() -> None:
    both = tokenizers()
    shortlist = random_shortlist(both)
    lines = [*both.src.encode(sentences(7)), np.zeros(0, dtype=np.int32)]
    allowed_BV = shortlist.allowed(lines, both.tgt.vocab_size)
    for row, ids in zip(allowed_BV, lines, strict=True):
        assert set(row.nonzero()[0].tolist()) == tokens_of(shortlist, ids)


class MaskedStepper(ModelStepper):
    """The whole model for one sentence, with all tokens but some made impossible."""

    def __init__(self, translator: Translator, ids: Ids, allowed: set[int]) -> None:
        super().__init__(translator.model, translator.ensemble.sources([ids]))
        self.forbidden_V = torch.ones(self.vocab_size, dtype=torch.bool)
        self.forbidden_V[sorted(allowed)] = False

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        return super().logits(hidden_BKD).masked_fill(self.forbidden_V, float("-inf"))


def with_shortlist(translator: Translator, **keys: Any) -> tuple[BatchedSearch, Shortlist]:
    """Return the search of a translator with a random shortlist."""
    shortlist = random_shortlist(translator.tokenizers)
    decoding = DecodingConfig(**{**translator.decoding.model_dump(), **keys})
    return BatchedSearch(translator.ensemble, decoding, shortlist), shortlist


def same(found: list[Hypothesis], wanted: list[Hypothesis]) -> None:
    assert [hyp.ids for hyp in found] == [hyp.ids for hyp in wanted]
    assert [hyp.score for hyp in found] == pytest.approx([hyp.score for hyp in wanted], abs=1e-5)


@pytest.mark.parametrize(
    "keys",
    [
        {"beam_size": 1},
        {"beam_size": 4, "n_best": 4, "coverage_penalty": 0.2, "no_repeat_ngram": 2},
        {"beam_size": 4, "n_best": 4, "groups": 2, "renormalize": True},
        {"sample": True, "n_best": 3, "top_p": 0.9},
    ],
    ids=["greedy", "beam", "groups", "samples"],
)
def test_a_sentence_alone_and_in_any_batch_is_searched_in_its_own_list(keys: dict[str, Any]) -> None:
    translator = make(joint=False, **keys)
    lines = translator.tokenizers.src.encode(sentences(9))
    segments = [Segment(ids, translator.decoding.max_length(len(ids)), n) for n, ids in enumerate(lines)]
    whole, shortlist = with_shortlist(translator)
    one_by_one, _ = with_shortlist(translator, batch_tokens=1)
    found, alone = whole.search_segments(segments), one_by_one.search_segments(segments)
    eos, options = translator.tokenizers.tgt.eos, translator.search_options
    for segment, hyps, own in zip(segments, found, alone, strict=True):
        stepper = MaskedStepper(translator, segment.ids, {eos, *tokens_of(shortlist, segment.ids)})
        stepper.state.keep_weights = options.coverage_penalty > 0
        if translator.decoding.sample:
            keys_of = [segment.sample_key]
            (wanted,) = sample(stepper, [segment.max_length], options, whole.sampling, rng_keys=keys_of)
        else:
            (wanted,) = search(stepper, [segment.max_length], options)
        same(hyps, wanted)
        same(own, wanted)
    plain = translator.batched_search.search_segments(segments)
    assert [[hyp.ids for hyp in hyps] for hyps in found] != [[hyp.ids for hyp in hyps] for hyps in plain]


def test_log_probabilities_of_tokens_are_of_the_list_and_chunks_of_a_batch_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    translator = make(joint=False, beam_size=3)
    lines = translator.tokenizers.src.encode(sentences(6))
    segments = [Segment(ids, 12, n, keep_log_probs=True) for n, ids in enumerate(lines)]
    engine, _ = with_shortlist(translator)
    found = engine.search_segments(segments)
    assert all(sum(best.token_log_probs) == pytest.approx(best.log_prob, abs=1e-5) for best, *_ in found)
    monkeypatch.setattr("mtkit.search.beam.LOGITS_CHUNK", 1)  # one sentence at a time
    for ours, again in zip(found, engine.search_segments(segments), strict=True):
        same(again, ours)


def test_prefixes_and_constraints_are_allowed_to_their_own_sentence_only() -> None:
    translator = make(joint=False, beam_size=4)
    tgt = translator.tokenizers.tgt
    engine, shortlist = with_shortlist(translator)
    ids = translator.tokenizers.src.encode(["the bird"])[0]
    known = tokens_of(shortlist, ids)
    usable = set(range(tgt.num_pieces)) - {*tgt.special, tgt.unk}
    first, second, third = sorted(usable - known)[:3]
    plain = Segment(ids, 15, 0)
    prefixed = replace(plain, prefix=(first,))
    constraint = Constraint(((second, third),), frozenset(sorted(known)[:5]))
    constrained = replace(plain, constraints=(constraint,))
    found = engine.search_segments([plain, prefixed, constrained])
    own = [set(hyps[0].ids) for hyps in found]
    assert own[0] <= known and not own[0] & {first, second, third}
    assert found[1][0].ids[0] == first and own[1] <= {*known, first}
    assert {second, third} <= own[2] <= {*known, second, third}
    same(found[0], engine.search_segments([plain])[0])


def test_an_ensemble_does_not_depend_on_the_batch_either() -> None:
    translator, other = make(joint=False, beam_size=3), make(joint=False, beam_size=3)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.3)
    ensemble = Ensemble([translator.model, other.model], translator.tokenizers)
    engine = BatchedSearch(ensemble, translator.decoding, random_shortlist(translator.tokenizers))
    segments = [Segment(ids, 12, n) for n, ids in enumerate(translator.tokenizers.src.encode(sentences(6)))]
    for segment, together in zip(segments, engine.search_segments(segments), strict=True):
        same(engine.search_segments([segment])[0], together)


# --- rows of the output matrix ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["plain", "stored", "packed", "bf16", "int8"])
def test_selected_rows_compute_what_the_whole_matrix_computes(kind: str, bias: bool) -> None:
    if (kind in ("packed", "bf16") and not can_pack(torch.bfloat16)) or (
        kind == "int8" and not int8_quant_max()
    ):
        pytest.skip("not on this CPU")
    torch.manual_seed(3)
    linear, dtype = Linear(32, 120, bias=bias), torch.bfloat16 if kind == "bf16" else torch.float32
    linear.to(dtype)
    if kind == "stored":
        linear.weight_scale = torch.nn.Parameter(torch.rand(120))
        linear.weight = torch.nn.Parameter(torch.randint(-9, 9, (120, 32), dtype=torch.int8), False)
    kinds = {"packed": PackedLinear, "bf16": PackedLinear, "int8": Int8Linear}
    layer = kinds[kind](linear, keep_rows=True) if kind in kinds else linear
    rows, x = torch.tensor([3, 7, 8, 90, 119]), torch.randn(4, 2, 32, dtype=dtype)
    with torch.no_grad():
        found, whole = select_rows(layer, rows)(x), layer(x)
    assert type(select_rows(layer, rows)) is type(layer)
    if kind == "int8":
        assert torch.equal(found, whole[..., rows])
    torch.testing.assert_close(found, whole[..., rows])


# --- making one ---------------------------------------------------------------------------------------------------


def counted(links: list[tuple[int, int, float]], num_targets: int) -> tuple[Any, Any]:
    counts: Counter[int] = Counter()
    for s, t, weight in links:
        counts[s * num_targets + t] += weight  # type: ignore[assignment]
    keys = sorted(counts)
    return np.array(keys, dtype=np.int64), np.array([counts[key] for key in keys], dtype=np.float64)


def test_the_most_probable_tokens_of_each_source_token_are_kept() -> None:
    both = tokenizers(joint=False)
    num_srcs, num_tgts = both.src.vocab_size, both.tgt.vocab_size
    rng = np.random.default_rng(2)
    srcs, tgts = rng.integers(10, 30, 900).tolist(), rng.integers(5, 40, 900).tolist()
    links = list(zip(srcs, tgts, [1.0] * 900, strict=True))
    frequencies = rng.integers(0, 50, num_tgts)
    found = shortlist_of_counts(counted(links, num_tgts), frequencies, both, ShortlistSize(6, 5))
    by_frequency = sorted(range(num_tgts), key=lambda t: (-frequencies[t], t))
    assert found.first.tolist() == sorted(by_frequency[:6])
    same_piece = {both.tgt.piece(t): t for t in range(both.tgt.num_pieces)}
    for source in range(num_srcs):
        counts = Counter(t for s, t, _ in links if s == source)
        best = set(sorted(counts, key=lambda t: (-counts[t], t))[:5])
        if (
            source not in (*both.src.special, both.src.unk)
            and (piece := both.src.piece(source)) in same_piece
        ):
            best.add(same_piece[piece])
        own = found.targets[found.offsets[source] : found.offsets[source + 1]].tolist()
        assert own == sorted(best - set(found.first.tolist()))


class Pairs:
    """Pairs of token ids as a corpus."""

    def __init__(self, pairs: list[tuple[Ids, Ids]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def src(self, index: int) -> Ids:
        return self.pairs[index][0]

    def tgt(self, index: int) -> Ids:
        return self.pairs[index][1]


@pytest.mark.parametrize(("most", "told"), [(1000, [4, 4, 1]), (3, [3])])
def test_links_are_those_of_the_attention(
    most: int, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = make(joint=False)
    both = translator.tokenizers
    everything = list(
        zip(both.src.encode(sentences(9)), both.tgt.encode(sentences(9, ["der", "Mann"])), strict=True)
    )
    pairs = everything if most > 9 else everything[::3]
    links: list[tuple[int, int, float]] = []
    for index, attention in translator.batched_search.align(pairs):
        src, tgt = pairs[index]
        for t, s in np.ndindex(len(tgt), len(src)):
            if (weight := float(attention.weights[-2:, t, s].mean())) >= 0.01:
                links.append((int(src[s]), int(tgt[t]), weight))
    for name, value in (("_PAIRS_AT_ONCE", 4), ("MOST_ALIGNED", most), ("_MOST_MEASURED", most)):
        monkeypatch.setattr(f"mtkit.translation.shortlist.{name}", value)
    frequencies = np.bincount(np.concatenate([tgt for _, tgt in pairs]), minlength=both.tgt.vocab_size)
    size, done = ShortlistSize(2, 3), []
    wanted = shortlist_of_counts(counted(links, both.tgt.vocab_size), frequencies, both, size)
    corpus: Any = Pairs(everything)
    found = make_shortlist(translator.ensemble, corpus, size, 200, done.append)
    assert all(np.array_equal(a, b) for a, b in zip(vars(found).values(), vars(wanted).values(), strict=True))
    assert done == told
    coverage = measure_coverage(found, corpus, both)
    allowed = [tokens_of(found, src) for src, _ in pairs]
    hits = [[int(t) in own for t in tgt] for own, (_, tgt) in zip(allowed, pairs, strict=True)]
    assert coverage.tokens == pytest.approx(sum(map(sum, hits)) / sum(map(len, hits)))
    assert coverage.lines == pytest.approx(sum(map(all, hits)) / len(pairs))
    assert coverage.size == pytest.approx(sum(map(len, allowed)) / len(pairs))


def test_counts_are_not_sorted_again_for_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    translator = make(joint=False)
    added = iter(range(32))

    def links(*_: object) -> Any:
        first = 10 * next(added)
        yield np.arange(first, first + 10), np.ones(10)

    summed = Mock(side_effect=shortlists._sum)
    monkeypatch.setattr(shortlists, "_PAIRS_AT_ONCE", 1)
    monkeypatch.setattr(shortlists, "_links", links)
    monkeypatch.setattr(shortlists, "_sum", summed)
    ids = np.array([5], np.int32)
    corpus: Any = Pairs([(ids, ids)] * 32)
    make_shortlist(translator.ensemble, corpus, ShortlistSize(2, 3), 200)
    assert summed.call_count <= 7
    assert len(summed.call_args.args[0][0][0]) == 320


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without weights, which is enough to keep a shortlist."""
    from mtkit.checkpoint import Checkpoint, save_checkpoint
    from mtkit.config.loading import dump_config

    data = DataConfig(src="en", tgt="de", train=(SourceConfig(path="x.tsv"),))
    config = Config(run="r", data=data)
    weights = {"x": torch.zeros(1)}
    both = tokenizers(joint=False)
    save_checkpoint(tmp_path / "model", Checkpoint(weights, dump_config(config)), both.files())
    return tmp_path / "model"


def test_a_shortlist_comes_back_from_its_file(folder: Path) -> None:
    both = tokenizers(joint=False)
    assert load_shortlist(folder, both) is None
    shortlist = random_shortlist(both)
    assert save_shortlist(folder, shortlist, both) == folder / SHORTLIST_FILE
    found = load_shortlist(folder, both)
    assert found is not None
    assert all(np.array_equal(getattr(found, name), array) for name, array in vars(shortlist).items())
    with pytest.raises(StorageError, match="made for other tokenizers"):
        load_shortlist(folder, tokenizers())


@pytest.mark.parametrize("change", ["cut", "empty", "token", "offset", "type", "foreign"])
def test_a_damaged_shortlist_is_refused(folder: Path, change: str) -> None:
    both = tokenizers(joint=False)
    good = random_shortlist(both)
    bad = {
        "token": replace(good, targets=good.targets + np.int32(both.tgt.vocab_size)),
        "offset": replace(good, offsets=good.offsets[::-1].copy()),
        "type": replace(good, first=good.first.astype(np.float32)),
    }
    file = save_shortlist(folder, bad.get(change, good), both)
    if change in ("cut", "empty"):
        file.write_bytes(file.read_bytes()[: 100 if change == "cut" else 0])
    if change == "foreign":
        file.write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(StorageError, match=SHORTLIST_FILE):
        load_shortlist(folder, both)
