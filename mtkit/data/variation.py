"""Variation of the pairs from pass to pass over the corpus: augmentation, and other segmentations of the text.

In: indices of pairs, and how often each was seen before. Out: their token ids in this pass.

The batches of an epoch are formed before it is known how long their pairs will be, so lengths are planned: the usual
number of tokens times the mean growth of a sample of the corpus, so that an update has as many tokens as without. The
pairs of some batches in a row are then divided among these anew by the lengths that they have, so that there is as
little padding as without. What still exceeds the budget runs in further micro-batches (mtkit/training/updates.py):
memory stays bounded, and every sample is trained on. Only a sample longer than `data.max_length` is not: its sentence
keeps the usual segmentation.
Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mtkit.config.sections import AugmentConfig, TokenizerConfig
from mtkit.data.augmentation import Augmentation
from mtkit.data.batching import EncodedPairs, Ids
from mtkit.data.counter_random import make_key
from mtkit.data.order import Indices, Lengths
from mtkit.data.subword_sampling import SubwordSampler
from mtkit.data.tokenizer import Tokenizers

_SAMPLE_PAIRS = 2000

Sides = tuple[list[Ids], list[Ids]]


class Variation:
    """Pairs as they are in each pass.

    Args:
        corpus: the encoded pairs.
        max_length: longest side of a pair in tokens.
        samplers: sampler of segmentations for each side, or None.
        augmentation: changes some pairs, or None.
    """

    def __init__(
        self,
        corpus: EncodedPairs,
        max_length: int,
        samplers: tuple[SubwordSampler | None, SubwordSampler | None],
        augmentation: Augmentation | None,
    ) -> None:
        self.corpus, self.max_length = corpus, max_length
        self._samplers, self._augmentation = samplers, augmentation
        lengths = corpus.src_lengths, corpus.tgt_lengths
        chosen = np.arange(0, len(lengths[0]), -(-len(lengths[0]) // _SAMPLE_PAIRS))
        sampled = self.rows(chosen, np.zeros_like(chosen))
        self.growth: list[float] = []
        """Tokens of a sample in its first pass for each of its usual tokens, of both sides."""
        self._plans: list[Lengths] = []
        for usual, rows in zip(lengths, sampled, strict=True):
            self.growth.append(sum(map(len, rows)) / int(usual[chosen].sum()))
            possible = np.arange(int(usual.max()) + 1)
            planned = np.minimum(np.rint(self.growth[-1] * possible), max_length)
            self._plans.append(np.maximum(possible, planned).astype(np.int32))

    def planned_lengths(self) -> tuple[Lengths, Lengths]:
        """Return the numbers of tokens that batches are formed with, of both sides: [pairs] each."""
        src, tgt = self.corpus.src_lengths, self.corpus.tgt_lengths
        if self.growth == [1.0, 1.0]:
            return src, tgt
        return self._plans[0][src], self._plans[1][tgt]

    def rows(self, pairs: Indices, passes: Indices) -> Sides:
        """Return the ids of both sides of some pairs.

        Args:
            pairs: [R], indices in the corpus.
            passes: [R], how often each was seen before.
        """
        numbers = pairs.tolist()
        srcs, tgts = list(map(self.corpus.src, numbers)), list(map(self.corpus.tgt, numbers))
        if self._augmentation is not None:
            for row, sides in self._augmentation.changes(srcs, tgts, pairs, passes).items():
                if max(map(len, sides)) <= self.max_length:
                    srcs[row], tgts[row] = sides
        for rows, sampler in zip((srcs, tgts), self._samplers, strict=True):
            if sampler is not None:
                for row, ids in enumerate(sampler.sample(rows, pairs, passes)):
                    if len(ids) <= self.max_length:  # otherwise its usual segmentation stays
                        rows[row] = ids
        return srcs, tgts


def make_variation(
    tokenizer: TokenizerConfig,
    augment: AugmentConfig,
    corpus: EncodedPairs,
    tokenizers: Tokenizers,
    *,
    max_length: int,
    tags: Sequence[str],
    seed: int,
) -> Variation | None:
    """Return what differs in each pass over a corpus, or None if nothing does.

    Args:
        tokenizer: section `tokenizer`, which may ask for subword sampling.
        augment: section `augment`.
        corpus: the encoded pairs.
        tokenizers: tokenizers of both sides.
        max_length: longest side of a pair in tokens.
        tags: tags of the training corpora.
        seed: random seed.

    Raises:
        ConfigError: If a tokenizer is not of the type that the sampling needs.
    """
    method: Literal["unigram", "bpe"] = "bpe" if tokenizer.bpe_dropout else "unigram"
    strength = tokenizer.bpe_dropout or tokenizer.sampling_alpha
    samplers = [
        SubwordSampler(each, method, strength, make_key(seed, f"subwords {side}"))
        if strength and tokenizer.sampling_sides in (side, "both")
        else None
        for side, each in (("src", tokenizers.src), ("tgt", tokenizers.tgt))
    ]
    augmentation = Augmentation(augment, tokenizers, tags, seed) if augment.is_on else None
    if augmentation is None and samplers == [None, None]:
        return None
    return Variation(corpus, max_length, (samplers[0], samplers[1]), augmentation)
