"""Streams of any length, read ahead piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from mtkit.errors import MtkitError

T = TypeVar("T")

PATIENCE_SECONDS = 0.02
"""How long all items of a list together may be waited for: nobody notices it, and a fast writer fills the list."""


def always_ready(seconds: float) -> bool:
    """Say that nothing has to be waited for."""
    return True


def read_chunks(
    items: Iterable[T], number: int, is_ready: Callable[[float], bool] = always_ready
) -> Iterator[list[T]]:
    """Lists of so many items; of fewer where the next item would have to be waited for, and at the end.

    Args:
        is_ready: asked after each item whether the next one, or the end, comes within so many seconds.

    Raises:
        MtkitError: what reading raises; after a list of the items before it.
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
        except MtkitError as error:
            fault = error
        if chunk:
            yield chunk
        if fault is not None:
            raise fault
        if ended:
            return
