"""Holding out pairs: validation and test pairs are drawn from a corpus, and written to files like the rest of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mtkit.data.readers import Pair, as_cell
from mtkit.data.sources import Source
from mtkit.errors import DataError
from mtkit.files import atomic_file, storage_errors


def divide(sources: Sequence[Source], number: int, files: Mapping[str, Path]) -> dict[str, int]:
    """Divide a corpus into TSV files, and return the number of pairs in each.

    Pairs are held out by their source: those sources with the smallest hashes, which are a random sample that is the
    same each time, and which no other pair that is left to train on has. A source with several translations is held out
    with the first one. Pairs with a blank side are left out. Memory is about 25 bytes a pair.

    Args:
        sources: the corpus, which is read twice.
        number: pairs to hold out in each file but `train`.
        files: the file of each split, `train` among them; they are replaced.

    Raises:
        DataError: If the corpus cannot be read, or half of its sources or more would be held out.
        StorageError: If a file cannot be written.
    """
    hashes = np.unique(np.fromiter((_hash(pair.src) for pair in _read(sources)), np.uint64))
    held_out = [split for split in files if split != "train"]
    if len(hashes) <= 2 * number * len(held_out):
        what = f"{len(hashes):,} different source sentences, too few to hold out {len(held_out)} x {number:,}"
        raise DataError(what, where=sources[0].location(1), hint="hold out fewer")
    split_of = {
        value: split
        for index, split in enumerate(held_out)
        for value in hashes[index * number : (index + 1) * number].tolist()
    }
    counts, seen = dict.fromkeys(files, 0), set[int]()
    with ExitStack() as stack:
        written = {split: stack.enter_context(atomic_file(path)) for split, path in files.items()}
        for pair in _read(sources):
            value = _hash(pair.src)
            split = split_of.get(value, "train")
            if split != "train":
                if value in seen:
                    continue
                seen.add(value)
            with storage_errors(files[split]):
                written[split].write(f"{as_cell(pair.src)}\t{as_cell(pair.tgt)}\n".encode())
            counts[split] += 1
    return counts


def _read(sources: Sequence[Source]) -> Iterator[Pair]:
    """Yield the pairs of all sources, without those that have a blank side."""
    for source in sources:
        yield from (pair for _, pair in source.read() if pair.src.strip() and pair.tgt.strip())


def _hash(text: str) -> int:
    """Return a hash of a sentence, in 64 bits."""
    return int.from_bytes(hashlib.blake2b(as_cell(text).encode(), digest_size=8).digest())
