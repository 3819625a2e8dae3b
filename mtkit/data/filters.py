"""Filters on training pairs, with a count of the pairs that each removes: nothing is dropped silently.

In: the texts of pairs, then their numbers of tokens. Out: for each pair, why it is dropped, or `KEPT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from mtkit.config.sections import DataConfig

Counts = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]
Reasons = npt.NDArray[np.uint8]
"""Why each pair is dropped: the index of the reason among the fields of `FilterCounts`, or `KEPT`."""

KEPT, _EMPTY, _TOO_LONG, _RATIO, _DUPLICATE = range(5)

_NUM_BUCKETS = 16  # More buckets need less memory while one of them is merged.
_BUCKET_SHIFT = 60

_MAX_CHARS_PER_TOKEN = 100
"""A text with more characters than this for each token it may have is too long, without being tokenized."""


@dataclass(frozen=True)
class FilterCounts:
    """Numbers of pairs that were kept, and that were dropped, by the first reason that applied."""

    kept: int = 0
    empty: int = 0
    """A side is only white space, or has no tokens."""
    too_long: int = 0
    ratio: int = 0
    duplicate: int = 0

    @classmethod
    def from_reasons(cls, reasons: Reasons) -> FilterCounts:
        """Count how often each reason occurs."""
        return cls(*np.bincount(reasons, minlength=_DUPLICATE + 1).tolist())

    def __add__(self, other: FilterCounts) -> FilterCounts:
        return FilterCounts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def num_read(self) -> int:
        """Number of all pairs, kept and dropped."""
        return sum(asdict(self).values())

    def summary(self) -> str:
        """Return one line such as `28,990 of 29,000 pairs kept; left out: 3 empty, 7 too long`."""
        reasons = {
            "empty": self.empty,
            "too long": self.too_long,
            "too unequal in length": self.ratio,
            "duplicate": self.duplicate,
        }
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
        kept = f"{self.kept:,} of {self.num_read:,} pairs kept"
        return f"{kept}; left out: {dropped}" if dropped else kept


class PairFilter:
    """Filter of pairs, many at a time, in two steps: by their texts, then by their numbers of tokens.

    With `drop_duplicates` it keeps an 8-byte digest of each pair. Among 100 million pairs the probability that any two
    different ones have the same digest is 0.0003.
    """

    def __init__(self, data: DataConfig) -> None:
        self._max_length = data.max_length
        self._max_ratio = data.max_length_ratio
        self._seen = DigestSet() if data.drop_duplicates else None

    @property
    def is_stateful(self) -> bool:
        """Return whether a decision depends on earlier pairs."""
        return self._seen is not None

    def filter_texts(self, srcs: Sequence[str], tgts: Sequence[str]) -> Reasons:
        """Return why each pair is dropped because of its texts (stripped of white space), or `KEPT`."""
        shorter, longer = _shorter_and_longer(_num_chars(srcs), _num_chars(tgts))
        reasons = np.full(len(srcs), KEPT, np.uint8)
        reasons[longer > _MAX_CHARS_PER_TOKEN * self._max_length] = _TOO_LONG
        reasons[shorter == 0] = _EMPTY
        if self._seen is not None:
            kept = np.flatnonzero(reasons == KEPT)
            texts = (f"{srcs[i]}\n{tgts[i]}" for i in kept.tolist())
            digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
            is_new = self._seen.add(np.frombuffer(digests, np.uint64))
            reasons[kept[~is_new]] = _DUPLICATE
        return reasons

    def filter_lengths(self, src_lengths: Counts, tgt_lengths: Counts) -> Reasons:
        """Return why each pair is dropped because of its numbers of tokens, or `KEPT`."""
        shorter, longer = _shorter_and_longer(src_lengths, tgt_lengths)
        reasons = np.full(len(src_lengths), KEPT, np.uint8)
        if self._max_ratio is not None:
            reasons[longer > self._max_ratio * shorter] = _RATIO
        reasons[longer > self._max_length] = _TOO_LONG
        reasons[shorter == 0] = _EMPTY
        return reasons


def _num_chars(texts: Sequence[str]) -> Counts:
    return np.fromiter(map(len, texts), np.int64, len(texts))


def _shorter_and_longer(one: Counts, other: Counts) -> tuple[Counts, Counts]:
    return np.minimum(one, other), np.maximum(one, other)


class DigestSet:
    """Set of 64-bit digests in sorted arrays: 8 bytes each, and 1 more while digests are added.

    Digests with the same high bits are in the same bucket, as a list of sorted arrays, each less than a quarter as long
    as the one before it: lookups search few arrays, and large arrays are seldom rewritten.
    """

    def __init__(self) -> None:
        self._buckets: list[list[Digests]] = [[] for _ in range(_NUM_BUCKETS)]

    def add(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Add digests. Return which of them were new; of equal ones among them, the first."""
        order = np.argsort(digests, kind="stable")
        values = digests[order]
        is_new = np.ones(len(values), np.bool_)
        is_new[1:] = values[1:] != values[:-1]
        edges = np.arange(1, _NUM_BUCKETS, dtype=np.uint64) << np.uint64(_BUCKET_SHIFT)
        bounds = [0, *np.searchsorted(values, edges).tolist(), len(values)]
        for bucket, start, end in zip(self._buckets, bounds[:-1], bounds[1:], strict=True):
            candidates = values[start:end]
            for known in bucket:
                nearest = np.minimum(np.searchsorted(known, candidates), len(known) - 1)
                is_new[start:end] &= known[nearest] != candidates
            if is_new[start:end].any():
                _insert(bucket, candidates[is_new[start:end]])
        result = np.empty_like(is_new)
        result[order] = is_new
        return result


def _insert(bucket: list[Digests], values: Digests) -> None:
    """Append a sorted array to a bucket, merged with the last arrays unless they are much longer."""
    while bucket and len(bucket[-1]) < 4 * len(values):
        larger = bucket.pop()
        values = np.insert(larger, np.searchsorted(larger, values), values)
    bucket.append(values)
