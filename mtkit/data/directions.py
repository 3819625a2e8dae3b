"""Both directions of a corpus: each pair as it is, and with source and target exchanged.

Training on both before, or instead of, one direction is a way to learn more from the same pairs (Ding et al. 2021,
"Improving neural machine translation by bidirectional training"). Both sides must have the same vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mtkit.data.batching import Ids
from mtkit.data.corpus import Corpus
from mtkit.data.order import Lengths


class BothDirections:
    """A corpus of N pairs as one of 2 N: pair N + i is pair i with its sides exchanged.

    The tag of a source stands before sources in the usual direction only: a pair that is exchanged has none.

    Attributes:
        src_lengths, tgt_lengths: [2 N], numbers of tokens.
        num_forward: N.
    """

    def __init__(self, corpus: Corpus, tag_lengths: Mapping[int, int]) -> None:
        """Take the pairs of a corpus.

        Args:
            corpus: the encoded pairs.
            tag_lengths: tokens of the tag before source lines, by the number of the source, where there are some.
        """
        self._corpus, self.num_forward = corpus, len(corpus)
        self._tag_lengths: npt.NDArray[np.int16] | None = None  # of each pair
        untagged = corpus.src_lengths
        if tag_lengths:
            of_source = np.zeros(len(corpus.sources), np.int16)
            of_source[list(tag_lengths)] = list(tag_lengths.values())
            self._tag_lengths = of_source[corpus.sources_of_pairs()]
            untagged = untagged - self._tag_lengths
        self.src_lengths: Lengths = np.concatenate([corpus.src_lengths, corpus.tgt_lengths])
        self.tgt_lengths: Lengths = np.concatenate([corpus.tgt_lengths, untagged])

    def __len__(self) -> int:
        return 2 * self.num_forward

    def src(self, index: int) -> Ids:
        """Return the source ids of a pair, as a read-only view."""
        if index < self.num_forward:
            return self._corpus.src(index)
        return self._corpus.tgt(index - self.num_forward)

    def tgt(self, index: int) -> Ids:
        """Return the target ids of a pair, as a read-only view."""
        if index < self.num_forward:
            return self._corpus.tgt(index)
        index -= self.num_forward
        ids = self._corpus.src(index)
        return ids if self._tag_lengths is None else ids[self._tag_lengths[index] :]

    def location(self, index: int) -> str:
        """Return where the text of a pair is, such as `train.en.gz:17`."""
        return self._corpus.location(index % self.num_forward)

    def sources_of_pairs(self) -> npt.NDArray[np.signedinteger[Any]]:
        """Return the number of the source of each pair: [2 N]."""
        return np.tile(self._corpus.sources_of_pairs(), 2)
