"""Sentence pairs of random pieces, as long as those of news: what a machine is measured with when no corpus is at hand.

The WMT14 English-German training set has 4.5 million pairs with 116 million English and 110 million German words
(Luong et al. 2015, section 4.1): 26 and 24 words a sentence, near 29 and 31 pieces of a vocabulary of 32,000. Lengths
of sentences are about log-normal; the spread here, 0.6 of the logarithm, is a model, not a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtkit.data.batching import Ids
from mtkit.data.filters import FilterCounts
from mtkit.data.tokenizer import SPECIALS

MEDIAN_SRC_PIECES, _SPREAD = 24, 0.6
_TGT_PER_SRC, _TGT_SPREAD = 1.06, 0.2
_ROW_MULTIPLE = 8  # rows of an embedding, as tokenizers have them


@dataclass(frozen=True)
class SyntheticTokenizer:
    """The ids of a vocabulary without pieces."""

    num_pieces: int
    pad: int = 0
    unk: int = 1
    bos: int = 2
    eos: int = 3
    fingerprint: str = "synthetic"

    @property
    def vocab_size(self) -> int:
        """Rows of an embedding."""
        return -(-self.num_pieces // _ROW_MULTIPLE) * _ROW_MULTIPLE


def random_lengths(rng: np.random.Generator, num_pairs: int, longest: int) -> tuple[Ids, Ids]:
    """The lengths of the sources and the targets of so many pairs."""
    src = MEDIAN_SRC_PIECES * rng.lognormal(0.0, _SPREAD, num_pairs)
    tgt = src * _TGT_PER_SRC * rng.lognormal(0.0, _TGT_SPREAD, num_pairs)
    src_lengths, tgt_lengths = (np.clip(side.round(), 1, longest).astype(np.int32) for side in (src, tgt))
    return src_lengths, tgt_lengths


class SyntheticCorpus:
    """Random pairs; what training asks of a `Corpus`."""

    fingerprint = "synthetic"

    def __init__(self, num_pairs: int, vocab_size: int, max_length: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.src_lengths, self.tgt_lengths = random_lengths(rng, num_pairs, max_length)
        longest = int(max(self.src_lengths.max(), self.tgt_lengths.max()))
        self._pieces: Ids = rng.integers(len(SPECIALS), vocab_size, num_pairs + longest, dtype=np.int32)
        self.counts = FilterCounts(kept=num_pairs)

    def __len__(self) -> int:
        return self.counts.kept

    def src(self, index: int) -> Ids:
        """Source ids of a pair."""
        return self._pieces[index : index + self.src_lengths[index]]

    def tgt(self, index: int) -> Ids:
        """Target ids of a pair."""
        return self._pieces[index : index + self.tgt_lengths[index]][::-1]

    def location(self, index: int) -> str:
        """How errors call a pair."""
        return f"synthetic pair {index}"
