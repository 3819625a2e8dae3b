"""The training pairs as ids: encoded once into an Arrow file, cached by content, read as views of its memory.

The cache holds one folder for each content: `pairs.arrow`, whose record batches have `ROWS` rows of
(src ids, tgt ids, number of the source, line in it), and `info.json`. A folder gets its name when it is
complete, so several processes may encode the same corpus at once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtkit.config import DataConfig
from mtkit.data.cache import open_cache, remove_abandoned
from mtkit.data.filters import FilterCounts, PairFilter
from mtkit.data.order import Lengths
from mtkit.data.sources import Source
from mtkit.data.tokenizer import Ids, Tokenizers
from mtkit.errors import DataError, StorageError
from mtkit.files import commit_folder, publish_folder, storage_errors, write_text

FORMAT = 1
"""Part of every key: a change of the file's layout or of the filters' meaning needs another number."""

ROWS = 1 << 16
"""Pairs in a record batch (the last one may have fewer)."""

_PAIRS_AT_ONCE = 1 << 14

EncodedRow = tuple[Ids, Ids, int, int]
"""Source ids, target ids, number of the source, line."""


def _schema(numbers: pa.DataType) -> pa.Schema:
    ids = pa.large_list(pa.int32())
    return pa.schema({"src": ids, "tgt": ids, "source": numbers, "line": pa.int64()})


_SCHEMA = _schema(pa.int32())
_READABLE = (_SCHEMA, _schema(pa.int16()))
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
        self._sources = sources
        batches = _map_batches(folder / "pairs.arrow", self.counts.kept)
        self._src, self._tgt = _Side(batches, "src"), _Side(batches, "tgt")
        self._places = [
            (_numbers(batch.column("source")), _numbers(batch.column("line"))) for batch in batches
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

    def place(self, index: int) -> str:
        """Where the text of a pair stands: `train.en.gz:17`."""
        batch, row = divmod(index, ROWS)
        source, line = (column[row] for column in self._places[batch])
        place: str = self._sources[source].place(int(line))
        return place


class _Side:
    """The lists of one column, over all record batches, as numpy views."""

    def __init__(self, batches: Sequence[pa.RecordBatch], name: str) -> None:
        columns = [batch.column(name) for batch in batches]
        self._values: list[Ids] = [_numbers(column.values) for column in columns]
        self._offsets: list[npt.NDArray[np.int64]] = [_numbers(column.offsets) for column in columns]

    def row(self, index: int) -> Ids:
        batch, row = divmod(index, ROWS)
        offsets = self._offsets[batch]
        return self._values[batch][offsets[row] : offsets[row + 1]]

    def lengths(self) -> Lengths:
        longest = max(int(np.diff(offsets).max()) for offsets in self._offsets)
        lengths = np.empty(sum(len(offsets) - 1 for offsets in self._offsets), _length_type(longest))
        for batch, offsets in enumerate(self._offsets):
            lengths[batch * ROWS : (batch + 1) * ROWS] = np.diff(offsets)
        return lengths


def _length_type(longest: int) -> type[np.signedinteger[Any]]:
    """Wide enough for every length, also framed; signed, so that lengths can be subtracted."""
    return np.int16 if longest < np.iinfo(np.int16).max else np.int32


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
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


def encode_corpus(
    sources: Sequence[Source],
    tokenizers: Tokenizers,
    data: DataConfig,
    on_progress: Callable[[int], None] | None = None,
) -> Corpus:
    """The encoded pairs of all sources: from the cache if it has them, else encoded now and added to it.

    Args:
        sources: where the pairs come from, in the order of the corpus.
        tokenizers: of both sides.
        data: the filters, and the folder of the cache.
        on_progress: told from time to time, while encoding, how many pairs were read.

    Raises:
        DataError: a source cannot be read, or no pair is left.
        StorageError: the cache cannot be written.
    """
    cache, hash_file = open_cache(data, "corpora")
    fingerprint = _fingerprint(sources, tokenizers, data, hash_file)
    folder = cache / fingerprint[:32]
    cached = _open_cached(folder, fingerprint, sources)
    if cached is not None:
        return cached
    remove_abandoned(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        keep = PairFilter(data)
        _write_folder(temporary, fingerprint, keep, _encode(sources, tokenizers, keep, on_progress))
        return _commit(temporary, folder, fingerprint, sources)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_cached(folder: Path, fingerprint: str, sources: Sequence[Source]) -> Corpus | None:
    with suppress(StorageError):
        return Corpus(folder, fingerprint, sources)
    return None


def _commit(temporary: Path, folder: Path, fingerprint: str, sources: Sequence[Source]) -> Corpus:
    """Give the folder its name, unless another process has encoded the same meanwhile."""
    if not publish_folder(temporary, folder):
        if (first := _open_cached(folder, fingerprint, sources)) is not None:
            return first
        commit_folder(temporary, folder)  # what is there is damaged
    return Corpus(folder, fingerprint, sources)


def _encode(
    sources: Sequence[Source],
    tokenizers: Tokenizers,
    keep: PairFilter,
    on_progress: Callable[[int], None] | None,
) -> Iterator[EncodedRow]:
    """The rows that the filters keep."""
    texts = (
        (pair, number, line)
        for number, source in enumerate(sources)
        for line, read in source.read()
        if (pair := keep.accept_text(read)) is not None
    )
    while chunk := list(islice(texts, _PAIRS_AT_ONCE)):
        pairs, numbers, lines = zip(*chunk, strict=True)
        src = tokenizers.src.encode([pair.src for pair in pairs])
        tgt = tokenizers.tgt.encode([pair.tgt for pair in pairs])
        kept = keep.accept_lengths(_lengths(src), _lengths(tgt))
        if on_progress is not None:
            on_progress(keep.counts.num_read)
        yield from compress(zip(src, tgt, numbers, lines, strict=True), kept)


def _write_folder(folder: Path, fingerprint: str, keep: PairFilter, rows: Iterator[EncodedRow]) -> None:
    """Write the rows and, last, what they are. Raises: DataError: there are none."""
    with storage_errors(folder.parent):
        folder.mkdir()
        with open(folder / "pairs.arrow", "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            while batch := list(islice(rows, ROWS)):
                src, tgt, numbers, lines = zip(*batch, strict=True)
                writer.write_batch(
                    pa.record_batch([_lists(src), _lists(tgt), numbers, lines], schema=_SCHEMA)
                )
        num_bytes = (folder / "pairs.arrow").stat().st_size
    if keep.counts.kept == 0:
        what = f"no pair is left to train on: {keep.counts.summary()}"
        raise DataError(what, where="data.train", hint="check the sources and data.max_length")
    info = {"fingerprint": fingerprint, "num_bytes": num_bytes, "counts": asdict(keep.counts)}
    write_text(folder / "info.json", json.dumps(info, indent=2) + "\n")


def _lengths(rows: Sequence[Ids]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(len, rows), np.int64, count=len(rows))


def _lists(rows: Sequence[Ids]) -> pa.LargeListArray:
    offsets = np.concatenate([[0], np.cumsum(_lengths(rows))])
    return pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()), pa.array(np.concatenate(rows), pa.int32())
    )


def _fingerprint(
    sources: Sequence[Source], tokenizers: Tokenizers, data: DataConfig, hash_file: Callable[[Path], str]
) -> str:
    """The key of a corpus: everything that decides its ids."""
    filters = [data.max_length, data.max_length_ratio, data.drop_duplicates]
    texts = [source.fingerprint(hash_file) for source in sources]
    return hashlib.sha256(json.dumps([FORMAT, texts, tokenizers.fingerprint, filters]).encode()).hexdigest()
