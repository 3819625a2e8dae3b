"""Augmentation: some pairs of each pass with capitals, without final punctuation, with typos or with random words.

In: token ids of pairs. Out: those of the changed text. What happens to a pair is a function of (seed, pass, pair).

The changes are those with which models in production are made robust (OpusTrainer: Bogoychev et al. 2023). Source and
target change alike, but for typos, which only the source has. In this order: the punctuation that ends both sides is
left out; capitals or title case; typos; random words are put in at the same place of both sides, or in place of both.

A pair stays as it is if a side has an unknown token or a symbol of the user, other than a tag at its start, or if the
changed text has an unknown token.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtkit.config.sections import AugmentConfig
from mtkit.data.batching import Ids
from mtkit.data.counter_random import make_key, numbers_of_pairs
from mtkit.data.order import Indices
from mtkit.data.perturbation import (
    add_typos,
    ends_in_punctuation,
    has_case,
    random_words,
    title,
    upper,
    without_final_punctuation,
)
from mtkit.data.readers import Pair
from mtkit.data.segmentation import read_pieces
from mtkit.data.tokenizer import Tokenizer, Tokenizers, VocabularyTokenizer

_TWO_32 = 2.0**32
_MAX_INSERTED_WORDS = 3


class _Draws(NamedTuple):
    """Random numbers between 0 and 1, each of which chooses a change by being below its rate."""

    case: Any
    punctuation: Any
    typos: Any
    noise: Any
    tags: Any


class Augmentation:
    """Changes some of the pairs of a pass.

    Args:
        config: rates of the changes.
        tokenizers: tokenizers of both sides.
        tags: tokens that stand before the source lines of a corpus, and do not belong to its text.
        seed: random seed.
    """

    def __init__(self, config: AugmentConfig, tokenizers: Tokenizers, tags: Sequence[str], seed: int) -> None:
        self.config, self._tokenizers, self._key = config, tokenizers, make_key(seed, "augmentation")
        self._tags = tag_prefixes(tokenizers.src, tags)
        self._fixed = [_fixed_ids(tokenizer) for tokenizer in (tokenizers.src, tokenizers.tgt)]

    def changes(
        self, srcs: Sequence[Ids], tgts: Sequence[Ids], pairs: Indices, passes: Indices
    ) -> dict[int, tuple[Ids, Ids]]:
        """Return the rows that change, and the ids of both sides then.

        Args:
            srcs, tgts: token ids, R arrays.
            pairs: [R], index of each pair in the corpus.
            passes: [R], how often it was seen before.
        """
        rates = self.config
        words = [
            *numbers_of_pairs(self._key, pairs, passes),
            *numbers_of_pairs(self._key, pairs, passes, 0, 1),
        ]
        seeds = words[5] << np.uint64(32) | words[6]
        draws = _Draws(*(word / _TWO_32 for word in words[:5]))
        changed = (draws.case < rates.upper + rates.title) | (draws.punctuation < rates.no_final_punctuation)
        changed |= (draws.typos < rates.typos) | (draws.noise < rates.noise) | (draws.tags < rates.tags)
        result = {}
        for row in np.flatnonzero(changed).tolist():
            rng = random.Random(int(seeds[row]))
            done = self._changed(srcs[row], tgts[row], rng, _Draws(*(numbers[row] for numbers in draws)))
            if done is not None:
                result[row] = done
        return result

    def _changed(self, src: Ids, tgt: Ids, rng: random.Random, draw: _Draws) -> tuple[Ids, Ids] | None:
        """Return a changed pair, or None if it stays as it is.

        Args:
            src, tgt: token ids.
            rng: generator for the places of changes and random words.
            draw: random numbers that choose the changes.
        """
        rates, tokenizers = self.config, self._tokenizers
        tag = src[: prefix_length(src, self._tags)]
        bodies = src[len(tag) :], tgt
        if any(
            not len(ids) or np.isin(ids, fixed).any() for ids, fixed in zip(bodies, self._fixed, strict=True)
        ):
            return None
        (old_src,), (old_tgt,) = tokenizers.src.decode([bodies[0]]), tokenizers.tgt.decode([bodies[1]])
        new_src, new_tgt = old_src, old_tgt
        if (
            draw.punctuation < rates.no_final_punctuation
            and ends_in_punctuation(new_src)
            and ends_in_punctuation(new_tgt)
        ):
            new_src, new_tgt = without_final_punctuation(new_src), without_final_punctuation(new_tgt)
        if draw.case < rates.upper + rates.title and has_case(new_src):
            change = upper if draw.case < rates.upper else title
            new_src, new_tgt = change(new_src), change(new_tgt)
        if draw.typos < rates.typos:
            new_src = add_typos(new_src, rng)
        if draw.tags < rates.tags:
            new_src, new_tgt = insert_words(new_src, new_tgt, random_words(rng, _MAX_INSERTED_WORDS), rng)
        if draw.noise < rates.noise:
            new_src = new_tgt = " ".join(random_words(rng))
        if (new_src, new_tgt) == (old_src, old_tgt):
            return None
        (src,), (tgt,) = tokenizers.src.encode([new_src]), tokenizers.tgt.encode([new_tgt])
        if not len(src) or not len(tgt) or tokenizers.src.unk in src or tokenizers.tgt.unk in tgt:
            return None
        return np.concatenate([tag, src]), tgt


def change_case(
    pairs: Iterable[Pair], rates: AugmentConfig, seed: int, symbols: Sequence[str] = ()
) -> Iterator[Pair]:
    """Change the case of pairs at the rates of augmentation, for the training of a tokenizer.

    Otherwise words in capitals would be spelled letter by letter: two or three times as many tokens.

    Args:
        pairs: the pairs.
        rates: `upper` and `title`.
        seed: random seed.
        symbols: symbols of the user; a pair that has one, other than a tag at its start, stays as it is.
    """
    rng = random.Random(seed)
    for pair in pairs:
        draw = rng.random()
        tag = next((f"{symbol} " for symbol in symbols if pair.src.startswith(f"{symbol} ")), "")
        src, tgt = pair.src.removeprefix(tag), pair.tgt
        is_drawn = draw < rates.upper + rates.title and has_case(src)
        if is_drawn and not any(map(f"{src}{tgt}".count, symbols)):
            change = upper if draw < rates.upper else title
            pair = Pair(f"{tag}{change(src)}", change(tgt))
        yield pair


def insert_words(src: str, tgt: str, words: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """Return both sides with words where they correspond without a word alignment: at the start, or before the end.

    Args:
        src, tgt: text of both sides.
        words: words to put in.
        rng: generator of which only `random()` is called.
    """
    inserted = " ".join(words)
    if rng.random() < 0.5:
        return f"{inserted} {src}", f"{inserted} {tgt}"
    if not (ends_in_punctuation(src) and ends_in_punctuation(tgt)):
        return f"{src} {inserted}", f"{tgt} {inserted}"
    stems = without_final_punctuation(src), without_final_punctuation(tgt)
    src, tgt = (
        f"{stem} {inserted}{side[len(stem) :].lstrip()}" for stem, side in zip(stems, (src, tgt), strict=True)
    )
    return src, tgt


def tag_prefixes(tokenizer: Tokenizer, tags: Sequence[str]) -> list[Ids]:
    """Return the ids with which a line begins that has one of these tags at its start."""
    return tokenizer.encode(sorted(set(tags)))


def prefix_length(ids: Ids, prefixes: Sequence[Ids]) -> int:
    """Return how many ids at the start of a line are one of these prefixes."""
    return max((len(prefix) for prefix in prefixes if np.array_equal(ids[: len(prefix)], prefix)), default=0)


def _fixed_ids(tokenizer: Tokenizer) -> Ids:
    """Return the ids of symbols of the user, of tags and of unknown tokens, which must not change."""
    if not isinstance(tokenizer, VocabularyTokenizer):
        _, pieces = read_pieces(tokenizer.model)
        symbols = [index for index, piece in enumerate(pieces) if piece.is_symbol]
    else:
        symbols = [tokenizer.vocabulary.ids[tag] for tag in tokenizer.tags]
        if tokenizer.segmentation.kind == "sentencepiece":
            _, pieces = read_pieces(tokenizer.model)
            found = (tokenizer.vocabulary.ids.get(piece.text) for piece in pieces if piece.is_symbol)
            symbols += [index for index in found if index is not None]
    return np.array([tokenizer.unk, *symbols], np.int32)
