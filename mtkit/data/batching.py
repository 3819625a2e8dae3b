"""Batches within a token budget, their micro-batches, and the padded arrays that a model is given.

In: encoded pairs and the indices of those in a batch. Out: `Batch`.
Shapes: B pairs in a batch, S source length, T target length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mtkit.data.order import Indices, Lengths

Ids = npt.NDArray[np.int32]

_USUAL_SHARE = 0.99
"""Share of the training sources of usual length; the longer ones are too few to learn their lengths from."""

LENGTHS_PER_CHUNK = 1 << 20


class EncodedPairs(Protocol):
    """The part of a corpus that batching needs."""

    @property
    def src_lengths(self) -> Lengths:
        """Number of tokens of each source, without eos."""

    @property
    def tgt_lengths(self) -> Lengths:
        """Number of tokens of each target, without bos and eos."""

    def src(self, index: int) -> Ids:
        """Return the source ids of a pair."""

    def tgt(self, index: int) -> Ids:
        """Return the target ids of a pair."""


def pair_sizes(src_lengths: Ids, tgt_lengths: Ids) -> Ids:
    """Return the positions that each pair takes on its longer side: source plus eos, or bos plus target."""
    return np.maximum(src_lengths, tgt_lengths).astype(np.int32) + 1


def split_by_tokens(sizes: Ids, order: Indices, batch_tokens: int) -> list[Indices]:
    """Split an order into batches with rows x largest size <= batch_tokens (a single larger pair is a batch)."""
    batches, start, largest = [], 0, 0
    for end, size in enumerate(sizes[order].tolist()):
        largest = max(largest, size)
        if largest * (end - start + 1) > batch_tokens and end > start:
            batches.append(order[start:end])
            start, largest = end, size
    if start < len(order):
        batches.append(order[start:])
    return batches


def split_evenly(sizes: Ids, order: Indices, num_batches: int) -> list[Indices]:
    """Split an order, sorted by size, into this many batches, of which the largest takes as few positions as possible.

    Args:
        sizes: the positions that each row takes on its longer side.
        order: at least `num_batches` rows.
        num_batches: number of batches.
    """
    budget = max(int(sizes[order].max()), -(-int(sizes[order].sum()) // num_batches))
    while len(batches := split_by_tokens(sizes, order, budget)) > num_batches:
        budget += 1 + budget // 256
    while len(batches) < num_batches:
        largest = max(range(len(batches)), key=lambda number: len(batches[number]))
        batches[largest : largest + 1] = np.array_split(batches[largest], 2)
    return batches


def split_into_micro_batches(
    batches: Sequence[Indices], world_size: int = 1, min_micro_batches: int = 1
) -> list[Indices]:
    """Split the batches of an update into micro-batches: rank r runs numbers r, r + world_size, and so on.

    Every batch is split into the same number of micro-batches: the smallest that is at least `min_micro_batches` and
    gives every rank as many. Row i goes to micro-batch i modulo that number: the rows of a batch are sorted by length,
    so that its micro-batches are of similar length. A batch with fewer rows than micro-batches leaves some empty.
    """
    num_micro_batches = min_micro_batches
    while len(batches) * num_micro_batches % world_size:
        num_micro_batches += 1
    return [batch[first::num_micro_batches] for batch in batches for first in range(num_micro_batches)]


def split_to_fit(
    micro_batches: Sequence[Indices], sizes: Ids, budgets: Sequence[int], world_size: int = 1
) -> dict[int, Indices]:
    """Split micro-batches further whose rows x largest size exceed their budget.

    The first part of a micro-batch keeps its number, and the numbers of further parts follow those of all first parts,
    so that part and rank stay together. Rows are sorted by size only where there is something to split. Every rank has
    as many parts, some of them empty.

    Args:
        micro_batches: as `split_into_micro_batches` returns them; rows are numbers into `sizes`.
        sizes: the positions that each row takes on its longer side.
        budgets: the maximum of rows x largest size of each micro-batch; a single larger row is a micro-batch.
        world_size: number of processes.

    Returns:
        the micro-batches by number, in ascending order.
    """
    parts = [
        split_by_tokens(sizes, rows[np.argsort(sizes[rows], kind="stable")], budget)
        if len(rows) and len(rows) * int(sizes[rows].max()) > budget
        else [rows]
        for rows, budget in zip(micro_batches, budgets, strict=True)
    ]
    rounds = range(0, len(parts), world_size)  # of micro-batches that run at the same time
    most = [max(map(len, parts[first : first + world_size])) for first in rounds]
    return {
        level * len(parts) + number: of_slice[level] if level < len(of_slice) else rows[:0]
        for level in range(max(most))
        for number, (of_slice, rows) in enumerate(zip(parts, micro_batches, strict=True))
        if level < most[number // world_size]
    }


def length_quantile(lengths: Lengths, share: float = _USUAL_SHARE) -> int:
    """Return the smallest length that at least this share of the lengths does not exceed, using little memory."""
    counts = np.zeros(int(lengths.max(initial=0)) + 1, dtype=np.int64)
    for first in range(0, len(lengths), LENGTHS_PER_CHUNK):
        counts += np.bincount(lengths[first : first + LENGTHS_PER_CHUNK], minlength=len(counts))
    return int(np.searchsorted(counts.cumsum(), share * len(lengths)))


def num_positions(batch: Indices, src_lengths: Lengths, tgt_lengths: Lengths) -> int:
    """Return the positions of a padded batch, both sides: its memory and time grow with them."""
    return len(batch) * (int(src_lengths[batch].max()) + int(tgt_lengths[batch].max()) + 2)


@dataclass(frozen=True)
class Batch:
    """Pairs as padded arrays of token ids."""

    src: npt.NDArray[np.int64]  # [B, S], each row ends with eos (unless sources have none), then pad
    tgt_in: npt.NDArray[np.int64]  # [B, T], each row begins with bos
    tgt_out: npt.NDArray[np.int64]  # [B, T], each row ends with eos
    tgt_mask: npt.NDArray[np.bool_]  # [B, T], True at real positions
    indices: Indices  # [B], the indices of the pairs in the corpus
    links: npt.NDArray[np.int64] | None = None  # [links, 3]: row, target position, source position

    @property
    def num_targets(self) -> int:
        """Number of real target tokens with eos, by which the loss is divided."""
        return int(self.tgt_mask.sum())


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens of both sides, and whether sources end with eos."""

    src_pad: int
    src_eos: int
    tgt_pad: int
    tgt_bos: int
    tgt_eos: int
    source_eos: bool = True


def collate_tokens(
    rows: list[Ids], pad: int, *, bos: int | None = None, eos: int | None = None
) -> npt.NDArray[np.int64]:
    """Stack rows of ids into a [B, longest] array, padded on the right.

    Args:
        rows: token ids, one array a sentence.
        pad: fills rows that are shorter than the longest.
        bos: put before each row, unless None.
        eos: put after each row, unless None.
    """
    num_before, num_after = int(bos is not None), int(eos is not None)
    width = num_before + max(map(len, rows)) + num_after
    array = np.full((len(rows), width), pad, dtype=np.int64)
    if bos is not None:
        array[:, 0] = bos
    for row, ids in zip(array, rows, strict=True):
        end = num_before + len(ids)
        row[num_before:end] = ids
        if eos is not None:
            row[end] = eos
    return array


def collate_sources(rows: Sequence[Ids], pad: int, eos: int, source_eos: bool) -> npt.NDArray[np.int64]:
    """Stack source sentences into a [B, S] array, padded on the right.

    Args:
        rows: token ids, one array a sentence.
        pad: fills rows that are shorter than the longest.
        eos: the end token.
        source_eos: whether sources end with it. If not, only a source without tokens is eos, for the encoder cannot
            attend to nothing.
    """
    if source_eos:
        return collate_tokens(list(rows), pad, eos=eos)
    return collate_tokens([ids if len(ids) else np.array([eos], dtype=np.int32) for ids in rows], pad)


def make_batch(
    corpus: EncodedPairs,
    indices: Indices,
    special: SpecialIds,
    links: Callable[[int], Ids] | None = None,
) -> Batch:
    """Fetch the pairs of a batch and collate them.

    Args:
        corpus: the pairs.
        indices: those of the batch.
        special: ids that frame sentences.
        links: returns the linked tokens of a pair, source and target: [links, 2]; by default a batch has none.
    """
    numbers = indices.tolist()
    batch = collate_pairs(list(map(corpus.src, numbers)), list(map(corpus.tgt, numbers)), indices, special)
    return batch if links is None else replace(batch, links=_collate_links([links(i) for i in numbers]))


def collate_pairs(srcs: Sequence[Ids], tgts: list[Ids], indices: Indices, special: SpecialIds) -> Batch:
    """Collate the rows of a batch.

    Args:
        srcs, tgts: token ids of both sides, one array a sentence.
        indices: indices of the pairs in the corpus.
        special: ids that frame sentences.
    """
    tgt_out = collate_tokens(tgts, special.tgt_pad, eos=special.tgt_eos)
    lengths = np.array([len(ids) + 1 for ids in tgts])
    return Batch(
        src=collate_sources(srcs, special.src_pad, special.src_eos, special.source_eos),
        tgt_in=collate_tokens(tgts, special.tgt_pad, bos=special.tgt_bos),
        tgt_out=tgt_out,
        tgt_mask=np.arange(tgt_out.shape[1])[None, :] < lengths[:, None],
        indices=indices,
    )


def _collate_links(rows: Sequence[Ids]) -> npt.NDArray[np.int64]:
    """Stack the linked tokens of pairs, [links, 2] each: [links, 3] with the row, the target and the source."""
    numbers = np.repeat(np.arange(len(rows)), [len(links) for links in rows])
    return np.column_stack([numbers, np.concatenate(rows)[:, ::-1]]).astype(np.int64)


def without_targets(batch: Batch) -> Batch:
    """Return the first row without targets: a rank for which an update has no rows takes part in it with this."""
    return Batch(
        src=batch.src[:1],
        tgt_in=batch.tgt_in[:1],
        tgt_out=batch.tgt_out[:1],
        tgt_mask=np.zeros_like(batch.tgt_mask[:1]),
        indices=batch.indices[:0],
        links=None if batch.links is None else batch.links[:0],
    )
