"""Interface of what searches segments: mtkit's own models, or another engine that runs an exported model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from mtkit.data.batching import Ids
from mtkit.search.state import Hypothesis, SearchOptions
from mtkit.translation.alignment import SegmentAttention
from mtkit.translation.options import MAX_WORKERS
from mtkit.translation.segments import Segment


class Engine(Protocol):
    """A model that finds hypotheses of segments, in token ids.

    Attributes:
        options: options of the search; its token rules hold for the segments too.
    """

    options: SearchOptions

    def search_segments(
        self,
        segments: Sequence[Segment],
        on_batch: Callable[[list[Segment]], None] | None = None,
        num_workers: int = MAX_WORKERS,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each segment, best first.

        Args:
            segments: the segments.
            on_batch: called with the segments of each batch when it is done.
            num_workers: batches that may be searched at the same time on a CPU.
        """

    def align(self, pairs: Sequence[tuple[Ids, Ids]]) -> Iterator[tuple[int, SegmentAttention]]:
        """Yield the index of each pair of source and target tokens, and the attention between its sides."""
