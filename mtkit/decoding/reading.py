"""Streams of any length, read ahead piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from mtkit.errors import MtkitError

T = TypeVar("T")


def in_chunks(items: Iterable[T], number: int) -> Iterator[list[T]]:
    """Lists of so many items, the last of fewer.

    Raises:
        MtkitError: what reading raises; after a list of the items before it.
    """
    stream = iter(items)
    while True:
        chunk: list[T] = []
        fault = None
        try:
            for item in islice(stream, number):
                chunk.append(item)
        except MtkitError as error:
            fault = error
        if chunk:
            yield chunk
        if fault is not None:
            raise fault
        if len(chunk) < number:
            return
