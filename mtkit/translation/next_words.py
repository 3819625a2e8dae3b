"""The most probable next words after the beginning of a translation, and the best translation that each begins.

A word is a sequence of tokens followed by eos, or by a token that begins a word or is a punctuation mark. Its
probability is the product of the probabilities of its tokens and of the sum over all tokens that may follow it,
relative to the probability that the last word of the beginning is complete.

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
"""Tokens that a word may have; longer words are not found."""
EXPANDED_TOGETHER = 16
"""Unfinished words that are expanded in one forward pass."""


@dataclass(frozen=True)
class Word:
    """A possible next word.

    Attributes:
        ids: its tokens; none for the end of the translation.
        log_prob: natural logarithm of the probability that exactly this word comes next.
    """

    ids: Ids
    log_prob: float


@dataclass(frozen=True)
class Alternative:
    """A possible next word, and the best translation that begins with the prefix and this word.

    Attributes:
        word: the word; empty for the end of the translation.
        probability: probability of the word.
        text: the whole translation.
        score: score of the translation, as `translate` ranks it.
    """

    word: str
    probability: float
    text: str
    score: float


@torch.inference_mode()
def best_next_words(
    ensemble: Ensemble,
    segment: Segment,
    options: SearchOptions,
    after_word: frozenset[int],
    inside_word: frozenset[int],
    number: int,
) -> list[Alternative]:
    """Return the most probable words after the prefix, best first, each with the best translation that it begins.

    Args:
        ensemble: the models.
        segment: the sentence; its prefix consists of whole words.
        options: options of the search.
        after_word, inside_word: see `next_words`.
        number: how many words are returned; there may be fewer.
    """
    tgt, device = ensemble.tokenizers.tgt, ensemble.device
    after_word = after_word - set(options.suppressed)

    def log_probs_after(words: Sequence[Ids]) -> Tensor:
        beginnings = [np.array([*segment.prefix, *word], dtype=np.int32) for word in words]
        hidden = ensemble.hidden(
            ensemble.sources([segment.ids] * len(words)), ensemble.targets_in(beginnings)
        )
        last_N = torch.tensor([len(ids) for ids in beginnings], device=device)
        return ensemble.log_probs([h[torch.arange(len(words), device=device), last_N] for h in hidden])

    wanted = 2 * number  # a word may be written with different tokens
    forbidden, at_boundary = frozenset(options.suppressed), bool(segment.prefix)
    words = next_words(log_probs_after, after_word, tgt.eos, forbidden, wanted, at_boundary, inside_word)
    texts = tgt.decode([word.ids for word in words])
    first = {
        text: word for text, word in reversed(list(zip(texts, words, strict=True))) if text or not word.ids
    }
    chosen = sorted(first.items(), key=lambda item: -item[1].log_prob)[:number]
    prefixes = [(*segment.prefix, *word.ids) for _, word in chosen]
    limits = [
        max(segment.max_length, len(beginning) + 1) if word.ids else len(beginning) + 1
        for beginning, (_, word) in zip(prefixes, chosen, strict=True)
    ]
    src_NS = ensemble.sources([segment.ids] * len(chosen))
    options = replace(options, n_best=1, after_prefix=tuple(sorted({*after_word, tgt.eos})))
    with ensemble.exclusive():
        stepper = ensemble.stepper(src_NS, options.beam_size, keep_attention=options.coverage_penalty > 0)
        found = search(stepper, limits, options, device, prefixes)
    return [
        Alternative(text, math.exp(word.log_prob), segment.decode(tgt, best.ids), best.score)
        for (text, word), (best, *_) in zip(chosen, found, strict=True)
    ]


@torch.inference_mode()
def next_words(
    log_probs_after: Callable[[Sequence[Ids]], Tensor],
    after_word: frozenset[int],
    eos: int,
    forbidden: frozenset[int],
    number: int,
    at_boundary: bool,
    inside_word: frozenset[int] = frozenset(),
) -> list[Word]:
    """Return the most probable next words, best first, by best-first search, which is exact.

    The beginning of a word is at least as probable as the word, so a word that is more probable than all unfinished
    ones is more probable than all words that have not been found yet.

    Args:
        log_probs_after: returns the log-probabilities [N, V] of the token after each of N beginnings of a word.
        after_word: tokens that may follow a complete word, besides eos.
        eos: the token at the end of a translation.
        forbidden: tokens that never appear.
        number: how many words are returned; there may be fewer of at most `MAX_TOKENS` tokens.
        at_boundary: whether a word precedes; then the next word begins with one of `after_word`, or is eos.
        inside_word: tokens that no word ends with; any token but eos may follow them.
    """
    found: list[Word] = []
    unfinished = [Word((), 0.0)]
    while unfinished:
        opened, unfinished = unfinished[:EXPANDED_TOGETHER], unfinished[EXPANDED_TOGETHER:]
        log_probs_NV = log_probs_after([word.ids for word in opened])
        log_probs_NV = log_probs_NV.cpu().double()  # a GPU is waited for once
        boundary = torch.zeros(log_probs_NV.shape[1], dtype=torch.bool, device=log_probs_NV.device)
        boundary[[*after_word, eos]] = True
        allowed = torch.ones_like(boundary)
        allowed[list(forbidden)] = False
        for word, log_probs_V in zip(opened, log_probs_NV, strict=True):
            ends = float(log_probs_V[boundary].logsumexp(0))
            if word.ids:
                is_inside = word.ids[-1] in inside_word
                if not is_inside:
                    found.append(Word(word.ids, word.log_prob + ends))
                extends = allowed.clone() if is_inside else allowed & ~boundary
                extends[eos] = False
                before = word.log_prob
            else:
                extends = allowed & boundary if at_boundary else allowed.clone()
                before = -ends if at_boundary else 0.0
                extends[eos] = False
                if allowed[eos]:
                    found.append(Word((), before + float(log_probs_V[eos])))
            found = sorted(found, key=lambda w: -w.log_prob)[:number]
            worst = found[-1].log_prob if len(found) == number else -math.inf
            if len(word.ids) < MAX_TOKENS:
                tokens = (extends & (before + log_probs_V > worst)).nonzero()[:, 0]
                totals = (before + log_probs_V[tokens]).tolist()
                ids = [(*word.ids, token) for token in tokens.tolist()]
                unfinished += map(Word, ids, totals)
        worst = found[-1].log_prob if len(found) == number else -math.inf
        unfinished = sorted((w for w in unfinished if w.log_prob > worst), key=lambda w: -w.log_prob)
    return [word for word in found if word.log_prob > -math.inf]
