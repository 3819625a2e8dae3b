"""The order of batches: equal to its definition, and in little memory for any number of pairs."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from mtkit.benchmark import synthetic
from mtkit.data import order as order_module
from mtkit.data.batching import num_positions, pair_sizes, split_by_tokens
from mtkit.data.order import BatchOrder, Indices, MixedOrder, permute_within_buckets

Ints = npt.NDArray[np.int32]


def by_definition(src: Ints, tgt: Ints, batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the order by definition: shuffle, sort by two columns, split pair by pair, shuffle."""
    rng = np.random.default_rng((seed, epoch))
    shuffled = rng.permutation(len(src))
    sizes = pair_sizes(src, tgt)
    slant = (tgt - src) * np.where(sizes % 2 == 0, 1, -1)
    order = shuffled[np.lexsort((slant[shuffled], sizes[shuffled]))]
    batches = split_by_tokens(sizes, order, batch_tokens)
    return [batches[i].tolist() for i in rng.permutation(len(batches))]


def random_lengths(count: int, longest: int, seed: int) -> tuple[Ints, Ints]:
    rng = np.random.default_rng(seed)
    src, tgt = (np.clip(rng.lognormal(3.0, 0.8, count), 0, longest) for _ in range(2))
    return src.astype(np.int32), tgt.astype(np.int32)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permute every corpus batch by batch, whatever its size."""
    monkeypatch.setattr(order_module, "LAZY_PAIRS", 0)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("count", [0, 1, 2, 37, 3000])
def test_an_order_is_that_of_its_definition(count: int, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "_MIN_SORT_PAIRS", 300)
    monkeypatch.setattr(order_module, "_CHUNK_PAIRS", 100)
    for longest, budget, seed in itertools.product((1, 9, 250), (1, 90, 3000, 10**9), (1, 2)):
        src, tgt = random_lengths(count, longest, seed)
        order = BatchOrder(src.astype(dtype), tgt.astype(dtype), budget, seed)
        for epoch in (0, 7):
            batches = order.epoch(epoch)
            assert [batch.tolist() for batch in batches] == by_definition(src, tgt, budget, seed, epoch)
            assert len(order) == len(batches)


def test_lengths_too_long_for_packed_keys() -> None:
    rng = np.random.default_rng(0)
    src, tgt = (rng.integers(0, 2**30, 500, dtype=np.int32) for _ in range(2))
    batches = BatchOrder(src, tgt, 2**32, seed=1).epoch(0)
    assert [batch.tolist() for batch in batches] == by_definition(src, tgt, 2**32, 1, 0)


@pytest.mark.parametrize("limit", [0, 10**6])
def test_the_largest_and_the_smallest_batch(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "LAZY_PAIRS", limit)
    src, tgt = random_lengths(3000, 100, 3)
    order = BatchOrder(src, tgt, 500, seed=1)
    for epoch in range(3):
        batches = list(order.epoch(epoch))
        positions = [num_positions(batch, src, tgt) for batch in batches]
        assert sorted(positions) == sorted(order.num_positions.tolist())
        assert order.epoch(epoch).largest().tolist() == batches[np.argmax(positions)].tolist()
        assert order.epoch(epoch).smallest().tolist() == batches[np.argmin(positions)].tolist()


def buckets(batches: list[Indices], src: Ints, tgt: Ints) -> list[list[tuple[int, int]]]:
    return sorted([(int(src[i]), int(tgt[i])) for i in batch] for batch in batches)


@pytest.mark.usefixtures("lazy")
@pytest.mark.parametrize("count", [1, 37, 2000])
def test_batch_by_batch_an_epoch_has_batches_of_the_same_lengths(count: int) -> None:
    for longest, budget in ((1, 90), (9, 90), (250, 1000)):
        src, tgt = random_lengths(count, longest, 5)
        order = BatchOrder(src, tgt, budget, seed=1)
        for epoch in (0, 3):
            batches = list(order.epoch(epoch))
            assert sorted(i for batch in batches for i in batch.tolist()) == list(range(count))
            defined = [np.array(batch) for batch in by_definition(src, tgt, budget, 1, epoch)]
            assert buckets(batches, src, tgt) == buckets(defined, src, tgt)


@pytest.mark.usefixtures("lazy")
def test_batch_by_batch_an_epoch_is_a_function_of_seed_and_number() -> None:
    src, tgt = random_lengths(3000, 50, 5)

    def made(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in BatchOrder(src, tgt, 400, seed).epoch(epoch)]

    assert made(1, 2) == made(1, 2)
    order = BatchOrder(src, tgt, 400, 1)
    batches = order.epoch(2)
    assert [batches[i].tolist() for i in (5, 3)] == [made(1, 2)[i] for i in (5, 3)], "any batch alone"
    several = [made(1, 2), made(1, 3), made(2, 2), made(2, 3)]
    for one, other in itertools.combinations(several, 2):
        assert one != other
        assert list(map(sorted, sorted(one))) != list(map(sorted, sorted(other))), "other pairs together"


def test_a_permutation_within_buckets() -> None:
    sizes = np.array([*range(1, 70), 1000, 1024, 1025, 4097])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    slots = np.arange(starts[-1])
    for seed in range(5):
        keys = np.random.default_rng(seed).integers(2**64, size=(4, 3), dtype=np.uint64)
        sent = permute_within_buckets(starts, slots, keys)
        for first, behind in itertools.pairwise(starts.tolist()):
            assert sorted(sent[first:behind].tolist()) == list(range(first, behind))


@pytest.mark.parametrize("size", [2, 3, 5, 8, 100])
def test_a_permutation_sends_a_slot_anywhere(size: int) -> None:
    """Tested over keys and over buckets of one size: Pearson's chi-squared of the slots and of neighbors' distances."""
    starts = np.arange(0, 40 * size + 1, size)
    rng, trials = np.random.default_rng(0), 200 * size // 40 + 1
    places: Counter[int] = Counter()
    steps: Counter[int] = Counter()
    for _ in range(trials):
        keys = rng.integers(2**64, size=(4, 3), dtype=np.uint64)
        sent = permute_within_buckets(starts, np.arange(starts[-1]), keys).reshape(-1, size) % size
        places.update(sent[:, size // 2].tolist())
        steps.update(((sent[:, 1] - sent[:, 0]) % size).tolist())
    for found, values in ((places, range(size)), (steps, range(1, size))):
        expected = 40 * trials / len(values)
        chi_squared = sum((found[value] - expected) ** 2 / expected for value in values)
        freedom = max(1, len(values) - 1)
        assert chi_squared < freedom + 5 * np.sqrt(2 * freedom) + 5


def test_memory(lazy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order takes at most 16 bytes per pair, lengths included, even while sorting; starting an epoch takes none."""
    monkeypatch.setattr(order_module, "_MIN_SORT_PAIRS", 1 << 14)
    monkeypatch.setattr(order_module, "_CHUNK_PAIRS", 1 << 14)
    count = 1_000_000
    drawn = synthetic.random_lengths(np.random.default_rng(1), count, 100)
    src, tgt = (lengths.astype(np.int16) for lengths in drawn)
    tracemalloc.start()
    try:
        order = BatchOrder(src, tgt, 4096, seed=1)
        assert src.nbytes + tgt.nbytes + tracemalloc.get_traced_memory()[1] < 16 * count
        assert tracemalloc.get_traced_memory()[0] < 6 * count
        before = order.epoch(0)
        tracemalloc.reset_peak()
        after = order.epoch(1)
        assert src.nbytes + tgt.nbytes + tracemalloc.get_traced_memory()[1] < 10 * count
    finally:
        tracemalloc.stop()
    assert len(before) == len(after)


# --- mixed corpora ------------------------------------------------------------------------------------------------


def mixed(weights: list[float], seed: int = 3, sizes: tuple[int, ...] = (40, 200)) -> MixedOrder:
    rng = np.random.default_rng(0)
    src, tgt = (rng.integers(1, 30, sum(sizes)).astype(np.int16) for _ in range(2))
    sources = np.repeat(np.arange(len(sizes)), sizes)
    return MixedOrder(src, tgt, 300, seed, sources, weights)


@pytest.mark.parametrize("weights", [[1.0, 0.25], [2.5, 0.1], [0.33, 3.0]])
def test_a_mixed_epoch_has_each_source_as_often_as_its_weight_says(weights: list[float]) -> None:
    order = mixed(weights)
    counts = np.zeros(240, int)
    for epoch in range(12):
        pairs = np.concatenate(list(order.epoch(epoch)))
        assert sorted(pairs) == sorted(order.pairs_of(epoch))
        now = np.bincount(pairs, minlength=240)
        for number, part in enumerate((now[:40], now[40:])):
            assert abs(part.sum() - weights[number] * len(part)) <= 1
            assert set(part) <= {math.floor(weights[number]), math.ceil(weights[number])}
        counts += now
    for number, part in enumerate((counts[:40], counts[40:])):  # evenly, over several epochs too
        assert part.max() - part.min() <= 1
        assert abs(part.mean() - 12 * weights[number]) < 1


def test_a_mixed_order_is_a_function_of_seed_and_epoch() -> None:
    first, again, other = (mixed([1.0, 0.25], seed) for seed in (3, 3, 4))
    for epoch in (0, 1, 5):
        batches = [order.epoch(epoch) for order in (first, again, other)]
        assert all(np.array_equal(one, two) for one, two in zip(batches[0], batches[1], strict=True))
        assert set(first.pairs_of(epoch)) != set(other.pairs_of(epoch))
        for batch in batches[0]:
            sizes = np.maximum(*(lengths[batch] for lengths in first.lengths)) + 1
            assert len(batch) * sizes.max() <= 300
    assert set(first.pairs_of(0)) != set(first.pairs_of(1))
    assert len(first) == len(first.epoch(0))
