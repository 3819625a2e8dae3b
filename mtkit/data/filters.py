"""Which training pairs are left out, and how many for which reason. Nothing is left out silently."""

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
"""For each pair why it is left out: the place of the reason in `FilterCounts`."""

KEPT, _EMPTY, _TOO_LONG, _RATIO, _DUPLICATE = range(5)

_NUM_PARTS = 16  # the less memory is taken by the one that is written anew
_PART_SHIFT = 60

_MAX_CHARS_PER_PIECE = 100
"""A text with more characters than this for each piece it may have is too long without being encoded."""


@dataclass(frozen=True)
class FilterCounts:
    """Pairs that were kept, and those left out, by the first reason that applied."""

    kept: int = 0
    empty: int = 0
    """Nothing but white space on a side, or nothing that the tokenizer keeps."""
    too_long: int = 0
    ratio: int = 0
    duplicate: int = 0

    @classmethod
    def of(cls, reasons: Reasons) -> FilterCounts:
        """How often each reason comes."""
        return cls(*np.bincount(reasons, minlength=_DUPLICATE + 1).tolist())

    def __add__(self, other: FilterCounts) -> FilterCounts:
        return FilterCounts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def num_read(self) -> int:
        """All pairs."""
        return sum(asdict(self).values())

    def summary(self) -> str:
        """One line: `28,990 of 29,000 pairs kept; left out: 3 empty, 7 too long`."""
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
    """Decides on pairs in two steps, before and after they are encoded. Many at a time: arrays of reasons.

    With `drop_duplicates` it remembers an 8-byte digest of each pair. Among 100 million pairs the probability that any
    two different ones share a digest is 0.0003.
    """

    def __init__(self, data: DataConfig) -> None:
        self._max_length = data.max_length
        self._max_ratio = data.max_length_ratio
        self._seen = DigestSet() if data.drop_duplicates else None

    @property
    def remembers(self) -> bool:
        """Whether a decision depends on the pairs before."""
        return self._seen is not None

    def check_texts(self, srcs: Sequence[str], tgts: Sequence[str]) -> Reasons:
        """Why each pair is left out, judged by its texts without outer white space; `KEPT` if it is not."""
        shorter, longer = _shorter_and_longer(_lengths_of(srcs), _lengths_of(tgts))
        reasons = np.full(len(srcs), KEPT, np.uint8)
        reasons[longer > _MAX_CHARS_PER_PIECE * self._max_length] = _TOO_LONG
        reasons[shorter == 0] = _EMPTY
        if self._seen is not None:
            places = np.flatnonzero(reasons == KEPT)
            texts = (f"{srcs[place]}\n{tgts[place]}" for place in places.tolist())
            digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
            new = self._seen.add(np.frombuffer(digests, np.uint64))
            reasons[places[~new]] = _DUPLICATE
        return reasons

    def check_lengths(self, src_lengths: Counts, tgt_lengths: Counts) -> Reasons:
        """Why each encoded pair is left out, judged by the number of tokens on each side; `KEPT` if it is not."""
        shorter, longer = _shorter_and_longer(src_lengths, tgt_lengths)
        reasons = np.full(len(src_lengths), KEPT, np.uint8)
        if self._max_ratio is not None:
            reasons[longer > self._max_ratio * shorter] = _RATIO
        reasons[longer > self._max_length] = _TOO_LONG
        reasons[shorter == 0] = _EMPTY
        return reasons


def _lengths_of(texts: Sequence[str]) -> Counts:
    return np.fromiter(map(len, texts), np.int64, len(texts))


def _shorter_and_longer(one: Counts, other: Counts) -> tuple[Counts, Counts]:
    return np.minimum(one, other), np.maximum(one, other)


class DigestSet:
    """A set of 64-bit digests in sorted arrays: 8 bytes each, and 1 more while it is added to.

    A part holds the digests of the same high bits, in arrays each less than a quarter of the one before it, so that one
    is looked up in few and none is often written anew.
    """

    def __init__(self) -> None:
        self._parts: list[list[Digests]] = [[] for _ in range(_NUM_PARTS)]

    def add(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Put them in. Returns which were not there yet, of several equal ones the first."""
        order = np.argsort(digests, kind="stable")
        values = digests[order]
        new = np.ones(len(values), np.bool_)
        new[1:] = values[1:] != values[:-1]
        edges = np.arange(1, _NUM_PARTS, dtype=np.uint64) << np.uint64(_PART_SHIFT)
        bounds = [0, *np.searchsorted(values, edges).tolist(), len(values)]
        for part, first, behind in zip(self._parts, bounds[:-1], bounds[1:], strict=True):
            some = values[first:behind]
            for held in part:
                places = np.minimum(np.searchsorted(held, some), len(held) - 1)
                new[first:behind] &= held[places] != some
            if new[first:behind].any():
                _put(part, some[new[first:behind]])
        found = np.empty_like(new)
        found[order] = new
        return found


def _put(part: list[Digests], values: Digests) -> None:
    """Add a sorted array to those of a part, merged with the ones that are not much larger."""
    while part and len(part[-1]) < 4 * len(values):
        larger = part.pop()
        values = np.insert(larger, np.searchsorted(larger, values), values)
    part.append(values)
