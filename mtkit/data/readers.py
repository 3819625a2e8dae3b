"""Strict readers of TSV, CSV and JSONL, and the choice of the columns for source and target.

In: a file of pairs. Out: its pairs, each with its line.

`datasets` is not used for these formats because it guesses types: it would turn "2020-01-01" into a time, "42" into a
number and "NA" into a null, and could not name the line of an error.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mtkit.errors import DataError
from mtkit.files import read_lines

TRANSLATION = "translation"
"""The column that by convention contains both sides, keyed by language code."""

_MAX_CELL_CHARS = 1 << 27
_NOT_IN_CELLS = str.maketrans("\t\r\n", "   ")


class Pair(NamedTuple):
    """A sentence and its translation."""

    src: str
    tgt: str


NumberedPairs = Iterator[tuple[int, Pair]]
"""Pairs, each with the line at which it begins or its row in the table, from 1."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table that contain source and target."""

    names: tuple[str, str] | None
    """Names from the config; None for the convention: `translation`, or else columns named like the languages."""
    languages: tuple[str, str]
    """Language codes of source and target."""

    def select(self, header: Sequence[str], where: str) -> tuple[str, str] | None:
        """Return the names of the two columns, or None if both sides are in `translation`.

        Raises:
            DataError: If the header lacks them.
        """
        if self.names is None and TRANSLATION in header:
            return None
        names = self.names or self.languages
        _check_present("column", names, header, where, "name them, source first: columns: [source, target]")
        return names

    def extract_pair(self, row: Mapping[str, object], where: str) -> Pair:
        """Return the pair in a row.

        Raises:
            DataError: If a column is missing, or its value is not text.
        """
        names = self.select(list(row), where)
        if names is None:
            return self.extract_translation(row[TRANSLATION], where)
        src, tgt = names
        return Pair(check_text(row[src], src, where), check_text(row[tgt], tgt, where))

    def extract_translation(self, cell: object, where: str) -> Pair:
        """Return the pair in a cell of the `translation` column.

        Raises:
            DataError: If a language is missing, or its value is not text.
        """
        if not isinstance(cell, Mapping):
            hint = 'such as {"en": "Hello", "de": "Hallo"}'
            what = f"the column {TRANSLATION!r} does not contain texts by language"
            raise DataError(what, where=where, hint=hint)
        src, tgt = self.languages
        _check_present("language", self.languages, [*cell], where, "data.src and data.tgt are such codes")
        return Pair(check_text(cell[src], src, where), check_text(cell[tgt], tgt, where))


def _check_present(kind: str, names: Sequence[str], present: Sequence[str], where: str, hint: str) -> None:
    """Check that all names are present.

    Raises:
        DataError: If one is not.
    """
    missing = [name for name in names if name not in present]
    if missing:
        what = f"no {kind} {f' and no {kind} '.join(map(repr, missing))}; there are: {', '.join(map(repr, present))}"
        raise DataError(what, where=where, hint=hint)


def check_text(value: object, column: str, where: str) -> str:
    """Return a cell as one line of text: line breaks become spaces, because a sentence is a line.

    Raises:
        DataError: If it is null, not a string, or contains a NUL.
    """
    if not isinstance(value, str):
        what = "null" if value is None else f"{value!r:.40}, not text"
        raise DataError(f"the column {column!r} is {what}", where=where, hint="repair or remove the row")
    if "\0" in value:
        raise DataError(f"a NUL character in column {column!r}", where=where, hint="remove the character")
    return value.replace("\r\n", " ").replace("\n", " ") if "\n" in value else value


def read_tsv(path: Path, columns: Columns) -> NumberedPairs:
    """Yield the pairs of a TSV: lines split at every tab, without quoting.

    If `columns` has names, the first line is a header with them, unless they are numbers of columns, from 1. Otherwise
    there is no header, and the first two columns are source and target.

    Raises:
        DataError: If a line has too few columns, or the header lacks a name (at file:line).
    """
    lines = enumerate(read_lines(path), 1)
    src, tgt = 0, 1
    if columns.names is not None and all(name.isdecimal() and int(name) > 0 for name in columns.names):
        src, tgt = (int(name) - 1 for name in columns.names)
    elif columns.names is not None:
        header = next(lines, (1, ""))[1].split("\t")
        columns.select(header, f"{path}:1")
        src, tgt = (header.index(name) for name in columns.names)
    num_needed = max(src, tgt) + 1
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) < num_needed:
            hint = "separate source and target by one tab"
            raise DataError(f"{len(cells)} of {num_needed} columns", where=f"{path}:{number}", hint=hint)
        yield number, Pair(cells[src], cells[tgt])


def as_cell(text: str) -> str:
    """Return a text as a cell of a TSV, which has no quoting: without tabs and line breaks."""
    return text.translate(_NOT_IN_CELLS).strip()


def read_csv(path: Path, columns: Columns) -> NumberedPairs:
    """Yield the pairs of a CSV with a header, quoted as in RFC 4180; blank lines are skipped.

    Raises:
        DataError: If quotes are malformed, a row has too many or too few cells, or the header lacks the columns (at
            file:line).
    """
    rows = csv_rows(path)
    first_line, header = next(rows, (1, []))
    names = columns.names or columns.languages
    Columns(names, columns.languages).select(header, f"{path}:{first_line}")
    src, tgt = (header.index(name) for name in names)
    for number, cells in rows:
        where = f"{path}:{number}"
        if len(cells) != len(header):
            hint = "put a text that contains a comma in double quotes"
            raise DataError(f"{len(cells)} cells, but {len(header)} in the header", where=where, hint=hint)
        yield number, Pair(check_text(cells[src], names[0], where), check_text(cells[tgt], names[1], where))


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the line at which it begins.

    Raises:
        DataError: If the file cannot be read, or is not CSV.
    """
    csv.field_size_limit(_MAX_CELL_CHARS)  # The default refuses cells over 128 KiB.
    rows = csv.reader((line + "\n" for line in read_lines(path)), strict=True)
    first_line = 1
    try:
        for cells in rows:
            if cells:
                yield first_line, cells
            first_line = rows.line_num + 1
    except csv.Error as error:
        hint = 'put a text that contains quotes in quotes, and double them: "say ""yes"""'
        raise DataError(f"not CSV: {error}", where=f"{path}:{first_line}", hint=hint) from error


def read_jsonl(path: Path, columns: Columns) -> NumberedPairs:
    """Yield the pairs of a file with one JSON object per line; blank lines are skipped.

    Raises:
        DataError: If a line is not a JSON object, or lacks the columns as text (at file:line).
    """
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield number, _json_pair(line, columns, f"{path}:{number}")


def _json_pair(line: str, columns: Columns, where: str) -> Pair:
    hint = 'one JSON object per line, such as {"en": "Hello", "de": "Hallo"}'
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} at character {error.colno}"
        raise DataError(what, where=where, hint=hint) from error
    except (ValueError, RecursionError) as error:
        # A number with thousands of digits, or thousands of nested brackets.
        raise DataError(f"not JSON: {error}", where=where, hint=hint) from error
    if not isinstance(row, dict):
        raise DataError("not a JSON object", where=where, hint=hint)
    pair = columns.extract_pair(row, where)
    if "\\u" in line:
        try:
            "".join(pair).encode()
        except UnicodeEncodeError as error:
            raise DataError("half of a surrogate pair", where=where, hint="repair the \\u escape") from error
    return pair
