"""`mtkit benchmark data`: time and memory per training pair, in each process, before the model sees it.

Lengths are drawn from a model of news text (see mtkit/benchmark/synthetic.py), for any number of pairs. Only encoding
needs text, which comes from a config.
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
from mtkit.interop.initial import find_model
from mtkit.training.initial import open_initial_model
from mtkit.training.inputs import cached_tokenizers, open_splits
from mtkit.training.preset import choose_values

_BATCH_TOKENS = 4096
_MAX_LENGTH = 250
_MEASURED_BATCHES = 2000
_DIGESTS_PER_CALL = 1 << 14

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """Cost of one operation per pair."""

    work: str
    microseconds: float
    cpu_microseconds: float
    """CPU time of all threads."""
    bytes_held: float | None = None
    """Memory in use afterwards."""
    bytes_peak: float | None = None
    """Peak memory during the operation, including what was in use before."""


@dataclass(frozen=True)
class DataBenchmark:
    """Result of `benchmark_data`."""

    num_pairs: int
    costs: tuple[Cost, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """Return the result as a table for the terminal."""
        table = Table("cost per pair", "µs", "CPU µs", "bytes held", "bytes at peak")
        for cost in self.costs:
            numbers = (cost.bytes_held, cost.bytes_peak)
            sizes = ["" if number is None else f"{number:.2f}" for number in numbers]
            table.add_row(cost.work, f"{cost.microseconds:.4f}", f"{cost.cpu_microseconds:.4f}", *sizes)
        return table


def benchmark_data(
    num_pairs: int, config: Config | None = None, say: Callable[[str], None] = lambda line: None
) -> DataBenchmark:
    """Measure batch ordering and duplicate detection; with a config, also the encoding of its training pairs.

    Args:
        num_pairs: Number of pairs to draw lengths for.
        config: Names the text to encode; the cache is not used.
        say: Receives progress messages.

    Raises:
        ConfigError: If the tokenizer or a corpus cannot be used as configured.
        DataError: If a corpus is missing or malformed.
        StorageError: If a file cannot be read or written.
    """
    say(f"drawing the lengths of {num_pairs:,} pairs")
    rng = np.random.default_rng(1)
    src, tgt = (lengths.astype(np.int16) for lengths in random_lengths(rng, num_pairs, _MAX_LENGTH))
    say("ordering batches")
    costs = _order_costs(src, tgt)
    del src, tgt
    say("detecting duplicates")
    costs.append(_duplicates_cost(num_pairs))
    if config is not None:
        say("encoding")
        costs.append(_encoding_cost(config))
    return DataBenchmark(num_pairs, tuple(costs))


def _order_costs(src_lengths: Lengths, tgt_lengths: Lengths) -> list[Cost]:
    """Measure what a run does: hold lengths, order all epochs, begin an epoch, fetch the pairs of a batch."""
    held = (src_lengths.nbytes + tgt_lengths.nbytes) / len(src_lengths)
    meter = _CostMeter(len(src_lengths), held)
    with meter.tracing_memory():
        order = meter.measure(
            "sorting and batching, once",
            lambda: BatchOrder(src_lengths, tgt_lengths, _BATCH_TOKENS, seed=1),
        )
        meter.measure(
            "largest and smallest batch", lambda: (order.epoch(0).largest(), order.epoch(0).smallest())
        )
        before = order.epoch(0)
        batches = meter.measure("start of an epoch", lambda: order.epoch(1))
        del before  # it is still in memory when the next epoch starts
    number = min(_MEASURED_BATCHES, len(batches))
    fetch_meter = _CostMeter(sum(len(batches[i]) for i in range(number)))
    fetch_meter.measure("pairs of a batch", lambda: [batches[i] for i in range(number)])
    fetching = replace(fetch_meter.costs[0], bytes_held=None, bytes_peak=None)  # memory was not traced
    return [Cost("lengths", 0.0, 0.0, held, held), *meter.costs, fetching]


def _duplicates_cost(num_pairs: int) -> Cost:
    """Measure looking up and storing digests, of which every eleventh is a duplicate."""
    rng, digests = np.random.default_rng(1), DigestSet()

    def add_all() -> None:
        for first in range(0, num_pairs, _DIGESTS_PER_CALL):
            values = rng.integers(2**64, size=min(_DIGESTS_PER_CALL, num_pairs - first), dtype=np.uint64)
            digests.add(np.concatenate([values, values[::10]]))

    meter = _CostMeter(num_pairs)
    with meter.tracing_memory():
        meter.measure("duplicate detection without hashing", add_all)
    return meter.costs[0]


def _encoding_cost(config: Config) -> Cost:
    """Measure reading, filtering, tokenizing and writing, per pair read."""
    config, initial = open_initial_model(choose_values(config)[0], find_model)
    sources: list[Source] = open_splits(config.data)["train"]
    tokenizers = (
        initial.load_tokenizers() if initial else cached_tokenizers(config, sources, lambda line: None)
    )
    with tempfile.TemporaryDirectory(prefix="mtkit-benchmark-") as scratch:
        data = config.data.model_copy(update={"cache": scratch})
        start, cpu = time.perf_counter(), time.process_time()
        corpus = encode_corpus(sources, tokenizers, data)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        number = corpus.counts.num_read
    return Cost(f"encoding {number:,} pairs", 1e6 * seconds / number, 1e6 * cpu / number)


class _CostMeter:
    """Measures calls: time, and memory as tracemalloc sees it (NumPy's included), per pair.

    Args:
        num_pairs: Number of pairs to divide by.
        bytes_before: Bytes per pair in use before.
    """

    def __init__(self, num_pairs: int, bytes_before: float = 0.0) -> None:
        self.num_pairs, self.bytes_before = num_pairs, bytes_before
        self.costs: list[Cost] = []

    @contextmanager
    def tracing_memory(self) -> Iterator[None]:
        """Trace allocations within the block; outside, only time is measured."""
        tracemalloc.start(1)
        try:
            yield
        finally:
            tracemalloc.stop()

    def measure(self, work: str, call: Callable[[], Result]) -> Result:
        """Measure a call under this name and return its result."""
        tracemalloc.reset_peak()
        start, cpu = time.perf_counter(), time.process_time()
        result = call()
        times = (1e6 * (time.perf_counter() - start), 1e6 * (time.process_time() - cpu))
        sizes = (self.bytes_before + number / self.num_pairs for number in tracemalloc.get_traced_memory())
        self.costs.append(Cost(work, *(number / self.num_pairs for number in times), *sizes))
        return result
