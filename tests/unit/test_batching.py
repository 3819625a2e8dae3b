"""Batches: every pair once, within the budget, a function of seed and epoch alone; and the arrays made from them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mtkit.data.batching import (
    Batch,
    SpecialIds,
    collate_tokens,
    length_quantile,
    make_batch,
    pair_sizes,
    split_by_tokens,
)
from mtkit.data.order import BatchOrder, Indices

Ints = npt.NDArray[np.int32]
SPECIAL = SpecialIds(src_pad=0, src_eos=3, tgt_pad=1, tgt_bos=2, tgt_eos=5)


def realistic_lengths(count: int, seed: int = 0) -> tuple[Ints, Ints]:
    """Return lengths like those of a web corpus: log-normal, both sides about equally long."""
    rng = np.random.default_rng(seed)
    src = np.clip(rng.lognormal(3.0, 0.6, count), 1, 250)
    tgt = np.clip(src * rng.lognormal(0.05, 0.2, count), 1, 250)
    return src.astype(np.int32), tgt.astype(np.int32)


def epoch_batches(src: Ints, tgt: Ints, batch_tokens: int, seed: int, epoch: int) -> list[Indices]:
    return list(BatchOrder(src, tgt, batch_tokens, seed).epoch(epoch))


def rows_of(batches: list[Any]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("count", [0, 1, 2, 100, 3000])
@pytest.mark.parametrize("budget", [1, 64, 4096, 10**9])
def test_every_pair_is_in_exactly_one_batch_within_the_budget(count: int, budget: int) -> None:
    src, tgt = realistic_lengths(count)
    batches = epoch_batches(src, tgt, budget, seed=3, epoch=2)
    assert sorted(itertools.chain(*rows_of(batches))) == list(range(count))
    sizes = pair_sizes(src, tgt)
    for batch in batches:
        assert len(batch) >= 1
        assert len(batch) == 1 or len(batch) * sizes[batch].max() <= budget


def test_budget_holds_for_both_sides_framed_and_padded() -> None:
    src, tgt = realistic_lengths(500)
    corpus = Corpus(
        [([7] * s, [8] * t) for s, t in zip(src.tolist(), tgt.tolist(), strict=True)],
    )
    for indices in epoch_batches(src, tgt, 1000, seed=1, epoch=0):
        batch = make_batch(corpus, indices, SPECIAL)
        assert max(batch.src.size, batch.tgt_in.size, batch.tgt_out.size) <= 1000


def test_batches_are_full() -> None:
    src, tgt = realistic_lengths(5000)
    batches = epoch_batches(src, tgt, 4096, seed=1, epoch=0)
    sizes = pair_sizes(src, tgt)
    filled = [len(batch) * int(sizes[batch].max()) for batch in batches]
    assert np.mean(filled) > 0.9 * 4096


def test_order_is_a_function_of_seed_and_epoch() -> None:
    src, tgt = realistic_lengths(2000)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return rows_of(epoch_batches(src, tgt, 2000, seed, epoch))

    first = order(1, 0)
    np.random.default_rng(0).random(10)
    np.random.seed(5)  # the global state is of no account
    assert order(1, 0) == first
    different = [order(1, 0), order(1, 1), order(2, 0), order(2, 1), order(0, 2)]
    for one, other in itertools.combinations(different, 2):
        assert one != other


def test_epochs_mix_pairs_of_a_length_anew() -> None:
    src = tgt = np.full(400, 9, dtype=np.int32)
    batches = [rows_of(epoch_batches(src, tgt, 100, 1, epoch)) for epoch in range(2)]
    together = [{frozenset(batch) for batch in epoch} for epoch in batches]
    assert not together[0] & together[1]


def test_batches_do_not_come_by_length() -> None:
    src, tgt = realistic_lengths(3000)
    longest = [int(tgt[batch].max()) for batch in epoch_batches(src, tgt, 1000, 1, 0)]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3


def padding_share(batches: list[Indices], src: Ints, tgt: Ints) -> float:
    lengths = [side[batch] + 1 for batch in batches for side in (src, tgt)]
    return 1 - sum(int(rows.sum()) for rows in lengths) / sum(len(rows) * int(rows.max()) for rows in lengths)


def test_padding_of_realistic_lengths_is_small() -> None:
    src, tgt = realistic_lengths(20_000)
    assert BatchOrder(src, tgt, 4096, seed=1).padding_share < 0.15
    shuffled = split_by_tokens(pair_sizes(src, tgt), np.arange(len(src)), 4096)
    assert padding_share(shuffled, src, tgt) > 0.5  # what sorting saves


def test_padding_share_is_counted_on_the_arrays() -> None:
    src, tgt = realistic_lengths(300)
    pairs = [([7] * s, [8] * t) for s, t in zip(src.tolist(), tgt.tolist(), strict=True)]
    order = BatchOrder(src, tgt, 800, seed=1)
    padding = total = 0
    for indices in order.epoch(0):
        batch = make_batch(Corpus(pairs), indices, SPECIAL)
        padding += int((batch.src == SPECIAL.src_pad).sum() + (batch.tgt_out == SPECIAL.tgt_pad).sum())
        total += batch.src.size + batch.tgt_out.size
    assert order.padding_share == pytest.approx(padding / total, rel=1e-12)
    assert int(order.num_positions.sum()) == total
    assert BatchOrder(src[:0], tgt[:0], 800, seed=1).padding_share == 0.0


def test_a_pair_beyond_the_budget_is_a_batch_of_its_own() -> None:
    src = np.array([3, 50, 3, 3], dtype=np.int32)
    tgt = np.array([3, 3, 90, 3], dtype=np.int32)
    batches = rows_of(epoch_batches(src, tgt, 16, seed=1, epoch=0))
    assert sorted(map(sorted, batches)) in ([[0, 3], [1], [2]], [[0], [1], [2], [3]])
    assert [2] in batches
    assert [1] in batches


def test_split_by_budget_keeps_the_order_and_cuts_as_late_as_it_can() -> None:
    sizes = np.array([4, 4, 4, 5, 1, 30, 2], dtype=np.int32)
    order = np.arange(7)
    assert rows_of(split_by_tokens(sizes, order, 12)) == [[0, 1, 2], [3, 4], [5], [6]]
    assert rows_of(split_by_tokens(sizes, order[::-1], 12)) == [[6], [5], [4, 3], [2, 1, 0]]
    assert rows_of(split_by_tokens(sizes, order, 210)) == [[0, 1, 2, 3, 4, 5, 6]]
    assert rows_of(split_by_tokens(sizes, order, 1)) == [[i] for i in range(7)]
    assert split_by_tokens(sizes, order[:0], 12) == []


def test_pair_sizes_count_the_frame() -> None:
    src, tgt = np.array([3, 7], dtype=np.int32), np.array([5, 2], dtype=np.int32)
    assert pair_sizes(src, tgt).tolist() == [6, 8]


# --- arrays -----------------------------------------------------------------------------------------------------


class Corpus:
    """Pairs in memory."""

    def __init__(self, pairs: list[tuple[list[int], list[int]]]) -> None:
        self.pairs = pairs
        self.src_lengths = np.array([len(src) for src, _ in pairs], dtype=np.int32)
        self.tgt_lengths = np.array([len(tgt) for _, tgt in pairs], dtype=np.int32)

    def src(self, index: int) -> Ints:
        return np.array(self.pairs[index][0], dtype=np.int32)

    def tgt(self, index: int) -> Ints:
        return np.array(self.pairs[index][1], dtype=np.int32)


def ids(*rows: list[int]) -> list[Ints]:
    return [np.array(row, dtype=np.int32) for row in rows]


def test_pad_rows() -> None:
    rows = ids([7, 8, 9], [6], [])
    assert collate_tokens(rows, 0).tolist() == [[7, 8, 9], [6, 0, 0], [0, 0, 0]]
    assert collate_tokens(rows, 0, eos=3).tolist() == [[7, 8, 9, 3], [6, 3, 0, 0], [3, 0, 0, 0]]
    assert collate_tokens(rows, 0, bos=2).tolist() == [[2, 7, 8, 9], [2, 6, 0, 0], [2, 0, 0, 0]]
    assert collate_tokens(rows, 0, bos=2, eos=3).tolist() == [
        [2, 7, 8, 9, 3],
        [2, 6, 3, 0, 0],
        [2, 3, 0, 0, 0],
    ]
    assert collate_tokens(ids([5]), 0, bos=0, eos=0).tolist() == [[0, 5, 0]]
    assert collate_tokens(rows, 0).dtype == np.int64


def test_a_batch_of_the_pairs_asked_for() -> None:
    corpus = Corpus([([10, 11], [20]), ([12], [21, 22, 23]), ([13, 14, 15], [24, 25])])
    batch = make_batch(corpus, np.array([2, 0]), SPECIAL)
    assert batch.src.tolist() == [[13, 14, 15, 3], [10, 11, 3, 0]]
    assert batch.tgt_in.tolist() == [[2, 24, 25], [2, 20, 1]]
    assert batch.tgt_out.tolist() == [[24, 25, 5], [20, 5, 1]]
    assert batch.tgt_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.indices.tolist() == [2, 0]
    assert batch.num_targets == 5


def test_mask_is_true_at_pieces_that_look_like_padding() -> None:
    """The mask comes from the lengths: a token that happens to have the pad id is still a token."""
    batch = make_batch(Corpus([([9], [1, 1]), ([9], [])]), np.array([0, 1]), SPECIAL)
    assert batch.tgt_mask.tolist() == [[True, True, True], [True, False, False]]


def test_target_in_is_target_out_one_place_later() -> None:
    src, tgt = realistic_lengths(60)
    rng = np.random.default_rng(1)
    pairs = [
        (rng.integers(6, 99, s).tolist(), rng.integers(6, 99, t).tolist())
        for s, t in zip(src.tolist(), tgt.tolist(), strict=True)
    ]
    corpus, seen = Corpus(pairs), Counter[int]()
    for indices in epoch_batches(src, tgt, 700, seed=1, epoch=0):
        batch = make_batch(corpus, indices, SPECIAL)
        check_rows(batch, pairs)
        seen.update(batch.indices.tolist())
    assert seen == Counter(range(60))


def check_rows(batch: Batch, pairs: list[tuple[list[int], list[int]]]) -> None:
    assert batch.tgt_in.shape == batch.tgt_out.shape == batch.tgt_mask.shape
    for row, index in enumerate(batch.indices.tolist()):
        src, tgt = pairs[index]
        n = len(tgt) + 1
        assert batch.src[row, : len(src) + 1].tolist() == [*src, SPECIAL.src_eos]
        assert (batch.src[row, len(src) + 1 :] == SPECIAL.src_pad).all()
        assert batch.tgt_in[row, :n].tolist() == [SPECIAL.tgt_bos, *tgt]
        assert batch.tgt_out[row, :n].tolist() == [*tgt, SPECIAL.tgt_eos]
        assert (batch.tgt_in[row, n:] == SPECIAL.tgt_pad).all()
        assert (batch.tgt_out[row, n:] == SPECIAL.tgt_pad).all()
        assert batch.tgt_mask[row].tolist() == [i < n for i in range(batch.tgt_mask.shape[1])]


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("share", [0.5, 0.99, 1.0])
def test_the_usual_length_is_that_of_nearly_all(
    monkeypatch: pytest.MonkeyPatch, block: int, share: float
) -> None:
    monkeypatch.setattr("mtkit.data.batching.LENGTHS_PER_CHUNK", block)
    lengths = np.random.default_rng(1).geometric(0.1, size=500).astype(np.int16)
    usual = length_quantile(lengths, share)
    assert (lengths <= usual).mean() >= share > (lengths < usual).mean()
