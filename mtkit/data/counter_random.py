"""Random numbers that are a function of a key and a counter, for whole arrays of counters at once.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3): no state, so that a
number depends on what it is for, and not on what was drawn before.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
"""Numbers of 32 bits, in 64 so that they can be multiplied."""
Key = tuple[int, int]

_ROUNDS = 10
_FACTORS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_PASS_BITS = 24


def make_key(seed: int, purpose: str) -> Key:
    """Return a key of 64 bits, so that numbers for different purposes have nothing to do with each other."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def philox(counters: tuple[Words, Words, Words, Words], key: Key) -> tuple[Words, Words, Words, Words]:
    """Return four random numbers of 32 bits for each counter.

    Args:
        counters: the four words of each counter, arrays that can be broadcast; each below 2 ** 32.
        key: the two words of the key.
    """
    zero, one, two, three = counters
    for number in range(_ROUNDS):
        keys = [np.uint64(word + number * step & 0xFFFFFFFF) for word, step in zip(key, _WEYL, strict=True)]
        left, right = zero * _FACTORS[0], two * _FACTORS[1]
        zero, one = (right >> _HALF) ^ one ^ keys[0], right & _LOW
        two, three = (left >> _HALF) ^ three ^ keys[1], left & _LOW
    return zero, one, two, three


def numbers_of_pairs(
    key: Key,
    pairs: npt.NDArray[np.integer[Any]],
    passes: npt.NDArray[np.integer[Any]],
    place: npt.NDArray[np.integer[Any]] | int = 0,
    block: int = 0,
) -> tuple[Words, Words, Words, Words]:
    """Return four random numbers of 32 bits for each pair of a corpus in a pass.

    Args:
        key: the seed and the purpose.
        pairs: index of each pair, below 2 ** 40.
        passes: how often each pair was seen before.
        place: which of the things in the pair the numbers are for, below 2 ** 32.
        block: distinguishes further numbers for the same thing.
    """
    index, number = pairs.astype(np.uint64), passes.astype(np.uint64)
    last = (index >> _HALF) << np.uint64(_PASS_BITS) | number & np.uint64((1 << _PASS_BITS) - 1)
    where = np.broadcast_to(np.asarray(place, np.uint64), index.shape)
    return philox((where, np.full(index.shape, block, np.uint64), index & _LOW, last), key)
