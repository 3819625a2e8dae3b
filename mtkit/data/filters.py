"""Which training pairs are left out, and how many for which reason. Nothing is left out silently."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from mtkit.config import DataConfig
from mtkit.data.pairs import Pair

MAX_CHARS_PER_PIECE = 100
"""A text with more characters than this for each piece it may have is too long without being encoded."""


@dataclass
class FilterCounts:
    """Pairs that were kept, and those left out, by the first reason that applied."""

    kept: int = 0
    empty: int = 0
    """Nothing but white space on a side, or nothing that the tokenizer keeps."""
    too_long: int = 0
    ratio: int = 0
    duplicate: int = 0

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
    """Decides on pairs in two steps, before and after they are encoded, and counts.

    With `drop_duplicates` it remembers an 8-byte digest of each pair in about 60 bytes of memory. Among 100
    million pairs the probability that two different ones share a digest is 0.0003.
    """

    def __init__(self, data: DataConfig) -> None:
        self.counts = FilterCounts()
        self._max_length = data.max_length
        self._max_ratio = data.max_length_ratio
        self._seen: set[int] | None = set() if data.drop_duplicates else None

    def accept_text(self, pair: Pair) -> Pair | None:
        """The pair without outer white space; None if it is left out."""
        stripped = Pair(pair.src.strip(), pair.tgt.strip())
        if not stripped.src or not stripped.tgt:
            self.counts.empty += 1
        elif max(map(len, stripped)) > MAX_CHARS_PER_PIECE * self._max_length:
            self.counts.too_long += 1
        elif self._is_duplicate(stripped):
            self.counts.duplicate += 1
        else:
            return stripped
        return None

    def _is_duplicate(self, pair: Pair) -> bool:
        if self._seen is None:
            return False
        digest = int.from_bytes(blake2b("\n".join(pair).encode(), digest_size=8).digest())
        before = len(self._seen)
        self._seen.add(digest)
        return len(self._seen) == before

    def accept_lengths(
        self, src_lengths: npt.NDArray[np.int64], tgt_lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Which of the encoded pairs stay, given the number of pieces on each side."""
        shorter, longer = np.minimum(src_lengths, tgt_lengths), np.maximum(src_lengths, tgt_lengths)
        empty = shorter == 0
        too_long = ~empty & (longer > self._max_length)
        unequal = np.zeros_like(empty)
        if self._max_ratio is not None:
            unequal = ~empty & ~too_long & (longer > self._max_ratio * shorter)
        kept: npt.NDArray[np.bool_] = ~(empty | too_long | unequal)
        self.counts.empty += int(empty.sum())
        self.counts.too_long += int(too_long.sum())
        self.counts.ratio += int(unequal.sum())
        self.counts.kept += int(kept.sum())
        return kept
