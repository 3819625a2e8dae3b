"""Training pairs as parallel text files: copies of corpora of any kind, and their union with machine translations.

A corpus is a pair of files, `NAME.src` and `NAME.tgt`, so that its sides can be exchanged whatever it was read from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mtkit.data.filters import DigestSet
from mtkit.data.readers import Pair
from mtkit.files import commit_folder, read_lines, storage_errors, temporary_folder

_CHUNK = 10_000
"""Pairs whose digests are looked up together."""


def sides(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the two files of a corpus."""
    return folder / f"{name}.src", folder / f"{name}.tgt"


def read_corpus(folder: Path, name: str) -> Iterator[Pair]:
    """Yield the pairs of a corpus.

    Raises:
        DataError: If a file is missing or damaged.
    """
    return map(Pair, *map(read_lines, sides(folder, name)))


def write_corpora(folder: Path, corpora: Iterable[tuple[str, Iterator[Pair]]]) -> dict[str, int]:
    """Write corpora to a folder, which appears when it is whole; return how many pairs each has.

    Raises:
        DataError: If pairs cannot be read.
        StorageError: If the folder cannot be written.
    """
    counts = {}
    with temporary_folder(folder) as temporary:
        for name, pairs in corpora:
            with storage_errors(folder), ExitStack() as stack:
                files = [stack.enter_context(open(path, "wb")) for path in sides(temporary, name)]
                counts[name] = _write(pairs, files)
        commit_folder(temporary, folder)
    return counts


def _write(pairs: Iterator[Pair], files: Sequence[BinaryIO]) -> int:
    """Write pairs to two files and return their number."""
    number = 0
    for pair in pairs:
        for text, file in zip(pair, files, strict=True):
            file.write(f"{text.rstrip(chr(13))}\n".encode())  # "\r\n" would be read as a line end
        number += 1
    return number


class NewPairs:
    """Tells which pairs were not seen before, white space at the ends apart. It keeps 8 bytes of each pair."""

    def __init__(self) -> None:
        self._seen = DigestSet()

    def of(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield the pairs that are new, each once."""
        stream = iter(pairs)
        while chunk := list(islice(stream, _CHUNK)):
            texts = (f"{src.strip()}\n{tgt.strip()}" for src, tgt in chunk)
            digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
            is_new = self._seen.add(np.frombuffer(digests, np.uint64))
            yield from (pair for pair, new in zip(chunk, is_new.tolist(), strict=True) if new)
