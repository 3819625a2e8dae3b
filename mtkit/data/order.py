"""The order of the training pairs: which pairs share a batch, and in which order the batches of an epoch come.

In: the lengths of all pairs. Out: the batches of any epoch, as arrays of pair indices.

Pairs are sorted by their longer side, then by how much longer the target is than the source, ascending and descending
in turn (so that neighbors of different sizes are similar too). The sorted pairs are split into batches by the token
budget. All of that is the same in every epoch. An epoch permutes the pairs within their bucket (all pairs of the same
two lengths), so that its batches differ from those of other epochs, and then permutes the batches.

The order is a pure function of (lengths, seed, epoch). It has no state, so any step can be resumed exactly.
Shapes: N pairs, K buckets, B batches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.unsignedinteger[Any]]
Lengths = npt.NDArray[np.signedinteger[Any]]

LAZY_PAIRS = 1 << 22
"""A larger corpus is permuted batch by batch, when a batch is requested; a smaller one at once for the whole epoch."""

_CHUNK_PAIRS = 1 << 18  # Temporary arrays have this size.
_MIN_SORT_PAIRS = 1 << 20  # Sorting fewer pairs at a time would not save enough memory to be worth the time.
_MAX_SORTS = 16
_SAMPLE_PAIRS = 1 << 16  # Sample from which the distribution of sizes is estimated.
_ROUNDS = 4  # With fewer rounds of mixing, neighbors stay together.


class BatchOrder:
    """The batches of all epochs.

    Takes 4 bytes per pair if there are more than `LAZY_PAIRS` pairs, and nothing per pair otherwise.

    Attributes:
        num_positions: int64 [B], positions of each batch in sorted order: both sides with padding, bos and eos.
        padding_share: the share of the positions that is padding.
    """

    def __init__(self, src_lengths: Lengths, tgt_lengths: Lengths, batch_tokens: int, seed: int) -> None:
        """Sort the pairs and split them into batches.

        Args:
            src_lengths, tgt_lengths: [N] numbers of tokens of each side, without bos and eos.
            batch_tokens: the maximum number of positions of the longer side of a batch: rows x (longest + 1).
            seed: the random seed of all epochs.
        """
        self.lengths, self.seed = (src_lengths, tgt_lengths), seed
        pairs, self.starts = _sort_all(src_lengths, tgt_lengths)
        self.sorted = pairs if len(pairs) > LAZY_PAIRS else None
        firsts = pairs[self.starts[:-1]]
        src, tgt = (lengths[firsts].astype(np.int64) + 1 for lengths in self.lengths)  # [K], with bos or eos
        self.bounds = _split_sorted(np.maximum(src, tgt), self.starts, batch_tokens)  # [B + 1]
        longest = self._max_per_batch(src) + self._max_per_batch(tgt)
        self.num_positions: Indices = np.diff(self.bounds) * longest
        padded, real = int(self.num_positions.sum()), int(((src + tgt) * np.diff(self.starts)).sum())
        self.padding_share = 1 - real / padded if padded else 0.0

    def __len__(self) -> int:
        """Return the number of batches, the same in every epoch."""
        return len(self.bounds) - 1

    def epoch(self, number: int) -> EpochBatches:
        """Return the batches of an epoch."""
        return EpochBatches(self, number)

    def _max_per_batch(self, values: Indices) -> Indices:
        """Return the largest value among the buckets that each batch has pairs of: [K] -> [B]."""
        first = np.searchsorted(self.starts, self.bounds[:-1], side="right") - 1
        end = np.searchsorted(self.starts, self.bounds[1:], side="left")
        edges = np.stack([first, end], axis=1).ravel()
        largest: Indices = np.maximum.reduceat(np.append(values, 0), edges)[::2] if len(self) else first
        return largest


class EpochBatches:
    """The batches of one epoch, a sequence of arrays of pair indices."""

    def __init__(self, order: BatchOrder, epoch: int) -> None:
        self._order, self._epoch = order, epoch
        rng = np.random.default_rng((order.seed, epoch))
        self._pairs = None
        if order.sorted is None:
            shuffled = np.arange(order.starts[-1], dtype=np.uint32)
            rng.shuffle(shuffled)
            self._pairs = _sort_pairs(shuffled, *order.lengths)
        self._permutation = rng.permutation(len(order))
        self._keys = rng.integers(2**64, size=(_ROUNDS, 3), dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._permutation)

    def __iter__(self) -> Iterator[Indices]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Indices:
        """Return the pairs of a batch, in the order of its rows.

        Raises:
            IndexError: If the epoch has fewer batches.
        """
        batch = self._permutation[number]
        start, end = self._order.bounds[batch], self._order.bounds[batch + 1]
        if self._pairs is not None:
            return self._pairs[start:end].astype(np.int64)
        assert self._order.sorted is not None
        slots = permute_within_buckets(self._order.starts, np.arange(start, end), self._keys)
        return self._order.sorted[slots].astype(np.int64)

    def passes(self, number: int) -> Indices:
        """Return how often each pair of a batch was seen before: once in each earlier epoch."""
        return np.full_like(self[number], self._epoch)

    def largest(self) -> Indices:
        """Return the batch with the most positions, the first of several."""
        return self[int(np.argmax(self._order.num_positions[self._permutation]))]

    def smallest(self) -> Indices:
        """Return the batch with the fewest positions, the first of several."""
        return self[int(np.argmin(self._order.num_positions[self._permutation]))]


class MixedOrder:
    """The batches of all epochs of a corpus whose sources are seen more or less often than once per epoch.

    Each source has a random order of its own, in which the epochs go through it again and again: with a weight of 0.25,
    an epoch has the next quarter of its pairs; with 2.5, all of them twice and half of them once more. Every pair is
    thus seen as often as any other of its source, give or take one. Takes 8 bytes per pair of the corpus, and per pair
    of an epoch 16 bytes, or 45 while the epoch is made.
    """

    def __init__(
        self,
        src_lengths: Lengths,
        tgt_lengths: Lengths,
        batch_tokens: int,
        seed: int,
        sources: npt.NDArray[np.signedinteger[Any]],
        weights: Sequence[float],
    ) -> None:
        """Shuffle the pairs of each source.

        Args:
            src_lengths, tgt_lengths, batch_tokens, seed: as those of `BatchOrder`.
            sources: [N], number of the source of each pair.
            weights: weight of each source.
        """
        self.lengths, self.weights = (src_lengths, tgt_lengths), weights
        self.batch_tokens, self.seed = batch_tokens, seed
        self._shuffled = [
            np.random.default_rng((seed, number)).permutation(np.flatnonzero(sources == number))
            for number in range(len(weights))
        ]
        _, first = self.order_of(0)
        self.num_batches, self.padding_share = len(first), first.padding_share

    def __len__(self) -> int:
        """Return the number of batches of the first epoch; others may have a few more or less."""
        return self.num_batches

    def pairs_of(self, epoch: int) -> Indices:
        """Return the pairs of an epoch, source by source, the repeated ones several times."""
        places = zip(self._shuffled, self._places(epoch), strict=True)
        return np.concatenate(
            [np.zeros(0, np.int64), *(pairs[where % max(1, len(pairs))] for pairs, where in places)]
        )

    def passes_of(self, epoch: int) -> Indices:
        """Return how often each of these pairs was seen before, in earlier epochs or in this one."""
        places = zip(self._shuffled, self._places(epoch), strict=True)
        return np.concatenate(
            [np.zeros(0, np.int64), *(where // max(1, len(pairs)) for pairs, where in places)]
        )

    def _places(self, epoch: int) -> Iterator[Indices]:
        """Yield the places of an epoch's pairs in the endless order of each source."""
        for pairs, weight in zip(self._shuffled, self.weights, strict=True):
            first, end = (math.floor(number * weight * len(pairs) + 0.5) for number in (epoch, epoch + 1))
            yield np.arange(first, end)

    def epoch(self, number: int) -> MixedBatches:
        """Return the batches of an epoch."""
        return MixedBatches(self, number)

    def order_of(self, epoch: int) -> tuple[Indices, BatchOrder]:
        """Return the pairs of an epoch, and the order of their places among them."""
        pairs = self.pairs_of(epoch)
        src, tgt = (lengths[pairs] for lengths in self.lengths)
        return pairs, BatchOrder(src, tgt, self.batch_tokens, self.seed)


class MixedBatches:
    """The batches of one epoch of a mixed corpus, a sequence of arrays of pair indices."""

    def __init__(self, order: MixedOrder, epoch: int) -> None:
        self._order, self._epoch = order, epoch
        self._pairs, of_epoch = order.order_of(epoch)
        self._batches = of_epoch.epoch(epoch)

    @cached_property
    def _passes(self) -> Indices:
        return self._order.passes_of(self._epoch)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Indices]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Indices:
        """Return the pairs of a batch, in the order of its rows.

        Raises:
            IndexError: If the epoch has fewer batches.
        """
        return self._pairs[self._batches[number]]

    def passes(self, number: int) -> Indices:
        """Return how often each pair of a batch was seen before, in earlier epochs or in this one."""
        return self._passes[self._batches[number]]

    def largest(self) -> Indices:
        """Return the batch with the most positions, the first of several."""
        return self._pairs[self._batches.largest()]

    def smallest(self) -> Indices:
        """Return the batch with the fewest positions, the first of several."""
        return self._pairs[self._batches.smallest()]


class PhasedOrder:
    """The batches of two orders: those of one in the first epochs, those of the other in all later ones."""

    def __init__(
        self, first: BatchOrder | MixedOrder, later: BatchOrder | MixedOrder, num_first_epochs: int
    ) -> None:
        self.first, self.later, self.num_first_epochs = first, later, num_first_epochs
        self.padding_share = first.padding_share

    def __len__(self) -> int:
        """Return the number of batches of the first epoch."""
        return len(self.first)

    def epoch(self, number: int) -> EpochBatches | MixedBatches:
        """Return the batches of an epoch."""
        return (self.first if number < self.num_first_epochs else self.later).epoch(number)


def num_epochs_of(order: BatchOrder | MixedOrder | PhasedOrder, num_batches: float) -> float:
    """Return how many epochs have this many batches."""
    if not isinstance(order, PhasedOrder):
        return num_batches / len(order)
    in_first = min(num_batches, order.num_first_epochs * len(order.first))
    return in_first / len(order.first) + (num_batches - in_first) / len(order.later)


def num_batches_of(order: BatchOrder | MixedOrder | PhasedOrder, num_epochs: int) -> int:
    """Return the number of batches in the first `num_epochs` epochs."""
    if not isinstance(order, PhasedOrder):
        return num_epochs * len(order)
    num_first = min(num_epochs, order.num_first_epochs)
    return num_first * len(order.first) + (num_epochs - num_first) * len(order.later)


def _sort_all(src_lengths: Lengths, tgt_lengths: Lengths) -> tuple[Pairs, Indices]:
    """Sort all pairs, one range of sizes at a time to save memory.

    Returns:
        the sorted pairs [N]; where each bucket starts in them, and N: [K + 1].
    """
    num_pairs = len(src_lengths)
    sizes = np.maximum(src_lengths, tgt_lengths)
    pairs: Pairs = np.empty(num_pairs, np.uint32 if num_pairs < 2**32 else np.uint64)
    starts, num_sorted = [np.zeros(1, np.int64)], 0
    for low, high in _size_ranges(sizes):
        members = np.flatnonzero((low < sizes) & (sizes <= high)).astype(pairs.dtype)
        if not len(members):
            continue
        members = _sort_pairs(members, src_lengths, tgt_lengths)
        pairs[num_sorted : num_sorted + len(members)] = members
        src, tgt = src_lengths[members], tgt_lengths[members]
        starts.append(num_sorted + np.flatnonzero((src[1:] != src[:-1]) | (tgt[1:] != tgt[:-1])) + 1)
        num_sorted += len(members)
        starts.append(np.array([num_sorted]))
    return pairs, np.concatenate(starts)


def _size_ranges(sizes: Lengths) -> Iterator[tuple[int, int]]:
    """Return ascending ranges (above, up to) of sizes with about as many pairs each, estimated from a sample."""
    number = min(_MAX_SORTS, len(sizes) // _MIN_SORT_PAIRS + 1)
    sample = np.sort(sizes[:: len(sizes) // _SAMPLE_PAIRS + 1])
    edges = np.unique(sample[[len(sample) * i // number for i in range(1, number)]]).tolist()
    return itertools.pairwise([-1, *edges, int(sizes.max(initial=0))])


def _sort_pairs(pairs: Pairs, src_lengths: Lengths, tgt_lengths: Lengths) -> Pairs:
    """Sort pairs by bucket; those of the same bucket keep their order.

    A key has the bucket in its high bits and the index into `pairs` in its low ones. Sorting such keys is faster than
    `np.lexsort` of two columns, and takes 8 bytes per pair.
    """
    longest = int(max(src_lengths.max(initial=0), tgt_lengths.max(initial=0)))
    num_slants = 2 * longest + 1
    index_bits = len(pairs).bit_length()
    if (num_slants * (longest + 1)).bit_length() + index_bits > 63:
        src, tgt = src_lengths[pairs].astype(np.int64), tgt_lengths[pairs].astype(np.int64)
        return pairs[np.lexsort((_slant(src, tgt), np.maximum(src, tgt)))]
    keys = np.empty(len(pairs), np.int64)
    for first in range(0, len(pairs), _CHUNK_PAIRS):
        chunk = pairs[first : first + _CHUNK_PAIRS]
        src, tgt = src_lengths[chunk].astype(np.int64), tgt_lengths[chunk].astype(np.int64)
        bucket = np.maximum(src, tgt) * num_slants + _slant(src, tgt) + longest
        keys[first : first + len(chunk)] = (bucket << index_bits) + np.arange(first, first + len(chunk))
    keys.sort()
    keys &= (1 << index_bits) - 1
    return pairs[keys]


def _slant(src: Indices, tgt: Indices) -> Indices:
    """Return how much longer the target is than the source, with the sign changed for every other size."""
    return np.where(np.maximum(src, tgt) % 2 == 1, tgt - src, src - tgt)


def _split_sorted(sizes: Indices, starts: Indices, batch_tokens: int) -> Indices:
    """Split sorted pairs into batches as `split_by_tokens` does, without looking at every pair.

    Args:
        sizes: [K], ascending: the positions that a pair of each bucket takes.
        starts: [K + 1]: where each bucket starts; the last is N.
        batch_tokens: the maximum of rows x largest size; a single larger pair is a batch.

    Returns:
        where each batch starts, and N: [B + 1].
    """
    bounds, start = [0], 0
    for size, first, end in zip(sizes.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        num_rows = max(1, batch_tokens // size)
        while end - start > num_rows:
            # The rows from smaller buckets may be too many for this size.
            start = max(first, start + num_rows)
            bounds.append(start)
    if starts[-1]:
        bounds.append(int(starts[-1]))
    return np.array(bounds, np.int64)


def permute_within_buckets(starts: Indices, slots: Indices, keys: npt.NDArray[np.uint64]) -> Indices:
    """Return where a pseudo-random permutation of each bucket maps some slots, without computing the permutation.

    Rounds of invertible steps permute the numbers below the next power of two. A slot that is mapped past the end of
    its bucket is mapped again until it is inside (cycle walking: Black and Rogaway 2002, section 3).

    Args:
        starts: [K + 1]: where each bucket starts.
        slots: numbers below N, in any order.
        keys: [rounds, 3]: random numbers that determine the permutation.
    """
    bucket = np.searchsorted(starts, slots, side="right") - 1
    first, size = starts[bucket], starts[bucket + 1] - starts[bucket]
    bits = np.frexp((size - 1).astype(np.float64))[1].astype(np.uint64)
    mask, half = (np.uint64(1) << bits) - np.uint64(1), (bits + np.uint64(1)) >> np.uint64(1)
    numbers, outside = (slots - first).astype(np.uint64), np.arange(len(slots))
    while len(outside):
        mixed, low, shift = numbers[outside], mask[outside], half[outside]
        salt = bucket[outside].astype(np.uint64)
        for factor, salt_factor, term in keys:
            mixed = mixed * (factor | np.uint64(1)) + ((salt * salt_factor + term) >> np.uint64(32)) & low
            mixed ^= mixed >> shift
        numbers[outside] = mixed
        outside = outside[mixed >= size[outside].astype(np.uint64)]
    return first + numbers.astype(np.int64)
