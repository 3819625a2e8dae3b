"""`mtkit benchmark data`: what a pair costs before it is trained on, in time and memory of each process.

Lengths are drawn like those of news (see mtkit/benchmark/synthetic.py), for as many pairs as one likes; only the
encoding needs text, and takes that of a config.
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from rich.table import Table

from mtkit.benchmark.synthetic import random_lengths
from mtkit.config.sections import Config
from mtkit.data.encoding import encode_corpus
from mtkit.data.filters import DigestSet
from mtkit.data.order import BatchOrder, Lengths
from mtkit.data.sources import Source
from mtkit.training.inputs import cached_tokenizers, open_splits

_BATCH_TOKENS = 4096
LONGEST = 250
_MEASURED_BATCHES = 2000
_DIGESTS_AT_ONCE = 1 << 14

Say = Callable[[str], None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """What a piece of work costs a pair."""

    work: str
    microseconds: float
    cpu_microseconds: float
    """Of all threads."""
    bytes_held: float | None = None
    """All that is in memory when it is done."""
    bytes_peak: float | None = None
    """The most memory while it was done, what was held before included."""


@dataclass(frozen=True)
class DataBenchmark:
    """What was measured."""

    num_pairs: int
    costs: tuple[Cost, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> Table:
        """For a terminal."""
        table = Table("a pair's cost", "µs", "CPU µs", "bytes held", "bytes at the peak")
        for cost in self.costs:
            numbers = (cost.bytes_held, cost.bytes_peak)
            sizes = ["" if number is None else f"{number:.2f}" for number in numbers]
            table.add_row(cost.work, f"{cost.microseconds:.4f}", f"{cost.cpu_microseconds:.4f}", *sizes)
        return table


def benchmark_data(
    num_pairs: int, config: Config | None = None, say: Say = lambda line: None
) -> DataBenchmark:
    """Measure the order of batches and the search for duplicates; with a config, the encoding of its training pairs.

    Args:
        num_pairs: of which the lengths are drawn.
        config: names the text; the cache is not looked into.
        say: told what is going on.

    Raises:
        ConfigError, DataError, StorageError: what reading and encoding raise.
    """
    say(f"drawing the lengths of {num_pairs:,} pairs")
    rng = np.random.default_rng(1)
    src, tgt = (lengths.astype(np.int16) for lengths in random_lengths(rng, num_pairs, LONGEST))
    say("order of the batches")
    costs = _order_costs(src, tgt)
    del src, tgt
    say("duplicates")
    costs.append(_duplicates_cost(num_pairs))
    if config is not None:
        say("encoding")
        costs.append(_encoding_cost(config))
    return DataBenchmark(num_pairs, tuple(costs))


def _order_costs(src_lengths: Lengths, tgt_lengths: Lengths) -> list[Cost]:
    """What a run holds and does: the lengths, the order of all epochs, the beginning of one, the pairs of a batch."""
    held = (src_lengths.nbytes + tgt_lengths.nbytes) / len(src_lengths)
    with Meter(len(src_lengths), held).measuring() as meter:
        order = meter(
            "sorting, cutting and padding, once",
            lambda: BatchOrder(src_lengths, tgt_lengths, _BATCH_TOKENS, seed=1),
        )
        meter("largest and smallest batch", lambda: (order.epoch(0).largest(), order.epoch(0).smallest()))
        before = order.epoch(0)
        batches = meter("the border of two epochs", lambda: order.epoch(1))
        del before
    number = min(_MEASURED_BATCHES, len(batches))
    fetched = Meter(sum(len(batches[i]) for i in range(number)))
    fetched("which pairs are in a batch", lambda: [batches[i] for i in range(number)])
    fetching = replace(fetched.costs[0], bytes_held=None, bytes_peak=None)
    return [Cost("lengths", 0.0, 0.0, held, held), *meter.costs, fetching]


def _duplicates_cost(num_pairs: int) -> Cost:
    """Looking up and remembering digests; every eleventh has come before."""
    rng, digests = np.random.default_rng(1), DigestSet()

    def add_all() -> None:
        for first in range(0, num_pairs, _DIGESTS_AT_ONCE):
            values = rng.integers(2**64, size=min(_DIGESTS_AT_ONCE, num_pairs - first), dtype=np.uint64)
            digests.add(np.concatenate([values, values[::10]]))

    with Meter(num_pairs).measuring() as meter:
        meter("duplicates, hashing apart", add_all)
    return meter.costs[0]


def _encoding_cost(config: Config) -> Cost:
    """Reading, filtering, tokenizing and writing, for each pair that is read."""
    sources: list[Source] = open_splits(config)["train"]
    tokenizers = cached_tokenizers(config, sources, lambda line: None)
    with tempfile.TemporaryDirectory(prefix="mtkit-benchmark-") as scratch:
        data = config.data.model_copy(update={"cache": scratch})
        start, cpu = time.perf_counter(), time.process_time()
        corpus = encode_corpus(sources, tokenizers, data)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        number = corpus.counts.num_read
    return Cost(f"encoding {number:,} pairs", 1e6 * seconds / number, 1e6 * cpu / number)


class Meter:
    """Measures calls: their time, and the memory that numpy tells Python of, a pair.

    Args:
        num_pairs: over which all is divided.
        before: bytes a pair that were taken before.
    """

    def __init__(self, num_pairs: int, before: float = 0.0) -> None:
        self.num_pairs, self.before = num_pairs, before
        self.costs: list[Cost] = []

    @contextmanager
    def measuring(self) -> Iterator[Meter]:
        """What is allocated in the block counts."""
        tracemalloc.start(1)
        try:
            yield self
        finally:
            tracemalloc.stop()

    def __call__(self, work: str, call: Callable[[], Result]) -> Result:
        """Measure a call. Returns what it returns."""
        tracemalloc.reset_peak()
        start, cpu = time.perf_counter(), time.process_time()
        result = call()
        times = (1e6 * (time.perf_counter() - start), 1e6 * (time.process_time() - cpu))
        sizes = (self.before + number / self.num_pairs for number in tracemalloc.get_traced_memory())
        self.costs.append(Cost(work, *(number / self.num_pairs for number in times), *sizes))
        return result
