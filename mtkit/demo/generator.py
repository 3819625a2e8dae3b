"""The embedded default corpus: English and German sentence pairs from a written grammar.

The three splits share no sentence, in either language, by construction: a hash of the content words of a sentence
determines its split, so the same words in another tense or order are in the same split too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from random import Random
from typing import Literal

from mtkit.demo.sentences import Author
from mtkit.errors import ConfigError

Split = Literal["train", "valid", "test"]
Pair = tuple[str, str]

_DIRECTIONS = ("en-de", "de-en")
_CAPACITY: dict[str, int] = {"train": 4_000_000, "valid": 1_000_000, "test": 1_000_000}
"""Maximum number of pairs: a conservative fraction of what the grammar can generate."""
_SHARES: tuple[Split, ...] = (*("train",) * 4, *("valid",) * 2, *("test",) * 2)
"""Splits by the hash of the content words, modulo 8."""


def _split_of(content: Sequence[str]) -> Split:
    """Return the split to which all sentences with these content words belong."""
    digest = blake2b("\n".join(sorted(content)).encode(), digest_size=1).digest()
    return _SHARES[digest[0] % len(_SHARES)]


def generate(direction: str, num_pairs: int, seed: int, split: Split) -> Iterator[Pair]:
    """Yield distinct sentence pairs, source first.

    The same arguments give the same pairs, and more pairs begin with the same ones; "de-en" is "en-de" with the sides
    swapped. No sentence of one split occurs in another, on either side, whatever the seeds.

    Raises:
        ConfigError: If the direction or split is unknown, or there are not enough pairs.
    """
    if direction not in _DIRECTIONS:
        raise ConfigError(f"unknown demo direction {direction!r}", hint=f"use {' or '.join(_DIRECTIONS)}")
    if split not in _CAPACITY:
        raise ConfigError(f"unknown split {split!r} of the demo", hint=f"use {', '.join(_CAPACITY)}")
    if not 0 <= num_pairs <= _CAPACITY[split]:
        raise ConfigError(
            f"the demo cannot generate {num_pairs} pairs", hint=f"at most {_CAPACITY[split]} for {split}"
        )
    pairs = _distinct_pairs(num_pairs, seed, split)
    return pairs if direction == "en-de" else ((de, en) for en, de in pairs)


def _distinct_pairs(num_pairs: int, seed: int, split: Split) -> Iterator[Pair]:
    """Yield distinct pairs of a split, English first."""
    rng, seen = Random(seed), set[str]()
    while len(seen) < num_pairs:
        author = Author(rng)
        sentence = author.sentence()
        if _split_of(author.content) == split:
            en, de = sentence()
            if en not in seen:
                seen.add(en)
                yield en, de
