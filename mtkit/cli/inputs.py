"""Input files of a command as lines: text line by line, one side of a document unit by unit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mtkit.cli.terminal import print_stderr
from mtkit.data.documents import is_document, read_side, unread_sheets_note
from mtkit.files import LineReader, count_lines

ReadDocument = Callable[[Path], Iterator[str]]
"""Yields the lines of a document."""


def texts_of(language: str) -> ReadDocument:
    """Return what reads the side of a document in a language, one line for each unit; see `read_side`."""
    return lambda path: (text for _, text in read_side(path, language))


def warn_about_sheets(paths: Iterable[str]) -> None:
    """Say which of these files are spreadsheets with more sheets than the one that is read.

    Raises:
        DataError: If one cannot be read.
    """
    for path in filter(os.path.isfile, paths):
        if (note := unread_sheets_note(Path(path))) is not None:
            print_stderr(note)


def count_input_lines(path: str, read_document: ReadDocument) -> int:
    """Return the number of lines of a file. A document is read for it from beginning to end, and so checked.

    Raises:
        DataError: If the file cannot be read.
    """
    return sum(1 for _ in read_document(Path(path))) if is_document(path) else count_lines(path)


def open_inputs(paths: Sequence[str], read_document: ReadDocument, *, keep_bad: bool) -> LineReader:
    """Return a reader of the lines of all files, one after the other.

    Args:
        paths: text and documents; "-" is stdin.
        read_document: see `ReadDocument`.
        keep_bad: yield an invalid line of a text file as a `BadLine` instead of raising an error.
    """
    return LineReader(
        [read_document(Path(path)) if is_document(path) else path for path in paths], keep_bad=keep_bad
    )
