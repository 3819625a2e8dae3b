"""The updates of a run: which batches each one has, and their micro-batches on the device, prefetched in a thread.

The order of batches is a function of (seed, epoch). An update is `batches_per_update` batches in that order. Each batch
is split into micro-batches, which are dealt to the processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from mtkit.config.sections import TrainingConfig
from mtkit.data.batching import SpecialIds, empty_batch, make_batch, split_into_micro_batches
from mtkit.data.corpus import Corpus
from mtkit.data.order import BatchOrder, EpochBatches, Indices, MixedBatches, MixedOrder
from mtkit.errors import ConfigError
from mtkit.training.distributed import World
from mtkit.training.loss import TensorBatch


@dataclass(frozen=True)
class Update:
    """The batches of an optimizer update.

    Attributes:
        batches: indices of the pairs of each batch.
        epoch: epoch of the last batch.
        last_batch: number of the last batch in that epoch.
        micro_batches: this process's micro-batches on the device, by their number among those of all processes; empty
            until they are fetched.
    """

    batches: Sequence[Indices]
    epoch: int = 0
    last_batch: int = 0
    micro_batches: dict[int, TensorBatch] = field(default_factory=dict)

    def pairs(self) -> list[int]:
        """Return the indices of its pairs."""
        return [int(index) for batch in self.batches for index in batch]

    def without(self, skipped: Sequence[int]) -> Update:
        """Return the update without some pairs: itself if it has none of them, otherwise one that is not fetched."""
        if not any(np.isin(batch, skipped).any() for batch in self.batches):
            return self
        rest = (batch[~np.isin(batch, skipped)] for batch in self.batches)
        return Update([batch for batch in rest if len(batch)], self.epoch, self.last_batch)


def make_order(
    corpus: Corpus, training: TrainingConfig, seed: int, weights: Sequence[float] = ()
) -> BatchOrder | MixedOrder:
    """Return the order of batches of a corpus.

    Args:
        corpus: the encoded training pairs.
        training: section `training`.
        seed: seed of the order.
        weights: how often an epoch has each source of the corpus; by default once.

    Raises:
        ConfigError: If the weights leave no pair.
    """
    lengths = corpus.src_lengths, corpus.tgt_lengths
    if all(weight == 1 for weight in weights):
        return BatchOrder(*lengths, training.batch_token_budget, seed)
    sources = corpus.sources_of_pairs()
    if all(weight * np.count_nonzero(sources == number) < 1 for number, weight in enumerate(weights)):
        what = "the weights of the corpora leave less than a pair in an epoch"
        raise ConfigError(what, where="data.train", hint="raise a weight")
    return MixedOrder(*lengths, training.batch_token_budget, seed, sources, weights)


class UpdateLoader:
    """Yields the updates of a run, and fetches their micro-batches.

    Args:
        corpus: the encoded training pairs.
        special: ids that frame sentences.
        training: section `training`.
        seed: seed of the order.
        world: the processes that share each update.
        device: device of the micro-batches.
        weights: how often an epoch has each source of the corpus; by default once.
    """

    def __init__(
        self,
        corpus: Corpus,
        special: SpecialIds,
        training: TrainingConfig,
        seed: int,
        world: World,
        device: torch.device,
        weights: Sequence[float] = (),
    ) -> None:
        self.corpus, self.special, self.world, self.device = corpus, special, world, device
        self.links = corpus.links if training.guided_alignment else None
        self.order = make_order(corpus, training, seed, weights)
        self.batches_per_update, self.max_epochs = training.batches_per_update, training.max_epochs
        lengths = corpus.tgt_lengths
        if isinstance(self.order, MixedOrder):
            lengths = lengths[self.order.pairs_of(0)]
        self.target_tokens_per_epoch = int(lengths.sum(dtype=np.int64)) + len(lengths)
        self._epoch: tuple[int, EpochBatches | MixedBatches] | None = None

    def epoch_batches(self, epoch: int) -> EpochBatches | MixedBatches:
        """Return the batches of an epoch; the latest epoch asked for is cached."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self.order.epoch(epoch)
        return self._epoch[1]

    def updates(self, epoch: int, batch: int) -> Iterator[Update]:
        """Yield the updates from a batch of an epoch to the end of the last epoch, without their micro-batches."""
        batches = self._batches(epoch, batch)
        while taken := list(islice(batches, self.batches_per_update)):
            last_epoch, last_batch, _ = taken[-1]
            yield Update([indices for _, _, indices in taken], last_epoch, last_batch)

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[int, int, Indices]]:
        """Yield (epoch, number in the epoch, pairs) of each batch to the end of the last epoch."""
        while self.max_epochs is None or epoch < self.max_epochs:
            batches = self.epoch_batches(epoch)
            for number in range(first, len(batches)):
                yield epoch, number, batches[number]
            epoch, first = epoch + 1, 0

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
            min_micro_batches: least number of micro-batches per batch; the number of processes may require more.
        """
        split = split_into_micro_batches(update.batches, self.world.size, min_micro_batches)
        micro_batches = {}
        for number in range(self.world.rank, len(split), self.world.size):
            pairs = split[number]
            make, pairs = (make_batch, pairs) if len(pairs) else (empty_batch, update.batches[0])
            batch = make(self.corpus, pairs, self.special, self.links)
            micro_batches[number] = TensorBatch.from_batch(batch, self.device)
        return replace(update, micro_batches=micro_batches)

    def num_targets(self, update: Update) -> int:
        """Return the number of real target tokens of an update, eos included, over all processes."""
        return sum(int(self.corpus.tgt_lengths[batch].sum()) + len(batch) for batch in update.batches)
