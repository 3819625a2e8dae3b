"""Reads streams of any length ahead, in chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 0.02
"""Time to wait for the items of a chunk, all together: too short to be noticed, and a fast writer fills the chunk."""


def always_ready(seconds: float) -> bool:
    """Return True: the next item is never waited for."""
    return True


def read_chunks(
    items: Iterable[T], number: int, is_ready: Callable[[float], bool] = always_ready
) -> Iterator[list[T]]:
    """Yield lists of `number` items; shorter ones where the next item is not ready, and at the end.

    Args:
        items: the stream.
        number: items of a full list.
        is_ready: called after each item with a number of seconds; returns whether the next item, or the end, comes
            within that time.

    Raises:
        Exception: If reading raises it; after a list of the items before it.
    """
    stream = iter(items)
    while True:
        chunk: list[T] = []
        fault, ended, patience = None, True, PATIENCE_SECONDS
        try:
            for item in islice(stream, number):
                chunk.append(item)
                asked = time.monotonic()
                if len(chunk) == number or not is_ready(max(0.0, patience)):
                    ended = False
                    break
                patience -= time.monotonic() - asked
        except Exception as error:
            fault = error
        if chunk:
            yield chunk
        if fault is not None:
            raise fault
        if ended:
            return
