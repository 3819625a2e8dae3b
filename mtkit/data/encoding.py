"""Encoding the training pairs: read, filtered, cut into tokens and written, once for each content.

While a corpus is written it lies in `.KEY.partial.tmp`, beside its place in the cache, under a lock. Whoever finds the
lock taken encodes into a folder of its own; the first that is done gives its folder the name, and the others take
that. A process that is killed leaves its folder behind, and the next one goes on from there: `progress.jsonl` tells for
each record batch of `pairs.arrow` up to which pair the sources were read, what the filters had left out by then, and a
checksum. The file comes out the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice, product, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtkit.config.sections import DataConfig
from mtkit.data.cache import open_cache, remove_abandoned
from mtkit.data.corpus import FORMAT, ROWS, SCHEMA, Corpus, as_numpy
from mtkit.data.filters import KEPT, FilterCounts, PairFilter, Reasons
from mtkit.data.readers import Pair
from mtkit.data.sources import Source
from mtkit.data.tables import Hashes
from mtkit.data.tokenizer import Ids, Tokenizers
from mtkit.demo import EARLIER_GENERATORS, GENERATOR
from mtkit.errors import DataError, StorageError
from mtkit.files import (
    FolderLock,
    append_line,
    commit_folder,
    publish_folder,
    remove_tree,
    storage_errors,
    temporary_folder,
    write_text,
)

_PAIRS_AT_ONCE = 1 << 14
_ARROW_MAGIC_BYTES = 8  # An Arrow file is these, a stream, and a footer, which an unfinished one lacks.

ReadPairs = Iterator[tuple[int, tuple[int, Pair]]]
"""(number of the source, (line, pair)) of all sources."""

Int64s = npt.NDArray[np.int64]


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
    cache, hashes = open_cache(data, "corpora")
    fingerprint = _fingerprint(sources, tokenizers, data, hashes)
    folder = cache / fingerprint[:32]
    cached = _open_cached(folder, fingerprint, sources)
    if cached is not None:
        return cached
    with ExitStack() as stack:
        place = _take_place(folder, stack)
        remove_abandoned(cache)
        corpus = _open_cached(folder, fingerprint, sources)  # another may have finished it by now
        try:
            if corpus is None:
                # a process may have been killed when all was written, before the folder was renamed
                if _open_cached(place, fingerprint, sources) is None:
                    _fill(place, fingerprint, sources, tokenizers, data, on_progress or (lambda number: None))
                corpus = _commit(place, folder, fingerprint, sources)
        except DataError:  # once the source is repaired, this is another corpus
            remove_tree(place)
            raise
        remove_tree(place)
        return corpus


def _take_place(folder: Path, stack: ExitStack) -> Path:
    """Where to write: the folder that can be gone on with, or one that is deleted at the end. Raises: StorageError."""
    shared = folder.with_name(f".{folder.name}.partial.tmp")
    try:
        stack.enter_context(FolderLock(shared))
    except StorageError:  # another process is at it, or there are no locks on this file system
        return stack.enter_context(temporary_folder(folder))
    return shared


def _open_cached(folder: Path, fingerprint: str, sources: Sequence[Source]) -> Corpus | None:
    with suppress(StorageError):
        return Corpus(folder, fingerprint, sources)
    return None


def _commit(place: Path, folder: Path, fingerprint: str, sources: Sequence[Source]) -> Corpus:
    """Give the folder its name, unless another process has encoded the same meanwhile."""
    with storage_errors(place):
        _progress_file(place).unlink(missing_ok=True)
    if not publish_folder(place, folder):
        if (first := _open_cached(folder, fingerprint, sources)) is not None:
            return first
        commit_folder(place, folder)  # what is there is damaged
    with suppress(OSError):
        (folder / ".lock").unlink(missing_ok=True)  # it was that of the place
    return Corpus(folder, fingerprint, sources)


def _fill(
    place: Path,
    fingerprint: str,
    sources: Sequence[Source],
    tokenizers: Tokenizers,
    data: DataConfig,
    on_progress: Callable[[int], None],
) -> None:
    """Write the rows and, last, what they are. Raises: DataError: there are none."""
    done = _take_over(place)
    mark = done[-1][1] if done else Mark(0, FilterCounts())
    keep, reads = PairFilter(data), _read(sources)
    if mark.num_read:
        _skip(reads, mark.num_read, keep)
        on_progress(mark.num_read)
    following = Following(mark, _encoded(reads, tokenizers, keep), on_progress)
    num_bytes = _write(place, done, following)
    if following.counts.kept == 0:
        what = f"no pair is left to train on: {following.counts.summary()}"
        raise DataError(what, where="data.train", hint="check the sources and data.max_length")
    info = {"fingerprint": fingerprint, "num_bytes": num_bytes, "counts": asdict(following.counts)}
    write_text(place / "info.json", json.dumps(info, indent=2) + "\n")


# --- reading and encoding -----------------------------------------------------------------------------------------


class Texts(NamedTuple):
    """Pairs as they were read, without outer white space, and where they stand."""

    sources: npt.NDArray[np.int32]
    lines: Int64s
    srcs: list[str]
    tgts: list[str]


class Encoded(NamedTuple):
    """Pairs that were read one after the other: why each was left out, and the tokens of those that were not."""

    reasons: Reasons
    src_ids: Ids
    src_lengths: Int64s
    tgt_ids: Ids
    tgt_lengths: Int64s
    sources: npt.NDArray[np.int32]
    lines: Int64s

    @property
    def num_kept(self) -> int:
        """The number of rows."""
        return len(self.lines)

    def cut(self, num_kept: int) -> tuple[Encoded, Encoded]:
        """The first pairs, up to the last of so many rows, and the others."""
        ends = (
            int(np.flatnonzero(self.reasons == KEPT)[num_kept - 1]) + 1,
            int(self.src_lengths[:num_kept].sum()),
            num_kept,
            int(self.tgt_lengths[:num_kept].sum()),
            num_kept,
            num_kept,
            num_kept,
        )
        columns: tuple[npt.NDArray[Any], ...] = self
        cuts = [(column[:end], column[end:]) for column, end in zip(columns, ends, strict=True)]
        return Encoded(*(first for first, _ in cuts)), Encoded(*(last for _, last in cuts))

    def record_batch(self) -> pa.RecordBatch:
        """The rows as they are written."""
        sides = ((self.src_ids, self.src_lengths), (self.tgt_ids, self.tgt_lengths))
        lists = [
            pa.LargeListArray.from_arrays(
                pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64()), pa.array(ids, pa.int32())
            )
            for ids, lengths in sides
        ]
        places = [pa.array(self.sources, SCHEMA.field("source").type), pa.array(self.lines, pa.int64())]
        return pa.record_batch([*lists, *places], schema=SCHEMA)


def _read(sources: Sequence[Source]) -> ReadPairs:
    return chain.from_iterable(zip(repeat(number), source.read()) for number, source in enumerate(sources))


def _next_texts(reads: ReadPairs, most: int) -> Texts | None:
    """The next pairs, as many at most; None at the end."""
    sources, lines, srcs, tgts = [], [], [], []
    for source, (line, (src, tgt)) in islice(reads, most):  # faster than to keep the tuples and unzip them
        sources.append(source)
        lines.append(line)
        srcs.append(src.strip())
        tgts.append(tgt.strip())
    if not lines:
        return None
    return Texts(np.array(sources, np.int32), np.array(lines, np.int64), srcs, tgts)


def _skip(reads: ReadPairs, number: int, keep: PairFilter) -> None:
    """Pass over the first pairs, which are encoded already; a filter that remembers pairs sees them."""
    if not keep.remembers:
        next(islice(reads, number, number), None)
        return
    while number and (texts := _next_texts(reads, min(number, _PAIRS_AT_ONCE))) is not None:
        keep.check_texts(texts.srcs, texts.tgts)
        number -= len(texts.lines)


def _encoded(reads: ReadPairs, tokenizers: Tokenizers, keep: PairFilter) -> Iterator[Encoded]:
    """Encode in a thread, and SentencePiece in as many as there are processors, while the next pairs are read."""
    with ThreadPoolExecutor(1, thread_name_prefix="encoding") as thread:
        underway: Future[Encoded] | None = None
        while (texts := _next_texts(reads, _PAIRS_AT_ONCE)) is not None:
            reasons = keep.check_texts(texts.srcs, texts.tgts)
            following = thread.submit(_encode, texts, reasons, tokenizers, keep)
            if underway is not None:
                yield underway.result()
            underway = following
        if underway is not None:
            yield underway.result()


def _encode(texts: Texts, reasons: Reasons, tokenizers: Tokenizers, keep: PairFilter) -> Encoded:
    places = np.flatnonzero(reasons == KEPT)
    numbers = places.tolist()
    src_ids, src_lengths = tokenizers.src.encode_flat([texts.srcs[i] for i in numbers])
    tgt_ids, tgt_lengths = tokenizers.tgt.encode_flat([texts.tgts[i] for i in numbers])
    reasons[places] = keep.check_lengths(src_lengths, tgt_lengths)
    kept = reasons[places] == KEPT
    return Encoded(
        reasons,
        src_ids[np.repeat(kept, src_lengths)],
        src_lengths[kept],
        tgt_ids[np.repeat(kept, tgt_lengths)],
        tgt_lengths[kept],
        texts.sources[places[kept]],
        texts.lines[places[kept]],
    )


# --- writing, and going on ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """How far the encoding was when a record batch was full."""

    num_read: int
    """Pairs read, up to the last one in the batch."""
    counts: FilterCounts
    """Of these."""

    def line(self, batch: pa.RecordBatch) -> str:
        """What `progress.jsonl` holds of it."""
        return json.dumps([self.num_read, asdict(self.counts), self.checksum(batch)])

    def checksum(self, batch: pa.RecordBatch) -> int:
        """CRC-32 of the mark and the batch."""
        found = zlib.crc32(repr(self).encode())
        for side in (batch.column("src"), batch.column("tgt")):
            for column in (side.offsets, side.values):
                found = zlib.crc32(as_numpy(column).data, found)
        for name in ("source", "line"):
            found = zlib.crc32(as_numpy(batch.column(name)).data, found)
        return found


Marked = tuple[pa.RecordBatch, Mark]


class Following:
    """The record batches that are still to be written, each with its mark.

    Attributes:
        counts: what was kept and left out; of all pairs when the last batch was taken.
    """

    def __init__(self, mark: Mark, encoded: Iterator[Encoded], on_progress: Callable[[int], None]) -> None:
        self.counts = mark.counts
        self._encoded, self._on_progress = encoded, on_progress

    def __iter__(self) -> Iterator[Marked]:
        held: list[Encoded] = []
        num_read = self.counts.num_read
        for chunk in self._encoded:
            num_read += len(chunk.reasons)
            self._on_progress(num_read)
            held.append(chunk)
            while sum(part.num_kept for part in held) >= ROWS:
                full, rest = _joined(held).cut(ROWS)
                yield self._marked(full)
                held = [rest]
        if held:
            last = _joined(held)
            if last.num_kept:
                yield self._marked(last)
            else:
                self.counts += FilterCounts.of(last.reasons)

    def _marked(self, rows: Encoded) -> Marked:
        self.counts += FilterCounts.of(rows.reasons)
        return rows.record_batch(), Mark(self.counts.num_read, self.counts)


def _joined(parts: Sequence[Encoded]) -> Encoded:
    return Encoded(*map(np.concatenate, zip(*parts, strict=True)))


def _write(place: Path, done: Sequence[Marked], following: Following) -> int:
    """Write the record batches that were taken over and those that follow. Returns the bytes of the file."""
    path, progress = place / "pairs.arrow", _progress_file(place)
    with storage_errors(place):
        with open(path, "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            for batch, _ in done:
                writer.write_batch(batch)
            file.flush()
            write_text(progress, "".join(f"{mark.line(batch)}\n" for batch, mark in done))
            _file_before(place).unlink(missing_ok=True)
            for batch, mark in following:
                writer.write_batch(batch)
                file.flush()
                append_line(progress, mark.line(batch))
        return path.stat().st_size


def _progress_file(place: Path) -> Path:
    return place / "progress.jsonl"


def _file_before(place: Path) -> Path:
    """What a killed process had written; deleted when all that is good of it stands in the new file."""
    return place / "before.arrow"


def _take_over(place: Path) -> list[Marked]:
    """The record batches that a killed process has written, up to the first that is damaged. Raises: StorageError."""
    before, unfinished = _file_before(place), place / "pairs.arrow"
    with storage_errors(place):
        if not before.exists() and unfinished.exists():
            unfinished.rename(before)
    found: list[Marked] = []
    with suppress(OSError, ValueError, TypeError, StopIteration, pa.ArrowException):
        lines = _progress_file(place).read_text(encoding="utf-8").split("\n")
        stream = pa.ipc.open_stream(pa.memory_map(str(before)).read_buffer().slice(_ARROW_MAGIC_BYTES))
        for line in lines[:-1]:
            num_read, counts, checksum = json.loads(line)
            mark, batch = Mark(num_read, FilterCounts(**counts)), stream.read_next_batch()
            if batch.schema != SCHEMA or mark.checksum(batch) != checksum:
                break
            found.append((batch, mark))
    return found


def matches_fingerprint(
    fingerprint: str, sources: Sequence[Source], tokenizers: Tokenizers, data: DataConfig
) -> bool:
    """Whether a fingerprint is that of the corpus that these make.

    mtkit 0.1.0 made fingerprints of the bytes of text files, which are others when the file is packed anew, and had
    the same generator of demo pairs in other files.
    """
    _, now = open_cache(data, "corpora")
    kinds = product((now.of_text, now.of_bytes), (GENERATOR, *EARLIER_GENERATORS))
    hashes = (Hashes(now.of_bytes, of_text, generator) for of_text, generator in kinds)
    return any(fingerprint == _fingerprint(sources, tokenizers, data, kind) for kind in hashes)


def _fingerprint(sources: Sequence[Source], tokenizers: Tokenizers, data: DataConfig, hashes: Hashes) -> str:
    """The key of a corpus: everything that decides its ids."""
    filters = [data.max_length, data.max_length_ratio, data.drop_duplicates]
    texts = [source.fingerprint(hashes) for source in sources]
    return hashlib.sha256(json.dumps([FORMAT, texts, tokenizers.fingerprint, filters]).encode()).hexdigest()
