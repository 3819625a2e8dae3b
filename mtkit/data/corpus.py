"""The encoded training pairs: token ids in an Arrow file, cached by content, read as views of mapped memory.

In: a folder of the cache. Out: the ids, lengths and locations of pairs.

The cache has one folder per content with `pairs.arrow`, whose record batches have `ROWS` rows of (src ids, tgt ids,
index of the source, line in it), and `info.json`. A folder is renamed to its final name when it is complete;
mtkit/data/encoding.py writes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtkit.data.batching import Ids
from mtkit.data.filters import FilterCounts
from mtkit.data.order import Lengths
from mtkit.data.sources import Source
from mtkit.errors import StorageError
from mtkit.files import storage_errors

FORMAT = 1
"""Part of every cache key; a change of the file's layout or of the filters' meaning needs another number."""

ROWS = 1 << 16
"""Pairs per record batch (the last one may have fewer)."""


LINKS = "links"
"""Column of the linked tokens (see `token_links`), which a corpus has if one of its sources has alignments."""


def _schema(source_type: pa.DataType) -> pa.Schema:
    ids = pa.large_list(pa.int32())
    return pa.schema({"src": ids, "tgt": ids, "source": source_type, "line": pa.int64()})


SCHEMA = _schema(pa.int32())
ALIGNED_SCHEMA = SCHEMA.append(pa.field(LINKS, pa.large_list(pa.int32())))
_READABLE_SCHEMAS = (SCHEMA, ALIGNED_SCHEMA, _schema(pa.int16()))
"""The schemas that are written, and an earlier one: such files have the same key and remain valid."""


class Corpus:
    """Encoded training pairs in mapped memory, numbered from 0 in the order of the sources.

    Attributes:
        src_lengths, tgt_lengths: [pairs], the number of tokens, without bos and eos; int16 if all fit, else int32.
        counts: how many pairs were kept, and dropped by the filters.
        fingerprint: the key of the content: texts, tokenizers and filters.
    """

    def __init__(self, folder: Path, fingerprint: str, sources: Sequence[Source]) -> None:
        """Map a folder of the cache into memory.

        Raises:
            StorageError: If it is missing, damaged, or has other content than the fingerprint says.
        """
        self.fingerprint = fingerprint
        self.counts = _read_counts(folder, fingerprint)
        self.sources = sources
        batches = _map_batches(folder / "pairs.arrow", self.counts.kept)
        self._src, self._tgt = _IdColumn(batches, "src"), _IdColumn(batches, "tgt")
        is_aligned = LINKS in batches[0].schema.names
        self._links = _IdColumn(batches, LINKS) if is_aligned else None
        self._locations = [
            (as_numpy(batch.column("source")), as_numpy(batch.column("line"))) for batch in batches
        ]
        self.src_lengths, self.tgt_lengths = self._src.lengths(), self._tgt.lengths()

    def __len__(self) -> int:
        return self.counts.kept

    def src(self, index: int) -> Ids:
        """Return the source ids of a pair, as a read-only view."""
        return self._src.row(index)

    def tgt(self, index: int) -> Ids:
        """Return the target ids of a pair, as a read-only view."""
        return self._tgt.row(index)

    def links(self, index: int) -> Ids:
        """Return the linked tokens of a pair, source and target: [links, 2]; none without alignments."""
        return (np.empty(0, np.int32) if self._links is None else self._links.row(index)).reshape(-1, 2)

    def location(self, index: int) -> str:
        """Return where the text of a pair is, such as `train.en.gz:17`."""
        batch, row = divmod(index, ROWS)
        source, line = (column[row] for column in self._locations[batch])
        location: str = self.sources[source].location(int(line))
        return location

    def sources_of_pairs(self) -> npt.NDArray[np.signedinteger[Any]]:
        """Return the number of the source of each pair: [pairs]."""
        return np.concatenate([sources for sources, _ in self._locations])

    def first_difference(self, other: Corpus) -> int | None:
        """Return the index of the first pair with other ids, or that only one corpus has; None if there is none.

        Links count if both corpora have them.
        """
        shorter = min(len(self), len(other))
        sides = [(self._src, other._src), (self._tgt, other._tgt)]
        if self._links is not None and other._links is not None:
            sides.append((self._links, other._links))
        for start in range(0, shorter, ROWS):
            if all(mine.same_batch(theirs, start // ROWS) for mine, theirs in sides):
                continue
            for index in range(start, min(start + ROWS, shorter)):
                if not all(np.array_equal(mine.row(index), theirs.row(index)) for mine, theirs in sides):
                    return index
        return None if len(self) == len(other) else shorter


class _IdColumn:
    """The ids of one side, as numpy views of all record batches."""

    def __init__(self, batches: Sequence[pa.RecordBatch], name: str) -> None:
        columns = [batch.column(name) for batch in batches]
        self._values: list[Ids] = [as_numpy(column.values) for column in columns]
        self._offsets: list[npt.NDArray[np.int64]] = [as_numpy(column.offsets) for column in columns]

    def row(self, index: int) -> Ids:
        batch, row = divmod(index, ROWS)
        offsets = self._offsets[batch]
        return self._values[batch][offsets[row] : offsets[row + 1]]

    def same_batch(self, other: _IdColumn, batch: int) -> bool:
        """Return whether a record batch is the same in both."""
        columns = (self._offsets, other._offsets), (self._values, other._values)
        return all(np.array_equal(mine[batch], theirs[batch]) for mine, theirs in columns)

    def lengths(self) -> Lengths:
        longest = max(int(np.diff(offsets).max()) for offsets in self._offsets)
        lengths = np.empty(sum(len(offsets) - 1 for offsets in self._offsets), _length_type(longest))
        for batch, offsets in enumerate(self._offsets):
            lengths[batch * ROWS : (batch + 1) * ROWS] = np.diff(offsets)
        return lengths


def _length_type(longest: int) -> type[np.signedinteger[Any]]:
    """Return a type that holds every length plus one (bos or eos); signed, so that lengths can be subtracted."""
    return np.int16 if longest < np.iinfo(np.int16).max else np.int32


def as_numpy(array: pa.Array) -> npt.NDArray[Any]:
    """Return a view of an array without nulls; Arrow's `to_numpy` would import pandas, a third of a second."""
    dtype = np.dtype(str(array.type))
    return np.frombuffer(array.buffers()[1], dtype, count=len(array), offset=array.offset * dtype.itemsize)


def _read_counts(folder: Path, fingerprint: str) -> FilterCounts:
    """Return the counts of info.json, if it has this fingerprint and matches the Arrow file."""
    damaged = StorageError("damaged corpus in the cache", where=str(folder), hint="delete the folder")
    with storage_errors(folder):
        text = (folder / "info.json").read_bytes()
        num_bytes = (folder / "pairs.arrow").stat().st_size
    try:
        info = json.loads(text)
        matches = info["fingerprint"] == fingerprint and info["num_bytes"] == num_bytes
        counts = FilterCounts(**info["counts"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged from error
    if not matches:
        raise damaged
    return counts


def _map_batches(path: Path, num_pairs: int) -> list[pa.RecordBatch]:
    """Return the record batches of a file in mapped memory.

    Raises:
        StorageError: If it is damaged.
    """
    damaged = StorageError("damaged corpus in the cache", where=str(path), hint="delete the folder")
    try:
        with storage_errors(path):
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except pa.ArrowException as error:
        raise damaged from error
    full = all(len(batch) == ROWS for batch in batches[:-1])
    if (
        not batches
        or not full
        or sum(map(len, batches)) != num_pairs
        or reader.schema not in _READABLE_SCHEMAS
    ):
        raise damaged
    return batches
