"""Noise on machine translations (Edunov et al. 2018, "Understanding Back-Translation at Scale", section 3)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mtkit.languages import UNSPACED, WORD

_UNSPACED = re.compile(f"[{UNSPACED}]")
_SPACED_WORD = re.compile(rf"(\s*)({WORD.pattern})")


@dataclass(frozen=True)
class Noise:
    """Noise on words, which are what spaces separate; in a script without spaces, such as Chinese, each letter is one.

    Attributes:
        filler: what stands for a word that is replaced.
        delete: share of the words that are deleted; one is kept at least.
        replace: share of the words that are replaced.
        distance: how many places a word may move.
        seed: random seed; with the number of a line it determines what happens to the line.
    """

    filler: str
    delete: float = 0.1
    replace: float = 0.1
    distance: int = 3
    seed: int = 1

    def apply(self, text: str, line: int) -> str:
        """Return a text with noise.

        Args:
            text: the text.
            line: number of its line, from 0.
        """
        words = [(" " if space else "", word) for space, word in _SPACED_WORD.findall(text)]
        if not words:
            return text
        random = np.random.default_rng((self.seed, line))
        kept = random.random(len(words)) >= self.delete
        kept[random.integers(len(words))] |= not kept.any()
        replaced = random.random(len(words)) < self.replace
        left = [
            (space, self.filler if gone else word)
            for (space, word), gone, keep in zip(words, replaced, kept, strict=True)
            if keep
        ]
        # Sorting i + U[0, distance + 1) moves no word further than that (Lample et al. 2018, section 2.3).
        order = np.argsort(
            np.arange(len(left)) + random.random(len(left)) * (self.distance + 1), kind="stable"
        )
        moved = [left[i] for i in order.tolist()]
        spaces = [
            space if _UNSPACED.match(before[-1]) or _UNSPACED.match(word) else " "
            for (_, before), (space, word) in pairwise(moved)
        ]
        return "".join(map("".join, zip(["", *spaces], (word for _, word in moved), strict=True)))
