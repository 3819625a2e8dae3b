"""Batches under a token budget, and the arrays made of them.

Shapes: B pairs in a batch, S source length, T target length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mtkit.data.order import Indices, Lengths

Ids = npt.NDArray[np.int32]

_USUAL_SHARE = 0.99
"""Share of the training sources that count as usual; longer ones are too few to learn such lengths from."""

LENGTHS_AT_ONCE = 1 << 20


class EncodedPairs(Protocol):
    """What batching needs of a corpus."""

    @property
    def src_lengths(self) -> Lengths:
        """Pieces of each source."""

    @property
    def tgt_lengths(self) -> Lengths:
        """Pieces of each target."""

    def src(self, index: int) -> Ids:
        """Source pieces of a pair."""

    def tgt(self, index: int) -> Ids:
        """Target pieces of a pair."""


def pair_sizes(src_lengths: Ids, tgt_lengths: Ids) -> Ids:
    """Positions a pair takes on its longer side: source plus eos, or bos plus target."""
    return np.maximum(src_lengths, tgt_lengths).astype(np.int32) + 1


def split_by_tokens(sizes: Ids, order: Indices, batch_tokens: int) -> list[Indices]:
    """Cut an order into batches with rows x largest size <= batch_tokens (a single larger pair is a batch)."""
    batches, start, largest = [], 0, 0
    for end, size in enumerate(sizes[order].tolist()):
        largest = max(largest, size)
        if largest * (end - start + 1) > batch_tokens and end > start:
            batches.append(order[start:end])
            start, largest = end, size
    if start < len(order):
        batches.append(order[start:])
    return batches


def split_into_micro_batches(
    batches: Sequence[Indices], num_processes: int = 1, slices: int = 1
) -> list[Indices]:
    """The parts of an update in the order they are dealt to the processes: process p runs part p, p + P, p + 2P, ...

    Every batch is cut into the same number of parts: the fewest that are at least `slices` and deal out evenly.
    Row r goes to part r modulo their number, so that the parts of a batch, whose rows are sorted, are alike in length.
    A batch with fewer rows than parts gives empty ones.
    """
    num_parts = slices
    while len(batches) * num_parts % num_processes:
        num_parts += 1
    return [batch[first::num_parts] for batch in batches for first in range(num_parts)]


def usual_length(lengths: Lengths, share: float = _USUAL_SHARE) -> int:
    """The smallest length that so large a share of all does not exceed; found in little memory."""
    counts = np.zeros(int(lengths.max(initial=0)) + 1, dtype=np.int64)
    for first in range(0, len(lengths), LENGTHS_AT_ONCE):
        counts += np.bincount(lengths[first : first + LENGTHS_AT_ONCE], minlength=len(counts))
    return int(np.searchsorted(counts.cumsum(), share * len(lengths)))


def num_positions(batch: Indices, src_lengths: Lengths, tgt_lengths: Lengths) -> int:
    """Positions of a batch, both sides padded: what its memory and time grow with."""
    return len(batch) * (int(src_lengths[batch].max()) + int(tgt_lengths[batch].max()) + 2)


@dataclass(frozen=True)
class Batch:
    """Pairs as padded arrays."""

    src: npt.NDArray[np.int64]  # [B, S], each row ends with eos, then pad
    tgt_in: npt.NDArray[np.int64]  # [B, T], each row begins with bos
    tgt_out: npt.NDArray[np.int64]  # [B, T], each row ends with eos
    tgt_mask: npt.NDArray[np.bool_]  # [B, T], True at real positions
    indices: Indices  # [B], the pairs' numbers in the corpus

    @property
    def num_targets(self) -> int:
        """Real target positions, eos included: what the loss is divided by."""
        return int(self.tgt_mask.sum())


@dataclass(frozen=True)
class SpecialIds:
    """Ids that frame and fill sentences."""

    src_pad: int
    src_eos: int
    tgt_pad: int
    tgt_bos: int
    tgt_eos: int


def pad_rows(
    rows: list[Ids], pad: int, *, first: int | None = None, last: int | None = None
) -> npt.NDArray[np.int64]:
    """Rows of ids to a [B, longest] array, each row framed by `first` and `last` and filled up with `pad`."""
    begin = 0 if first is None else 1
    extra = begin + (last is not None)
    array = np.full((len(rows), max(map(len, rows)) + extra), pad, dtype=np.int64)
    if first is not None:
        array[:, 0] = first
    for row, ids in zip(array, rows, strict=True):
        row[begin : begin + len(ids)] = ids
        if last is not None:
            row[begin + len(ids)] = last
    return array


def make_batch(corpus: EncodedPairs, indices: Indices, special: SpecialIds) -> Batch:
    """Fetch the pairs of a batch and frame them."""
    numbers = indices.tolist()
    tgts = [corpus.tgt(i) for i in numbers]
    tgt_out = pad_rows(tgts, special.tgt_pad, last=special.tgt_eos)
    lengths = np.array([len(ids) + 1 for ids in tgts])
    return Batch(
        src=pad_rows([corpus.src(i) for i in numbers], special.src_pad, last=special.src_eos),
        tgt_in=pad_rows(tgts, special.tgt_pad, first=special.tgt_bos),
        tgt_out=tgt_out,
        tgt_mask=np.arange(tgt_out.shape[1])[None, :] < lengths[:, None],
        indices=indices,
    )


def empty_batch(corpus: EncodedPairs, indices: Indices, special: SpecialIds) -> Batch:
    """A batch without any target: a process that has nothing to do in an update takes part in it with this."""
    batch = make_batch(corpus, indices[:1], special)
    return replace(batch, tgt_mask=np.zeros_like(batch.tgt_mask), indices=indices[:0])
