"""The updates of a run: which batches each one has, and their micro-batches on the device, prefetched in a thread.

The order of batches is a function of (seed, epoch); pairs that vary from pass to pass are batched anew by their
lengths, within windows of this order. An update is `batches_per_update` batches in that order. Each batch is split into
micro-batches, which are dealt to the processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch

from mtkit.config.sections import TrainingConfig
from mtkit.data.batching import (
    Ids,
    SpecialIds,
    collate_pairs,
    make_batch,
    pair_sizes,
    split_evenly,
    split_into_micro_batches,
    split_to_fit,
    without_targets,
)
from mtkit.data.corpus import Corpus
from mtkit.data.directions import BothDirections
from mtkit.data.order import (
    BatchOrder,
    EpochBatches,
    Indices,
    MixedBatches,
    MixedOrder,
    PhasedOrder,
    num_batches_of,
)
from mtkit.data.variation import Variation
from mtkit.errors import ConfigError
from mtkit.training.distributed import World
from mtkit.training.loss import TensorBatch

_NONE = np.zeros(0, np.int64)
_WINDOW = 16
"""Batches in a row whose pairs are divided among them anew by their lengths in this pass."""
_OVERSIZE = 1.1
"""Size relative to the token budget up to which such a batch is not split; about 1 on average."""


@dataclass(frozen=True)
class Update:
    """The batches of an optimizer update.

    Attributes:
        batches: indices of the pairs of each batch.
        epoch: epoch of the last batch.
        last_batch: number of the last batch in that epoch.
        batches_in_epoch: number of batches of that epoch.
        passes: how often each pair of each batch was seen before; by default never.
        samples: tokens of both sides of all pairs, if they vary from pass to pass.
        micro_batches: this process's micro-batches on the device, by their number among those of all processes; empty
            until they are fetched.
        num_targets: real target tokens over all processes, once it is fetched, if they vary from pass to pass.
    """

    batches: Sequence[Indices]
    epoch: int = 0
    last_batch: int = 0
    batches_in_epoch: int = 1
    passes: Sequence[Indices] = ()
    samples: Sequence[tuple[Ids, Ids]] = ()
    micro_batches: dict[int, TensorBatch] = field(default_factory=dict)
    num_targets: int | None = None

    @property
    def num_epochs(self) -> float:
        """Epochs that are over after this update."""
        return self.epoch + (self.last_batch + 1) / self.batches_in_epoch

    def pairs(self) -> list[int]:
        """Return the indices of its pairs."""
        return [int(index) for batch in self.batches for index in batch]

    def without(self, skipped: Indices) -> Update:
        """Return the update without some pairs: itself if it has none of them, otherwise one that is not fetched.

        Args:
            skipped: int64, indices of the pairs in ascending order.
        """
        if not len(skipped):
            return self
        places = (np.searchsorted(skipped, batch).clip(max=len(skipped) - 1) for batch in self.batches)
        kept = [skipped[place] != batch for place, batch in zip(places, self.batches, strict=True)]
        if all(rows.all() for rows in kept):
            return self
        batches, passes = (
            [each[rows] for each, rows in zip(column, kept, strict=False) if rows.any()]
            for column in (self.batches, self.passes)
        )
        return replace(self, batches=batches, passes=passes, samples=(), micro_batches={}, num_targets=None)


class _EpochBatch(NamedTuple):
    """A batch of an epoch: its number, that of the epoch's batches, its pairs, their passes and their samples."""

    epoch: int
    number: int
    num_batches: int
    pairs: Indices
    passes: Indices
    samples: Sequence[tuple[Ids, Ids]]


def make_order(
    corpus: Corpus | BothDirections,
    training: TrainingConfig,
    seed: int,
    weights: Sequence[float] = (),
    variation: Variation | None = None,
    reverse_epochs: int | None = None,
) -> BatchOrder | MixedOrder | PhasedOrder:
    """Return the order of batches of a corpus.

    Args:
        corpus: the encoded training pairs.
        training: section `training`.
        seed: seed of the order.
        weights: how often an epoch has each source of the corpus; by default once.
        variation: what differs in each pass, which plans the lengths of the pairs; by default nothing.
        reverse_epochs: number of first epochs that have both directions; by default all, if the corpus has both.

    Raises:
        ConfigError: If the weights leave no pair.
    """
    lengths = variation.planned_lengths() if variation else (corpus.src_lengths, corpus.tgt_lengths)
    sources = None if all(weight == 1 for weight in weights) else corpus.sources_of_pairs()

    def of_first(num_pairs: int) -> BatchOrder | MixedOrder:
        src, tgt = (each[:num_pairs] for each in lengths)
        if sources is None:
            return BatchOrder(src, tgt, training.batch_token_budget, seed)
        of_source = sources[:num_pairs]
        if all(weight * np.count_nonzero(of_source == number) < 1 for number, weight in enumerate(weights)):
            what = "the weights of the corpora leave less than a pair in an epoch"
            raise ConfigError(what, where="data.train", hint="raise a weight")
        return MixedOrder(src, tgt, training.batch_token_budget, seed, of_source, weights)

    order = of_first(len(lengths[0]))
    if reverse_epochs is None or not isinstance(corpus, BothDirections):
        return order
    return PhasedOrder(order, of_first(corpus.num_forward), reverse_epochs)


class UpdateLoader:
    """Yields the updates of a run, and fetches their micro-batches.

    Args:
        corpus: the encoded training pairs.
        order: the order of their batches.
        special: ids that frame sentences.
        training: section `training`.
        seed: seed of the order.
        world: the processes that share each update.
        device: device of the micro-batches.
        variation: what differs in each pass over the corpus; by default nothing.
        num_workers: number of workers of each process, which share its micro-batches.
    """

    def __init__(
        self,
        corpus: Corpus | BothDirections,
        order: BatchOrder | MixedOrder | PhasedOrder,
        special: SpecialIds,
        training: TrainingConfig,
        seed: int,
        world: World,
        device: torch.device,
        variation: Variation | None = None,
        num_workers: int = 1,
    ) -> None:
        self.packed_pad = special.src_pad if training.pack else None
        self.num_shares = world.size * num_workers
        self.corpus, self.special, self.world, self.device = corpus, special, world, device
        self.links = corpus.links if training.guided_alignment and isinstance(corpus, Corpus) else None
        self.variation, self.batch_tokens = variation, training.batch_token_budget
        self.order = order
        self.batches_per_update, self.max_epochs = training.batches_per_update, training.max_epochs
        self.seed = seed
        self._epoch: tuple[int, EpochBatches | MixedBatches] | None = None
        # Sampling changes the sampler, and an update without skipped pairs is fetched while a thread fetches the next.
        self._variation_lock = Lock()

    def epoch_batches(self, epoch: int) -> EpochBatches | MixedBatches:
        """Return the batches of an epoch; the latest epoch asked for is cached."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = None  # with weights, two epochs would take much memory
            self._epoch = epoch, self.order.epoch(epoch)
        return self._epoch[1]

    def updates(self, epoch: int, batch: int) -> Iterator[Update]:
        """Yield the updates from a batch of an epoch to the end of the last epoch, without their micro-batches."""
        batches = self._batches(epoch, batch)
        while taken := list(islice(batches, self.batches_per_update)):
            last = taken[-1]
            pairs, passes = [each.pairs for each in taken], [each.passes for each in taken if self.variation]
            samples = [sample for each in taken for sample in each.samples]
            yield Update(pairs, last.epoch, last.number, last.num_batches, passes, samples)

    def endless_updates(self) -> Iterator[Update]:
        """Yield the updates from the first on, and all of them again after the last epoch."""
        while True:
            yield from self.updates(0, 0)

    def num_updates(self, num_epochs: int) -> int:
        """Return the number of updates of the first epochs."""
        return -(-num_batches_of(self.order, num_epochs) // self.batches_per_update)

    def _batches(self, epoch: int, first: int) -> Iterator[_EpochBatch]:
        """Yield the batches to the end of the last epoch."""
        while self.max_epochs is None or epoch < self.max_epochs:
            batches = self.epoch_batches(epoch)
            if self.variation is None:
                for number in range(first, len(batches)):
                    yield _EpochBatch(epoch, number, len(batches), batches[number], _NONE, ())
            else:
                yield from self._rebatched(self.variation, epoch, batches, first)
            del batches  # before the next epoch is made
            epoch, first = epoch + 1, 0

    def _rebatched(
        self, variation: Variation, epoch: int, batches: EpochBatches | MixedBatches, first: int
    ) -> Iterator[_EpochBatch]:
        """Yield batches of pairs that are of similar length in this pass.

        The pairs of a window of batches are divided among as many batches, so that the number of batches in an epoch
        does not depend on the samples, and any batch can be made without those before its window.
        """
        for start in range(first - first % _WINDOW, len(batches), _WINDOW):
            numbers = range(start, min(start + _WINDOW, len(batches)))
            pairs = np.concatenate([batches[number] for number in numbers])
            passes = np.concatenate([batches.passes(number) for number in numbers])
            with self._variation_lock:
                samples = list(zip(*variation.rows(pairs, passes), strict=True))
            src, tgt = np.array([(len(src), len(tgt)) for src, tgt in samples], np.int32).T
            sizes = pair_sizes(src, tgt)
            order = np.lexsort((np.where(sizes % 2, src - tgt, tgt - src), sizes))
            formed = split_evenly(sizes, order, len(numbers))
            permutation = np.random.default_rng((self.seed, epoch, start)).permutation(len(formed))
            for number, batch in zip(numbers, permutation.tolist(), strict=True):
                if number >= first:
                    rows = formed[batch]
                    own = [samples[row] for row in rows.tolist()]
                    yield _EpochBatch(epoch, number, len(batches), pairs[rows], passes[rows], own)

    def prefetch(self, updates: Iterator[Update], min_micro_batches: int) -> Generator[Update, None, None]:
        """Yield the updates with their micro-batches; a thread fetches the next while the caller runs one.

        What the thread raises is raised where its update was due. Close this generator to end the thread.
        """

        def fetch_next() -> Update | None:
            update = next(updates, None)
            return None if update is None else self.fetch(update, min_micro_batches)

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            future = thread.submit(fetch_next)
            while (update := future.result()) is not None:
                future = thread.submit(fetch_next)
                yield update

    def fetch(self, update: Update, min_micro_batches: int) -> Update:
        """Return the update with this process's micro-batches on the device.

        Args:
            update: update to fetch.
            min_micro_batches: least number of micro-batches per batch; processes and workers may require more.
        """
        if self.variation is not None:
            return self._fetch_varied(self.variation, update, min_micro_batches)
        split = split_into_micro_batches(update.batches, self.num_shares, min_micro_batches)
        micro_batches = {}
        for number in range(self.world.rank, len(split), self.world.size):
            pairs = split[number]
            chosen = pairs if len(pairs) else update.batches[0][:1]
            batch = make_batch(self.corpus, chosen, self.special, self.links)
            batch = batch if len(pairs) else without_targets(batch)
            micro_batches[number] = TensorBatch.from_batch(batch, self.device, self.packed_pad)
        return replace(update, micro_batches=micro_batches)

    def _fetch_varied(self, variation: Variation, update: Update, min_micro_batches: int) -> Update:
        """Return the update with this process's micro-batches, of pairs that vary from pass to pass.

        Every process makes the rows of all, to know how many micro-batches and target tokens the update has.
        """
        pairs = np.concatenate(update.batches)
        passes = np.concatenate(update.passes) if update.passes else np.zeros_like(pairs)
        if update.samples:
            srcs, tgts = map(list, zip(*update.samples, strict=True))
        else:
            with self._variation_lock:
                srcs, tgts = variation.rows(pairs, passes)
        src_lengths, tgt_lengths = (np.fromiter(map(len, rows), np.int32, len(rows)) for rows in (srcs, tgts))
        ends = np.cumsum([len(batch) for batch in update.batches])
        rows = np.split(np.arange(len(pairs)), ends[:-1])
        slices = split_into_micro_batches(rows, self.num_shares, min_micro_batches)
        widths = np.repeat([self.row_budget(len(batch)) for batch in rows], len(slices) // len(rows)).tolist()
        budgets = [len(each) * width for each, width in zip(slices, widths, strict=True)]
        parts = split_to_fit(slices, pair_sizes(src_lengths, tgt_lengths), budgets, self.num_shares)
        micro_batches = {}
        for number, part in parts.items():
            if number % self.world.size == self.world.rank:
                chosen = part.tolist() or [0]
                sides = [srcs[row] for row in chosen], [tgts[row] for row in chosen]
                batch = collate_pairs(*sides, pairs[chosen], self.special)
                batch = batch if len(part) else without_targets(batch)
                micro_batches[number] = TensorBatch.from_batch(batch, self.device, self.packed_pad)
        num_targets = int(tgt_lengths.sum()) + len(tgts)
        return replace(update, micro_batches=micro_batches, num_targets=num_targets)

    def num_micro_batches(self, least: int) -> int:
        """Return how many micro-batches a batch of a whole update is split into, at least `least`."""
        return len(split_into_micro_batches([_NONE] * self.batches_per_update, self.num_shares, least)) // (
            self.batches_per_update
        )

    def row_budget(self, num_rows: int) -> int:
        """Return the positions on its longer side that each row of a batch may take before the batch is split."""
        return max(1, int(_OVERSIZE * self.batch_tokens) // num_rows)

    def num_targets(self, update: Update) -> int:
        """Return the number of real target tokens of an update, eos included, over all processes."""
        if update.num_targets is not None:
            return update.num_targets
        return sum(int(self.corpus.tgt_lengths[batch].sum()) + len(batch) for batch in update.batches)
