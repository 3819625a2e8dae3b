"""Encoding of the training pairs: read, filter, tokenize and write them, once for each content.

In: sources and tokenizers. Out: a `Corpus` in the cache.

While a corpus is written, its folder is `.KEY.partial.tmp` beside its final place in the cache, and locked. It is
renamed to `KEY` at the end. A process that finds it locked waits. Where the file system has no locks, each process
encodes into a folder of its own, and all use that of the first to finish. A killed process leaves its folder behind,
and the next one continues from it: `progress.jsonl` has, for each record batch of `pairs.arrow`, the number of pairs
read so far, the filter counts and a checksum. The finished file is the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice, product, repeat, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtkit.config.sections import DataConfig
from mtkit.data.alignments import WordLinks, token_links
from mtkit.data.batching import Ids
from mtkit.data.cache import open_cache, remove_abandoned_folders
from mtkit.data.corpus import ALIGNED_SCHEMA, FORMAT, LINKS, ROWS, SCHEMA, Corpus, as_numpy
from mtkit.data.filters import KEPT, FilterCounts, PairFilter, Reasons
from mtkit.data.readers import Pair
from mtkit.data.sources import Source
from mtkit.data.tables import Hashes
from mtkit.data.tokenizer import Tokenizers
from mtkit.demo import EARLIER_GENERATORS, GENERATOR
from mtkit.errors import DataError, FolderInUseError, StorageError
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
from mtkit.formatting import format_count

_CHUNK_PAIRS = 1 << 14
_POLL_SECONDS = 0.5
"""Time between two looks at whether another process has finished."""
# An Arrow file is this magic, a stream, and a footer; an unfinished one has no footer.
_ARROW_MAGIC_BYTES = 8

_PAIRS_FILE, _INFO_FILE, _PROGRESS_FILE = "pairs.arrow", "info.json", "progress.jsonl"
_INTERRUPTED_FILE = "before.arrow"
"""`pairs.arrow` of a killed process; deleted when its intact record batches are in the new file."""

_SourcePairs = Iterator[tuple[int, tuple[int, Pair], WordLinks]]
"""(index of the source, (line, pair), linked words) of all sources."""
_Int64s = npt.NDArray[np.int64]


def encode_corpus(
    sources: Sequence[Source],
    tokenizers: Tokenizers,
    data: DataConfig,
    on_progress: Callable[[int], None] = lambda number: None,
    say: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """Return the encoded pairs of all sources, from the cache or encoded now and added to it.

    If another process is encoding the same pairs, wait for it.

    Args:
        sources: the sources of the pairs, in the order of the corpus.
        tokenizers: the tokenizers of both sides.
        data: the filters, and the cache folder.
        on_progress: called from time to time while encoding, with the number of further pairs read.
        say: prints a line.

    Raises:
        DataError: If a source cannot be read, or no pair is left.
        StorageError: If the cache cannot be written.
    """
    cache, hashes = open_cache(data, "corpora")
    fingerprint = _fingerprint(sources, tokenizers, data, hashes)
    final = cache / fingerprint[:32]
    cached = _open_cached(final, fingerprint, sources)
    if cached is not None:
        return cached
    with ExitStack() as stack:
        work = _acquire_work_folder(final, stack, say)
        remove_abandoned_folders(cache)
        corpus = _open_cached(final, fingerprint, sources)  # Another process may have finished it meanwhile.
        try:
            if corpus is None:
                # A process may have been killed after writing everything, before the folder was renamed.
                if _open_cached(work, fingerprint, sources) is None:
                    _encode_into(work, fingerprint, sources, tokenizers, data, on_progress)
                corpus = _publish(work, final, fingerprint, sources)
        except DataError:  # Once the source is repaired, it is another corpus.
            remove_tree(work)
            raise
        remove_tree(work)
        return corpus


def _acquire_work_folder(final: Path, stack: ExitStack, say: Callable[[str], None]) -> Path:
    """Return the folder to write into: the one that is kept if the process is killed, or else a temporary one.

    If another process is writing into the former, wait until it has finished or was killed.
    """
    partial = final.with_name(f".{final.name}.partial.tmp")
    is_told = False
    while True:
        try:
            stack.enter_context(FolderLock(partial))
            return partial
        except FolderInUseError:
            if not is_told:
                say("waiting for another process that encodes the same pairs")
            is_told = True
            time.sleep(_POLL_SECONDS)
        except StorageError:  # This file system has no locks.
            return stack.enter_context(temporary_folder(final))


def _open_cached(folder: Path, fingerprint: str, sources: Sequence[Source]) -> Corpus | None:
    with suppress(StorageError):
        return Corpus(folder, fingerprint, sources)
    return None


def _publish(work: Path, final: Path, fingerprint: str, sources: Sequence[Source]) -> Corpus:
    """Rename a finished folder, unless another process has encoded the same corpus meanwhile."""
    with storage_errors(work):
        (work / _PROGRESS_FILE).unlink(missing_ok=True)
    if not publish_folder(work, final):
        if (corpus := _open_cached(final, fingerprint, sources)) is not None:
            return corpus
        commit_folder(work, final)  # The one in the cache is damaged.
    with suppress(OSError):
        (final / ".lock").unlink(missing_ok=True)  # The lock of the work folder was renamed with it.
    return Corpus(final, fingerprint, sources)


def _encode_into(
    work: Path,
    fingerprint: str,
    sources: Sequence[Source],
    tokenizers: Tokenizers,
    data: DataConfig,
    on_progress: Callable[[int], None],
) -> None:
    """Write the pairs and, last, the information about them, continuing what a killed process has written.

    Raises:
        DataError: If no pair is left.
    """
    schema = ALIGNED_SCHEMA if any(source.alignments for source in sources) else SCHEMA
    done = _recover_batches(work, schema)
    progress = done[-1].progress if done else _Progress(0, FilterCounts())
    pair_filter, pairs = PairFilter(data), _read(sources)
    if progress.num_read:
        _skip(pairs, progress.num_read, pair_filter)
        on_progress(progress.num_read)
    chunks = _encode_chunks(pairs, sources, tokenizers, pair_filter)
    remaining = _RecordBatches(progress, chunks, schema, on_progress)
    num_bytes = _write_batches(work, done, remaining, schema)
    if remaining.counts.kept == 0:
        what = f"no pair is left to train on: {remaining.counts.summary()}"
        raise DataError(what, where="data.train", hint="check the sources and data.max_length")
    info = {"fingerprint": fingerprint, "num_bytes": num_bytes, "counts": asdict(remaining.counts)}
    write_text(work / _INFO_FILE, json.dumps(info, indent=2) + "\n")


# --- reading, filtering, tokenizing -------------------------------------------------------------------------------


class _TextChunk(NamedTuple):
    """Consecutive pairs as text, stripped of white space, with their locations."""

    sources: npt.NDArray[np.int32]
    lines: _Int64s
    srcs: list[str]
    tgts: list[str]
    links: list[WordLinks]


class _EncodedChunk(NamedTuple):
    """Consecutive pairs: why each one was dropped or `KEPT`, and the tokens and locations of those that were kept."""

    reasons: Reasons
    src_ids: Ids
    src_lengths: _Int64s
    tgt_ids: Ids
    tgt_lengths: _Int64s
    sources: npt.NDArray[np.int32]
    lines: _Int64s
    links: Ids
    link_lengths: _Int64s

    @property
    def num_rows(self) -> int:
        """Number of pairs that were kept."""
        return len(self.lines)

    def split(self, num_rows: int) -> tuple[_EncodedChunk, _EncodedChunk]:
        """Split after this many rows: the first part ends with the last pair of them that was kept."""
        ends = (
            int(np.flatnonzero(self.reasons == KEPT)[num_rows - 1]) + 1,
            int(self.src_lengths[:num_rows].sum()),
            num_rows,
            int(self.tgt_lengths[:num_rows].sum()),
            num_rows,
            num_rows,
            num_rows,
            int(self.link_lengths[:num_rows].sum()),
            num_rows,
        )
        columns: tuple[npt.NDArray[Any], ...] = self
        parts = [(column[:end], column[end:]) for column, end in zip(columns, ends, strict=True)]
        return _EncodedChunk(*(first for first, _ in parts)), _EncodedChunk(*(rest for _, rest in parts))

    def record_batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows in the schema of the file."""
        sides = (
            (self.src_ids, self.src_lengths),
            (self.tgt_ids, self.tgt_lengths),
            (self.links, self.link_lengths),
        )
        src, tgt, links = (
            pa.LargeListArray.from_arrays(
                pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64()), pa.array(ids, pa.int32())
            )
            for ids, lengths in sides
        )
        locations = [pa.array(self.sources, SCHEMA.field("source").type), pa.array(self.lines, pa.int64())]
        columns = [src, tgt, *locations, links]
        return pa.record_batch(columns[: len(schema)], schema=schema)


def _read(sources: Sequence[Source]) -> _SourcePairs:
    return chain.from_iterable(
        zip(repeat(index), source.read(), repeat(()))
        if source.alignments is None
        else _read_aligned(index, source)
        for index, source in enumerate(sources)
    )


def _read_aligned(index: int, source: Source) -> _SourcePairs:
    """Yield the pairs of a source with their alignments.

    Raises:
        DataError: If there are not as many lines of alignments as pairs.
    """
    number, pairs, alignments = 0, source.read(), source.read_alignments()
    for number, (pair, links) in enumerate(zip_longest(pairs, alignments), 1):
        if pair is None or links is None:
            num_pairs, num_lines = (
                number - (item is None) + sum(1 for _ in rest)
                for item, rest in ((pair, pairs), (links, alignments))
            )
            hint = "line n aligns pair n, so there must be as many"
            what = (
                f"{format_count(num_lines, 'line')}, but {format_count(num_pairs, 'pair')} in {source.name}"
            )
            raise DataError(what, where=str(source.alignments), hint=hint)
        yield index, pair, links


def _next_texts(pairs: _SourcePairs, max_pairs: int) -> _TextChunk | None:
    """Return the next pairs, or None at the end."""
    sources, lines, srcs, tgts, links = [], [], [], [], []
    # Faster than collecting the tuples and unzipping.
    for source, (line, (src, tgt)), words in islice(pairs, max_pairs):
        sources.append(source)
        lines.append(line)
        srcs.append(src.strip())
        tgts.append(tgt.strip())
        links.append(words)
    if not lines:
        return None
    return _TextChunk(np.array(sources, np.int32), np.array(lines, np.int64), srcs, tgts, links)


def _skip(pairs: _SourcePairs, number: int, pair_filter: PairFilter) -> None:
    """Skip the first pairs, which are encoded already; a stateful filter sees them."""
    if not pair_filter.is_stateful:
        next(islice(pairs, number, number), None)
        return
    while number and (texts := _next_texts(pairs, min(number, _CHUNK_PAIRS))) is not None:
        pair_filter.filter_texts(texts.srcs, texts.tgts)
        number -= len(texts.lines)


def _encode_chunks(
    pairs: _SourcePairs, sources: Sequence[Source], tokenizers: Tokenizers, pair_filter: PairFilter
) -> Iterator[_EncodedChunk]:
    """Encode in a thread (SentencePiece uses one thread per processor) while the next pairs are read."""
    with ThreadPoolExecutor(1, thread_name_prefix="encoding") as thread:
        pending: Future[_EncodedChunk] | None = None
        while (texts := _next_texts(pairs, _CHUNK_PAIRS)) is not None:
            reasons = pair_filter.filter_texts(texts.srcs, texts.tgts)
            submitted = thread.submit(_encode_chunk, texts, reasons, sources, tokenizers, pair_filter)
            if pending is not None:
                yield pending.result()
            pending = submitted
        if pending is not None:
            yield pending.result()


def _encode_chunk(
    texts: _TextChunk,
    reasons: Reasons,
    sources: Sequence[Source],
    tokenizers: Tokenizers,
    pair_filter: PairFilter,
) -> _EncodedChunk:
    rows = np.flatnonzero(reasons == KEPT)
    indices = rows.tolist()
    src_ids, src_lengths = tokenizers.src.encode_flat([texts.srcs[i] for i in indices])
    tgt_ids, tgt_lengths = tokenizers.tgt.encode_flat([texts.tgts[i] for i in indices])
    reasons[rows] = pair_filter.filter_lengths(src_lengths, tgt_lengths)
    is_kept = reasons[rows] == KEPT
    links = [_link_tokens(texts, i, sources, tokenizers) for i in rows[is_kept].tolist()]
    return _EncodedChunk(
        reasons,
        src_ids[np.repeat(is_kept, src_lengths)],
        src_lengths[is_kept],
        tgt_ids[np.repeat(is_kept, tgt_lengths)],
        tgt_lengths[is_kept],
        texts.sources[rows[is_kept]],
        texts.lines[rows[is_kept]],
        np.fromiter(chain.from_iterable(links), np.int32),
        np.fromiter(map(len, links), np.int64, len(links)),
    )


def _link_tokens(
    texts: _TextChunk, index: int, sources: Sequence[Source], tokenizers: Tokenizers
) -> list[int]:
    """Return the linked tokens of a pair; see `token_links`.

    Raises:
        DataError: If a link is to a word that is not there.
    """
    links, src, tgt = texts.links[index], texts.srcs[index], texts.tgts[index]
    if not links:
        return []
    try:
        return token_links(links, src, tgt, tokenizers.src.spans(src), tokenizers.tgt.spans(tgt))
    except ValueError as error:
        source = sources[texts.sources[index]]
        what = f"{error} in the pair at {source.location(int(texts.lines[index]))}"
        hint = "words are separated by spaces, and counted from 0 in the text as it is"
        raise DataError(what, where=str(source.alignments), hint=hint) from error


# --- writing and resuming -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Progress:
    """Progress of the encoding after a record batch."""

    num_read: int
    """Number of pairs read, up to the last one of the batch."""
    counts: FilterCounts
    """How many of them were kept and dropped."""

    def checksum(self, batch: pa.RecordBatch) -> int:
        """Return the CRC-32 of the progress and the batch."""
        # `Mark` is an earlier name of this class: encodings interrupted by earlier versions can still be continued.
        checksum = zlib.crc32(f"Mark(num_read={self.num_read!r}, counts={self.counts!r})".encode())
        for side in (batch.column("src"), batch.column("tgt")):
            for column in (side.offsets, side.values):
                checksum = zlib.crc32(as_numpy(column).data, checksum)
        for name in ("source", "line"):
            checksum = zlib.crc32(as_numpy(batch.column(name)).data, checksum)
        if LINKS in batch.schema.names:
            for column in (batch.column(LINKS).offsets, batch.column(LINKS).values):
                checksum = zlib.crc32(as_numpy(column).data, checksum)
        return checksum


class _WrittenBatch(NamedTuple):
    """A record batch with the progress after it."""

    batch: pa.RecordBatch
    progress: _Progress

    def progress_line(self) -> str:
        """Return the line of `progress.jsonl` for this batch."""
        progress = self.progress
        return json.dumps([progress.num_read, asdict(progress.counts), progress.checksum(self.batch)])


class _RecordBatches:
    """Iterator over the record batches that are still to be written.

    Attributes:
        counts: the filter counts up to the last batch; at the end, of all pairs.
    """

    def __init__(
        self,
        progress: _Progress,
        chunks: Iterator[_EncodedChunk],
        schema: pa.Schema,
        on_progress: Callable[[int], None],
    ) -> None:
        self.counts, self._schema = progress.counts, schema
        self._chunks, self._on_progress = chunks, on_progress

    def __iter__(self) -> Iterator[_WrittenBatch]:
        buffer: list[_EncodedChunk] = []
        for chunk in self._chunks:
            self._on_progress(len(chunk.reasons))
            buffer.append(chunk)
            while sum(part.num_rows for part in buffer) >= ROWS:
                full, rest = _concatenate(buffer).split(ROWS)
                yield self._finish(full)
                buffer = [rest]
        if buffer:
            last = _concatenate(buffer)
            if last.num_rows:
                yield self._finish(last)
            else:
                self.counts += FilterCounts.from_reasons(last.reasons)

    def _finish(self, rows: _EncodedChunk) -> _WrittenBatch:
        self.counts += FilterCounts.from_reasons(rows.reasons)
        return _WrittenBatch(rows.record_batch(self._schema), _Progress(self.counts.num_read, self.counts))


def _concatenate(chunks: Sequence[_EncodedChunk]) -> _EncodedChunk:
    return _EncodedChunk(*map(np.concatenate, zip(*chunks, strict=True)))


def _write_batches(
    work: Path, recovered: Sequence[_WrittenBatch], remaining: _RecordBatches, schema: pa.Schema
) -> int:
    """Write the recovered and the remaining record batches. Return the size of the file in bytes."""
    path, progress = work / _PAIRS_FILE, work / _PROGRESS_FILE
    with storage_errors(work):
        with open(path, "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for written in recovered:
                writer.write_batch(written.batch)
            file.flush()
            write_text(progress, "".join(f"{written.progress_line()}\n" for written in recovered))
            (work / _INTERRUPTED_FILE).unlink(missing_ok=True)
            for written in remaining:
                writer.write_batch(written.batch)
                file.flush()
                append_line(progress, written.progress_line())
        return path.stat().st_size


def _recover_batches(work: Path, schema: pa.Schema) -> list[_WrittenBatch]:
    """Return the record batches that a killed process has written, up to the first damaged one."""
    interrupted, unfinished = work / _INTERRUPTED_FILE, work / _PAIRS_FILE
    with storage_errors(work):
        if not interrupted.exists() and unfinished.exists():
            unfinished.rename(interrupted)
    recovered: list[_WrittenBatch] = []
    with suppress(OSError, ValueError, TypeError, StopIteration, pa.ArrowException):
        lines = (work / _PROGRESS_FILE).read_text(encoding="utf-8").split("\n")
        stream = pa.ipc.open_stream(pa.memory_map(str(interrupted)).read_buffer().slice(_ARROW_MAGIC_BYTES))
        for line in lines[:-1]:
            num_read, counts, checksum = json.loads(line)
            progress, batch = _Progress(num_read, FilterCounts(**counts)), stream.read_next_batch()
            if batch.schema != schema or progress.checksum(batch) != checksum:
                break
            recovered.append(_WrittenBatch(batch, progress))
    return recovered


# --- fingerprints -------------------------------------------------------------------------------------------------


def matches_fingerprint(
    fingerprint: str, sources: Sequence[Source], tokenizers: Tokenizers, data: DataConfig
) -> bool:
    """Return whether a fingerprint is that of the corpus made from these sources, also if it is an earlier one.

    mtkit 0.1.0 hashed the bytes of text files, which change with their compression. Earlier generators made the same
    demo pairs.
    """
    _, current = open_cache(data, "corpora")
    variants = product((current.of_text, current.of_bytes), (GENERATOR, *EARLIER_GENERATORS))
    candidates = (Hashes(current.of_bytes, of_text, generator) for of_text, generator in variants)
    return any(fingerprint == _fingerprint(sources, tokenizers, data, hashes) for hashes in candidates)


def _fingerprint(sources: Sequence[Source], tokenizers: Tokenizers, data: DataConfig, hashes: Hashes) -> str:
    """Return the cache key of a corpus: a hash of everything that determines its ids."""
    filters = [data.max_length, data.max_length_ratio, data.drop_duplicates]
    texts = [source.fingerprint(hashes) for source in sources]
    return hashlib.sha256(json.dumps([FORMAT, texts, tokenizers.fingerprint, filters]).encode()).hexdigest()
