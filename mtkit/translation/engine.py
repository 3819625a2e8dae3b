"""Interface of what searches segments: mtkit's own models, or another engine that runs an exported model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mtkit.data.batching import Ids, split_by_tokens
from mtkit.search.state import Hypothesis, SearchOptions
from mtkit.translation.alignment import SegmentAttention
from mtkit.translation.options import PARALLEL, Parallelism
from mtkit.translation.segments import Segment


@dataclass(frozen=True)
class Search:
    """A search, which may have begun in the background.

    Attributes:
        finish: finishes it, and returns the hypotheses of each segment, best first.
        wants_more: returns whether workers are at it, and will soon have nothing to do unless another one is started.
    """

    finish: Callable[[], list[list[Hypothesis]]]
    wants_more: Callable[[], bool] = lambda: False


class Engine(Protocol):
    """A model that finds hypotheses of segments, in token ids.

    Attributes:
        options: options of the search; its token rules hold for the segments too.
    """

    options: SearchOptions

    def start_search(
        self,
        segments: Sequence[Segment],
        on_batch: Callable[[list[Segment]], None] | None = None,
        parallelism: Parallelism = PARALLEL,
    ) -> Search:
        """Start the search for the hypotheses of each segment.

        Args:
            segments: the segments.
            on_batch: called with the segments of each batch when it is done.
            parallelism: how many batches are searched at the same time on a CPU.
        """

    def align(
        self, pairs: Sequence[tuple[Ids, Ids]], parallelism: Parallelism = PARALLEL
    ) -> Iterator[tuple[int, SegmentAttention]]:
        """Yield the index of each pair of source and target tokens, and the attention between its sides."""


def search_in_batches(
    segments: Sequence[Segment],
    batch_tokens: int,
    search_batch: Callable[[list[Segment]], list[list[Hypothesis]]],
    on_batch: Callable[[list[Segment]], None] | None = None,
    num_workers: int = 1,
) -> list[list[Hypothesis]]:
    """Search segments in batches of similar length, the longest first, and return the hypotheses of each.

    Args:
        segments: the segments.
        batch_tokens: source tokens of a batch, padding included.
        search_batch: returns the hypotheses of each segment of a batch.
        on_batch: called with the segments of each batch when it is done.
        num_workers: batches that are searched at the same time, in threads.
    """
    found: list[list[Hypothesis]] = [[] for _ in segments]
    sizes = np.array([len(segment.ids) + 1 for segment in segments], dtype=np.int32)
    indices = split_by_tokens(sizes, np.argsort(-sizes, kind="stable"), batch_tokens)
    batches = [[segments[i] for i in own] for own in indices]
    with ThreadPoolExecutor(num_workers) as pool:
        results = map(search_batch, batches) if num_workers == 1 else pool.map(search_batch, batches)
        for own, batch, hyps in zip(indices, batches, results, strict=True):
            for i, best in zip(own, hyps, strict=True):
                found[i] = best
            if on_batch is not None:
                on_batch(batch)
    return found
