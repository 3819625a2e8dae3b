"""From the rows of a file to pairs: which columns are the two sides, and TSV, CSV and JSONL read strictly.

These three are read here and not by `datasets`, which guesses types: it would turn "2020-01-01" into a time,
"42" into a number and "NA" into nothing, and could not name the line of a fault.
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
"""The column that by convention holds both sides, by language code."""

_MAX_CELL_CHARS = 1 << 27


class Pair(NamedTuple):
    """A sentence and its translation."""

    src: str
    tgt: str


NumberedPairs = Iterator[tuple[int, Pair]]
"""Pairs, each with the line at which it begins or the row of its table, from 1."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are the two sides."""

    names: tuple[str, str] | None
    """As the config says; None is by convention: `translation`, else the columns named by the languages."""
    languages: tuple[str, str]
    """The codes of source and target."""

    def choose(self, there: Sequence[str], where: str) -> tuple[str, str] | None:
        """The two columns among those there; None is `translation`. Raises: DataError: they are missing."""
        if self.names is None and TRANSLATION in there:
            return None
        wanted = self.names or self.languages
        _refuse_missing("column", wanted, there, where, "name them, source first: columns: [source, target]")
        return wanted

    def pick(self, row: Mapping[str, object], where: str) -> Pair:
        """The pair in a row. Raises: DataError: a column is missing, or its value is not text."""
        chosen = self.choose(list(row), where)
        if chosen is None:
            return self.pick_translation(row[TRANSLATION], where)
        src, tgt = chosen
        return Pair(check_text(row[src], src, where), check_text(row[tgt], tgt, where))

    def pick_translation(self, sides: object, where: str) -> Pair:
        """The pair in a cell of `translation`. Raises: DataError: a language is missing, or is not text."""
        if not isinstance(sides, Mapping):
            hint = 'such as {"en": "Hello", "de": "Hallo"}'
            raise DataError(f"the column {TRANSLATION!r} does not hold languages", where=where, hint=hint)
        src, tgt = self.languages
        _refuse_missing("language", self.languages, [*sides], where, "data.src and data.tgt are such codes")
        return Pair(check_text(sides[src], src, where), check_text(sides[tgt], tgt, where))


def _refuse_missing(kind: str, wanted: Sequence[str], there: Sequence[str], where: str, hint: str) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        names = f" and no {kind} ".join(map(repr, missing))
        what = f"no {kind} {names}; there are: {', '.join(map(repr, there))}"
        raise DataError(what, where=where, hint=hint)


def check_text(value: object, column: str, where: str) -> str:
    """A cell as one line of text: a line break in it becomes a space, because a sentence is a line.

    Raises:
        DataError: it is null, not a string, or holds a NUL.
    """
    if not isinstance(value, str):
        what = "null" if value is None else f"{value!r:.40}, not text"
        raise DataError(f"the column {column!r} is {what}", where=where, hint="repair or remove the row")
    if "\0" in value:
        raise DataError(f"a NUL character in column {column!r}", where=where, hint="remove the character")
    return value.replace("\r\n", " ").replace("\n", " ") if "\n" in value else value


def read_tsv(path: Path, columns: Columns) -> NumberedPairs:
    """Lines cut at every tab, no quoting: the first two columns, or those that a header names.

    There is a header if and only if `columns` has names.

    Raises:
        DataError: too few columns in a line, or a name that is not in the header; with file:line.
    """
    lines = enumerate(read_lines(path), 1)
    src, tgt = 0, 1
    if columns.names is not None:
        header = next(lines, (1, ""))[1].split("\t")
        columns.choose(header, f"{path}:1")
        src, tgt = (header.index(name) for name in columns.names)
    num_needed = max(src, tgt) + 1
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) < num_needed:
            hint = "one tab stands between source and target"
            raise DataError(f"{len(cells)} of {num_needed} columns", where=f"{path}:{number}", hint=hint)
        yield number, Pair(cells[src], cells[tgt])


def read_csv(path: Path, columns: Columns) -> NumberedPairs:
    """Comma-separated values below a header, quoted as in RFC 4180; blank lines are skipped.

    Raises:
        DataError: faulty quotes, too many or too few cells in a row, no such columns; with file:line.
    """
    rows = _csv_rows(path)
    first_line, header = next(rows, (1, []))
    names = columns.names or columns.languages
    Columns(names, columns.languages).choose(header, f"{path}:{first_line}")
    src, tgt = (header.index(name) for name in names)
    for number, cells in rows:
        where = f"{path}:{number}"
        if len(cells) != len(header):
            hint = "a text with a comma in it stands in double quotes"
            raise DataError(f"{len(cells)} cells under a header of {len(header)}", where=where, hint=hint)
        yield number, Pair(check_text(cells[src], names[0], where), check_text(cells[tgt], names[1], where))


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line at which it begins."""
    csv.field_size_limit(_MAX_CELL_CHARS)  # The default refuses cells over 128 KiB.
    rows = csv.reader((line + "\n" for line in read_lines(path)), strict=True)
    first_line = 1
    try:
        for cells in rows:
            if cells:
                yield first_line, cells
            first_line = rows.line_num + 1
    except csv.Error as error:
        hint = 'a text with quotes in it stands in quotes and doubles them: "say ""yes"""'
        raise DataError(f"not CSV: {error}", where=f"{path}:{first_line}", hint=hint) from error


def read_jsonl(path: Path, columns: Columns) -> NumberedPairs:
    """One JSON object a line; blank lines are skipped.

    Raises:
        DataError: a line that is not a JSON object, or lacks the columns as text; with file:line.
    """
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield number, _json_pair(line, columns, f"{path}:{number}")


def _json_pair(line: str, columns: Columns, where: str) -> Pair:
    hint = 'one JSON object a line, such as {"en": "Hello", "de": "Hallo"}'
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} at character {error.colno}"
        raise DataError(what, where=where, hint=hint) from error
    except (ValueError, RecursionError) as error:  # A number of thousands of digits, a thousand brackets.
        raise DataError(f"not JSON for texts: {error}", where=where, hint=hint) from error
    if not isinstance(row, dict):
        raise DataError("not a JSON object", where=where, hint=hint)
    pair = columns.pick(row, where)
    if "\\u" in line:
        try:
            "".join(pair).encode()
        except UnicodeEncodeError as error:
            raise DataError("half of a surrogate pair", where=where, hint="repair the \\u escape") from error
    return pair
