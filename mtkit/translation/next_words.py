"""The most probable next words behind the beginning of a translation, and how each would go on.

A word is a sequence of pieces, the last of which is followed by a piece that begins a word or is a punctuation mark,
or by eos. Its probability is the product of those of its pieces, and of all pieces together that may follow it;
relative to the probability that the beginning's last word is at its end.

Shapes: N beginnings, S source length, T target length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mtkit.search.beam import search
from mtkit.search.state import SearchOptions
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.segments import Segment

Ids = tuple[int, ...]
MAX_TOKENS = 32
"""Longer words are not looked for."""
EXPANDED_TOGETHER = 16
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
def best_next_words(
    ensemble: Ensemble, part: Segment, options: SearchOptions, followers: frozenset[int], number: int
) -> list[Alternative]:
    """The most probable words behind a part's prefix, best first, each with the best translation that goes on so.

    Args:
        ensemble: the models.
        part: the sentence; its prefix consists of whole words.
        options: of the search.
        followers: see `next_words`.
        number: alternatives wanted; fewer are found if there are fewer.
    """
    tgt, device = ensemble.tokenizers.tgt, ensemble.device
    followers = followers - set(options.suppressed)

    def log_probs_after(words: Sequence[Ids]) -> Tensor:
        begun = [np.array([*part.prefix, *word], dtype=np.int32) for word in words]
        hidden = ensemble.hidden(ensemble.sources([part.ids] * len(words)), ensemble.targets_in(begun))
        lasts_N = torch.tensor([len(ids) for ids in begun], device=device)
        return ensemble.log_probs([h[torch.arange(len(words), device=device), lasts_N] for h in hidden])

    wanted = 2 * number  # pieces of the same word may differ
    forbidden, at_boundary = frozenset(options.suppressed), bool(part.prefix)
    words = next_words(log_probs_after, followers, tgt.eos, forbidden, wanted, at_boundary)
    texts = tgt.decode([word.ids for word in words])
    first = {
        text: word for text, word in reversed(list(zip(texts, words, strict=True))) if text or not word.ids
    }
    chosen = sorted(first.items(), key=lambda item: -item[1].log_prob)[:number]
    prefixes = [(*part.prefix, *word.ids) for _, word in chosen]
    limits = [
        max(part.max_length, len(begun) + 1) if word.ids else len(begun) + 1
        for begun, (_, word) in zip(prefixes, chosen, strict=True)
    ]
    src_NS = ensemble.sources([part.ids] * len(chosen))
    stepper = ensemble.stepper(src_NS, keep_attention=options.coverage_penalty > 0)
    options = replace(options, n_best=1, after_prefix=tuple(sorted({*followers, tgt.eos})))
    found = search(stepper, limits, options, device, prefixes)
    return [
        Alternative(text, math.exp(word.log_prob), part.decode(tgt, best.ids), best.score)
        for (text, word), (best, *_) in zip(chosen, found, strict=True)
    ]


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
        number: words wanted; fewer are found if there are fewer of at most `MAX_TOKENS` pieces.
    """
    found: list[Word] = []
    unfinished = [Word((), 0.0)]
    while unfinished:
        opened, unfinished = unfinished[:EXPANDED_TOGETHER], unfinished[EXPANDED_TOGETHER:]
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
            if len(word.ids) < MAX_TOKENS:
                pieces = (goes_on & (before + log_probs_V > worst)).nonzero()[:, 0]
                totals = (before + log_probs_V[pieces]).tolist()
                ids = [(*word.ids, piece) for piece in pieces.tolist()]
                unfinished += map(Word, ids, totals)
        worst = found[-1].log_prob if len(found) == number else -math.inf
        unfinished = sorted((w for w in unfinished if w.log_prob > worst), key=lambda w: -w.log_prob)
    return [word for word in found if word.log_prob > -math.inf]
