"""The most probable next words behind the beginning of a translation, and how each would go on.

A word is a sequence of pieces, the last of which is followed by a piece that begins a word or is a punctuation mark,
or by eos. Its probability is the product of those of its pieces, and of all pieces together that may follow it;
relative to the probability that the beginning's last word is at its end.

Shapes: N beginnings, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Ids = tuple[int, ...]
MOST_PIECES = 32
"""Longer words are not looked for."""
OPENED_AT_ONCE = 16
"""Unfinished words that the model is asked about together."""


@dataclass(frozen=True)
class Word:
    """A word that may come next."""

    ids: Ids
    """Its pieces; none for the end of the translation."""
    log_prob: float
    """Natural logarithm of the probability that just this word comes next."""


@dataclass(frozen=True)
class Alternative:
    """A word that may come next, and the best translation that goes on with it."""

    word: str
    """Empty for the end of the translation."""
    probability: float
    """Of the word."""
    text: str
    """The whole translation, from its beginning."""
    score: float
    """Of the translation, as `translate` ranks it."""


@torch.inference_mode()
def next_words(
    log_probs_after: Callable[[Sequence[Ids]], Tensor],
    followers: frozenset[int],
    eos: int,
    forbidden: frozenset[int],
    number: int,
    at_boundary: bool,
) -> list[Word]:
    """The most probable next words, best first: exactly those, by best-first search.

    A word's beginning is at least as probable as the word, so a word that is more probable than all unfinished ones
    is more probable than all words that have not been found.

    Args:
        log_probs_after: log-probabilities [N, V] of the piece behind each of N beginnings of a word.
        followers: pieces that may stand behind a whole word, besides eos; only they and eos come first where words
            stand before (`at_boundary`).
        forbidden: pieces that never appear.
        number: words wanted; fewer are found if there are fewer of at most `MOST_PIECES` pieces.
    """
    found: list[Word] = []
    unfinished = [Word((), 0.0)]
    while unfinished:
        opened, unfinished = unfinished[:OPENED_AT_ONCE], unfinished[OPENED_AT_ONCE:]
        log_probs_NV = log_probs_after([word.ids for word in opened]).double()
        boundary = torch.zeros(log_probs_NV.shape[1], dtype=torch.bool, device=log_probs_NV.device)
        boundary[[*followers, eos]] = True
        allowed = torch.ones_like(boundary)
        allowed[list(forbidden)] = False
        for word, log_probs_V in zip(opened, log_probs_NV, strict=True):
            ends = float(log_probs_V[boundary].logsumexp(0))
            if word.ids:
                found.append(Word(word.ids, word.log_prob + ends))
                goes_on = allowed & ~boundary
                before = word.log_prob
            else:
                goes_on = allowed & boundary if at_boundary else allowed.clone()
                before = -ends if at_boundary else 0.0
                goes_on[eos] = False
                if allowed[eos]:
                    found.append(Word((), before + float(log_probs_V[eos])))
            found = sorted(found, key=lambda w: -w.log_prob)[:number]
            worst = found[-1].log_prob if len(found) == number else -math.inf
            if len(word.ids) < MOST_PIECES:
                pieces = (goes_on & (before + log_probs_V > worst)).nonzero()[:, 0]
                totals = (before + log_probs_V[pieces]).tolist()
                ids = [(*word.ids, piece) for piece in pieces.tolist()]
                unfinished += map(Word, ids, totals)
        worst = found[-1].log_prob if len(found) == number else -math.inf
        unfinished = sorted((w for w in unfinished if w.log_prob > worst), key=lambda w: -w.log_prob)
    return [word for word in found if word.log_prob > -math.inf]
