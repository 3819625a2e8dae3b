"""Which pairs go together, and in which order they come: the batches of every epoch.

Pairs are sorted by their longer side, then by how much longer the target is than the source, up and down in turn (so
that neighbours of different sizes are alike too); the sorted pairs are cut by the token budget into batches. All of
that is the same in every epoch. An epoch permutes the pairs within their bucket, which is all pairs of the same two
lengths, so that its batches differ from those of other epochs, and then it permutes the batches.

The order is a pure function of (lengths, seed, epoch): no state is carried, so any step can be resumed exactly.
Shapes: N pairs, K buckets, B batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.unsignedinteger[Any]]
Lengths = npt.NDArray[np.signedinteger[Any]]

LAZY_PAIRS = 1 << 22
"""A corpus of more pairs is permuted batch by batch, when a batch is asked for; a smaller one at once for an epoch."""

_PAIRS_AT_ONCE = 1 << 18  # what temporary arrays are made for
_SORTED_AT_ONCE = 1 << 20  # of fewer, sorting the rest apart would save no memory worth the time
_MOST_SORTS = 16
_SAMPLED_PAIRS = 1 << 16  # tell how many pairs there are of each size
_ROUNDS = 4  # of mixing: fewer leave neighbours together


class BatchOrder:
    """The batches of all epochs. Holds 4 bytes a pair for more than `LAZY_PAIRS` pairs, and nothing a pair for fewer.

    Attributes:
        num_positions: int64 [B], positions of each batch, both sides padded, bos and eos included, in sorted order.
        padding_share: the share of the positions that is padding.
    """

    def __init__(self, src_lengths: Lengths, tgt_lengths: Lengths, batch_tokens: int, seed: int) -> None:
        """Sort the pairs and cut them.

        Args:
            src_lengths, tgt_lengths: [N] tokens of each side, without bos and eos.
            batch_tokens: the most positions of the longer side in a batch: rows x (longest + 1).
            seed: of all epochs.
        """
        self.lengths, self.seed = (src_lengths, tgt_lengths), seed
        pairs, self.starts = _sort_all(src_lengths, tgt_lengths)
        self.sorted = pairs if len(pairs) > LAZY_PAIRS else None
        firsts = pairs[self.starts[:-1]]
        src, tgt = (lengths[firsts].astype(np.int64) + 1 for lengths in self.lengths)  # [K], framed
        self.bounds = _cut_sorted(np.maximum(src, tgt), self.starts, batch_tokens)  # [B + 1]
        longest = self._largest_of_batches(src) + self._largest_of_batches(tgt)
        self.num_positions: Indices = np.diff(self.bounds) * longest
        padded, real = int(self.num_positions.sum()), int(((src + tgt) * np.diff(self.starts)).sum())
        self.padding_share = 1 - real / padded if padded else 0.0

    def __len__(self) -> int:
        """The number of batches, the same in every epoch."""
        return len(self.bounds) - 1

    def epoch(self, number: int) -> EpochBatches:
        """The batches of an epoch."""
        return EpochBatches(self, number)

    def _largest_of_batches(self, of_buckets: Indices) -> Indices:
        """The largest value of the buckets that each batch has pairs of: [K] -> [B]."""
        first = np.searchsorted(self.starts, self.bounds[:-1], side="right") - 1
        behind = np.searchsorted(self.starts, self.bounds[1:], side="left")
        edges = np.stack([first, behind], axis=1).ravel()
        largest: Indices = np.maximum.reduceat(np.append(of_buckets, 0), edges)[::2] if len(self) else first
        return largest


class EpochBatches:
    """The batches of one epoch, by their number in it."""

    def __init__(self, order: BatchOrder, epoch: int) -> None:
        self._order = order
        rng = np.random.default_rng((order.seed, epoch))
        self._pairs = None
        if order.sorted is None:
            shuffled = np.arange(order.starts[-1], dtype=np.uint32)
            rng.shuffle(shuffled)
            self._pairs = _sort_pairs(shuffled, *order.lengths)
        self._places = rng.permutation(len(order))
        self._keys = rng.integers(2**64, size=(_ROUNDS, 3), dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Indices]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Indices:
        """The pairs of a batch, in the order of its rows. Raises: IndexError: the epoch has no such batch."""
        bounds, place = self._order.bounds, self._places[number]
        if self._pairs is not None:
            return self._pairs[bounds[place] : bounds[place + 1]].astype(np.int64)
        assert self._order.sorted is not None
        slots = np.arange(bounds[place], bounds[place + 1])
        return self._order.sorted[permute_within_buckets(self._order.starts, slots, self._keys)].astype(
            np.int64
        )

    def largest(self) -> Indices:
        """The batch with the most positions, the first of several."""
        return self[int(np.argmax(self._order.num_positions[self._places]))]

    def smallest(self) -> Indices:
        """The batch with the fewest positions, the first of several."""
        return self[int(np.argmin(self._order.num_positions[self._places]))]


def _sort_all(src_lengths: Lengths, tgt_lengths: Lengths) -> tuple[Pairs, Indices]:
    """All pairs, sorted, and where each bucket starts in them; sorted a share at a time, to be sparing of memory.

    Returns:
        the pairs [N]; starts [K + 1], the last of which is N.
    """
    num_pairs = len(src_lengths)
    sizes = np.maximum(src_lengths, tgt_lengths)
    pairs: Pairs = np.empty(num_pairs, np.uint32 if num_pairs < 2**32 else np.uint64)
    starts, filled = [np.zeros(1, np.int64)], 0
    for low, high in _shares(sizes):
        members = np.flatnonzero((low < sizes) & (sizes <= high)).astype(pairs.dtype)
        if not len(members):
            continue
        members = _sort_pairs(members, src_lengths, tgt_lengths)
        pairs[filled : filled + len(members)] = members
        src, tgt = src_lengths[members], tgt_lengths[members]
        starts.append(filled + np.flatnonzero((src[1:] != src[:-1]) | (tgt[1:] != tgt[:-1])) + 1)
        filled += len(members)
        starts.append(np.array([filled]))
    return pairs, np.concatenate(starts)


def _shares(sizes: Lengths) -> Iterator[tuple[int, int]]:
    """Ranges of sizes, ascending, that hold about as many pairs each; found in an even sample."""
    number = min(_MOST_SORTS, len(sizes) // _SORTED_AT_ONCE + 1)
    sample = np.sort(sizes[:: len(sizes) // _SAMPLED_PAIRS + 1])
    edges = np.unique(sample[[len(sample) * i // number for i in range(1, number)]]).tolist()
    return itertools.pairwise([-1, *edges, int(sizes.max(initial=0))])


def _sort_pairs(pairs: Pairs, src_lengths: Lengths, tgt_lengths: Lengths) -> Pairs:
    """The pairs in sorted order, those of a bucket in the order in which they are given.

    A key holds the bucket in its high bits and the place among `pairs` in its low ones: sorting the keys themselves is
    faster than finding the order of two columns, and takes 8 bytes a pair.
    """
    longest = int(max(src_lengths.max(initial=0), tgt_lengths.max(initial=0)))
    slants = 2 * longest + 1
    place_bits = len(pairs).bit_length()
    if (slants * (longest + 1)).bit_length() + place_bits > 63:
        src, tgt = src_lengths[pairs].astype(np.int64), tgt_lengths[pairs].astype(np.int64)
        return pairs[np.lexsort((_slant(src, tgt), np.maximum(src, tgt)))]
    keys = np.empty(len(pairs), np.int64)
    for first in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = pairs[first : first + _PAIRS_AT_ONCE]
        src, tgt = src_lengths[some].astype(np.int64), tgt_lengths[some].astype(np.int64)
        bucket = np.maximum(src, tgt) * slants + _slant(src, tgt) + longest
        keys[first : first + len(some)] = (bucket << place_bits) + np.arange(first, first + len(some))
    keys.sort()
    keys &= (1 << place_bits) - 1
    return pairs[keys]


def _slant(src: Indices, tgt: Indices) -> Indices:
    """How much longer the target is, up and down in turn with the size."""
    return np.where(np.maximum(src, tgt) % 2 == 1, tgt - src, src - tgt)


def _cut_sorted(sizes: Indices, starts: Indices, batch_tokens: int) -> Indices:
    """Cut sorted pairs into batches with rows x largest size <= batch_tokens (a single larger pair is a batch).

    Args:
        sizes: [K], ascending: positions that a pair of each bucket takes.
        starts: [K + 1]: where each bucket starts; the last is N.

    Returns:
        where each batch starts, and N: [B + 1]. As `split_by_tokens` cuts, without looking at every pair.
    """
    bounds, start = [0], 0
    for size, first, behind in zip(sizes.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        num_rows = max(1, batch_tokens // size)
        while behind - start > num_rows:
            start = max(first, start + num_rows)  # what came before this bucket may be too many rows for it
            bounds.append(start)
    if starts[-1]:
        bounds.append(int(starts[-1]))
    return np.array(bounds, np.int64)


def permute_within_buckets(starts: Indices, slots: Indices, keys: npt.NDArray[np.uint64]) -> Indices:
    """Where a pseudo-random permutation of each bucket sends some slots, found without making the permutation.

    Rounds of invertible steps permute the numbers below the next power of two; a slot that is sent behind its bucket
    is sent on until it falls into it (cycle walking: Black and Rogaway 2002, section 3).

    Args:
        starts: [K + 1]: where each bucket starts.
        slots: any numbers below N.
        keys: [rounds, 3]: other keys, another permutation.
    """
    bucket = np.searchsorted(starts, slots, side="right") - 1
    first, size = starts[bucket], starts[bucket + 1] - starts[bucket]
    bits = np.frexp((size - 1).astype(np.float64))[1].astype(np.uint64)
    mask, half = (np.uint64(1) << bits) - np.uint64(1), (bits + np.uint64(1)) >> np.uint64(1)
    numbers, still = (slots - first).astype(np.uint64), np.arange(len(slots))
    while len(still):
        some, low, shift, salt = numbers[still], mask[still], half[still], bucket[still].astype(np.uint64)
        for factor, salt_factor, term in keys:
            some = some * (factor | np.uint64(1)) + ((salt * salt_factor + term) >> np.uint64(32)) & low
            some ^= some >> shift
        numbers[still] = some
        still = still[some >= size[still].astype(np.uint64)]
    return first + numbers.astype(np.int64)
