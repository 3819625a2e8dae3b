"""Files that go together line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import TypeVar, cast

from mtkit.errors import DataError

T = TypeVar("T")


def in_step(
    columns: Sequence[Iterator[str] | None], names: Sequence[str | None], first: int = 1
) -> Iterator[list[str]]:
    """Line by line through several files, of which some may be missing. Raises: DataError: one ends too early.

    Args:
        first: number of the first line, for the message.
    """
    for number in count(first):
        row = [next(column, None) if column is not None else "" for column in columns]
        if all(value is None for value, column in zip(row, columns, strict=True) if column is not None):
            return
        for value, name in zip(row, names, strict=True):
            if value is None:
                what = f"ends before line {number:,} of the others"
                raise DataError(what, where=name, hint="line n of one goes with line n of the other")
        yield cast(list[str], row)


def refuse_unequal(
    name: str, hyps: Sequence[str], ref_names: Sequence[str], refs: Sequence[Sequence[str]]
) -> None:
    """Check that every file of references has a line for each translation. Raises: DataError."""
    for ref_name, stream in zip(ref_names, refs, strict=False):
        if len(stream) != len(hyps):
            what = f"{len(hyps):,} lines, but {len(stream):,} in {ref_name}"
            raise DataError(what, where=name, hint="line n of one goes with line n of the other")


def begun(items: Iterator[T]) -> Iterator[T]:
    """The same items; the first is made now."""
    return chain(list(islice(items, 1)), items)
