"""The training pairs as ids: an Arrow file, cached by content, read as views of its memory.

The cache holds one folder for each content: `pairs.arrow`, whose record batches have `ROWS` rows of
(src ids, tgt ids, number of the source, line in it), and `info.json`. A folder gets its name when it is
complete; mtkit/data/encoding.py makes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtkit.data.filters import FilterCounts
from mtkit.data.order import Lengths
from mtkit.data.sources import Source
from mtkit.data.tokenizer import Ids
from mtkit.errors import StorageError
from mtkit.files import storage_errors

FORMAT = 1
"""Part of every key: a change of the file's layout or of the filters' meaning needs another number."""

ROWS = 1 << 16
"""Pairs in a record batch (the last one may have fewer)."""


def _schema(numbers: pa.DataType) -> pa.Schema:
    ids = pa.large_list(pa.int32())
    return pa.schema({"src": ids, "tgt": ids, "source": numbers, "line": pa.int64()})


SCHEMA = _schema(pa.int32())
_READABLE = (SCHEMA, _schema(pa.int16()))
"""What is written, and what was: a folder of before is as good, its key the same."""


class Corpus:
    """Encoded training pairs in mapped memory. Pairs are numbered from 0, in the order of the sources.

    Attributes:
        src_lengths, tgt_lengths: [pairs], the number of tokens, without bos and eos; int16 if all fit, else int32.
        counts: what was kept and what the filters left out.
        fingerprint: the key of the content: texts, tokenizers and filters.
    """

    def __init__(self, folder: Path, fingerprint: str, sources: Sequence[Source]) -> None:
        """Map a folder of the cache. Raises: StorageError: it is missing, damaged or of other content."""
        self.fingerprint = fingerprint
        self.counts = _read_counts(folder, fingerprint)
        self.sources = sources
        batches = _map_batches(folder / "pairs.arrow", self.counts.kept)
        self._src, self._tgt = _Side(batches, "src"), _Side(batches, "tgt")
        self._places = [
            (as_numpy(batch.column("source")), as_numpy(batch.column("line"))) for batch in batches
        ]
        self.src_lengths, self.tgt_lengths = self._src.lengths(), self._tgt.lengths()

    def __len__(self) -> int:
        return self.counts.kept

    def src(self, index: int) -> Ids:
        """Source ids of a pair: a view that cannot be written to."""
        return self._src.row(index)

    def tgt(self, index: int) -> Ids:
        """Target ids of a pair: a view that cannot be written to."""
        return self._tgt.row(index)

    def location(self, index: int) -> str:
        """Where the text of a pair stands: `train.en.gz:17`."""
        batch, row = divmod(index, ROWS)
        source, line = (column[row] for column in self._places[batch])
        location: str = self.sources[source].location(int(line))
        return location

    def first_difference(self, other: Corpus) -> int | None:
        """Number of the first pair that is another, or that one of both lacks; None if the ids are the same."""
        both = min(len(self), len(other))
        sides = (self._src, other._src), (self._tgt, other._tgt)
        for start in range(0, both, ROWS):
            if all(mine.same_batch(theirs, start // ROWS) for mine, theirs in sides):
                continue
            for index in range(start, min(start + ROWS, both)):
                if not all(np.array_equal(mine.row(index), theirs.row(index)) for mine, theirs in sides):
                    return index
        return None if len(self) == len(other) else both


class _Side:
    """The lists of one column, over all record batches, as numpy views."""

    def __init__(self, batches: Sequence[pa.RecordBatch], name: str) -> None:
        columns = [batch.column(name) for batch in batches]
        self._values: list[Ids] = [as_numpy(column.values) for column in columns]
        self._offsets: list[npt.NDArray[np.int64]] = [as_numpy(column.offsets) for column in columns]

    def row(self, index: int) -> Ids:
        batch, row = divmod(index, ROWS)
        offsets = self._offsets[batch]
        return self._values[batch][offsets[row] : offsets[row + 1]]

    def same_batch(self, other: _Side, batch: int) -> bool:
        """Whether a record batch is the same in both."""
        columns = (self._offsets, other._offsets), (self._values, other._values)
        return all(np.array_equal(mine[batch], theirs[batch]) for mine, theirs in columns)

    def lengths(self) -> Lengths:
        longest = max(int(np.diff(offsets).max()) for offsets in self._offsets)
        lengths = np.empty(sum(len(offsets) - 1 for offsets in self._offsets), _length_type(longest))
        for batch, offsets in enumerate(self._offsets):
            lengths[batch * ROWS : (batch + 1) * ROWS] = np.diff(offsets)
        return lengths


def _length_type(longest: int) -> type[np.signedinteger[Any]]:
    """Wide enough for every length, also framed; signed, so that lengths can be subtracted."""
    return np.int16 if longest < np.iinfo(np.int16).max else np.int32


def as_numpy(array: pa.Array) -> npt.NDArray[Any]:
    """A view of an array without nulls. Arrow's own `to_numpy` would import pandas, a third of a second."""
    dtype = np.dtype(str(array.type))
    return np.frombuffer(array.buffers()[1], dtype, count=len(array), offset=array.offset * dtype.itemsize)


def _read_counts(folder: Path, fingerprint: str) -> FilterCounts:
    """The counts in info.json, if it is of this content and fits the file beside it."""
    damaged = StorageError("a damaged corpus in the cache", where=str(folder), hint="delete the folder")
    with storage_errors(folder):
        text = (folder / "info.json").read_bytes()
        num_bytes = (folder / "pairs.arrow").stat().st_size
    try:
        info = json.loads(text)
        fits = info["fingerprint"] == fingerprint and info["num_bytes"] == num_bytes
        counts = FilterCounts(**info["counts"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged from error
    if not fits:
        raise damaged
    return counts


def _map_batches(path: Path, num_pairs: int) -> list[pa.RecordBatch]:
    """The record batches of a file, in mapped memory. Raises: StorageError: it is damaged."""
    damaged = StorageError("a damaged corpus in the cache", where=str(path), hint="delete the folder")
    try:
        with storage_errors(path):
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except pa.ArrowException as error:
        raise damaged from error
    full = all(len(batch) == ROWS for batch in batches[:-1])
    if not batches or not full or sum(map(len, batches)) != num_pairs or reader.schema not in _READABLE:
        raise damaged
    return batches
