"""Pairs from TMX, XLIFF and spreadsheets, the files of translators.

Each reader streams: a translation memory of any size is read in constant memory. What a file marks as code (tags of the
original document) is dropped, the text around it is kept, and a line break inside a segment becomes a space, because a
sentence is a line. Units without text on both sides are skipped.

The specifications are those of TMX 1.4b (https://www.ttt.org/oscarstandards/tmx/), XLIFF 1.2
(https://docs.oasis-open.org/xliff/v1.2/os/xliff-core.html) and XLIFF 2.1
(https://docs.oasis-open.org/xliff/xliff-core/v2.1/xliff-core-v2.1.html).
"""

from __future__ import annotations

import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter
from xml.parsers import expat

from mtkit.data.readers import Columns, NumberedPairs, Pair, check_text
from mtkit.errors import DataError
from mtkit.files import read_blocks, strip_compression
from mtkit.languages import short_code
from mtkit.packages import import_package

_DOCUMENT_SUFFIXES = (".tmx", ".xlf", ".xliff", ".xlsx")
MAX_SEGMENT_CHARS = 1 << 20
_MAX_DEPTH = 1000
MAX_LANGUAGES = 1000
"""What is nested deeper, or a unit in more languages, is hostile: memory would grow with it."""
_MAX_TOKEN_BYTES = 16 << 20
"""The longest tag or comment of an XML file: the parser holds all of it, and begins it again with every block."""
_PARSED_BYTES = 1 << 18
"""Size of the blocks that are parsed: the units in one are in memory at the same time."""
_MAX_SHEET_BYTES = 4 << 30
_MAX_SHEET_RATIO = 1000
"""A zip archive that unpacks to more than this, absolutely and relatively, is hostile."""
_NOT_WRITTEN = re.compile(
    r"xl/(drawings|media|charts|pivot|vbaProject|slicers|ctrlProps|embeddings)", re.IGNORECASE
)
"""Parts of a spreadsheet that openpyxl does not write, or not as they were: of comments it keeps the text alone."""
LINE_BREAKS = re.compile(r"[ \t]*[\r\n]+[ \t\r\n]*")
_ESCAPED = re.compile(r"_x00([01][0-9A-Fa-f])_")
"""A control character as a spreadsheet holds it, because XML cannot: _x000D_ is a carriage return."""

CODE_ELEMENTS = frozenset(("bpt", "ept", "ph", "it", "ut"))
"""Inline elements of TMX and XLIFF 1.2 whose content is code of the original document, not text."""


class Unit(NamedTuple):
    """A translation unit: the text of each language that it has, and the line at which it begins."""

    line: int
    texts: dict[str, str]


# --- XML ----------------------------------------------------------------------------------------------------------


class XmlParser:
    """Runs expat over a file, block by block. Entities are refused, so nothing can be expanded or read from elsewhere.

    Args:
        path: the file, possibly compressed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parser = expat.ParserCreate()
        self.parser.EntityDeclHandler = self._refuse_entity
        self.parser.SkippedEntityHandler = self._refuse_unknown_entity

    def parse(self) -> Iterator[bytes]:
        """Yield each block of the file after the handlers have seen it, and an empty one at the end.

        Raises:
            DataError: If the file cannot be read, is not well-formed, declares entities or is cut off.
        """
        num_fed = 0
        try:
            for block in self._blocks():
                num_fed += len(block)
                self.parser.Parse(block, False)
                if num_fed - self.parser.CurrentByteIndex > _MAX_TOKEN_BYTES:
                    what = f"an XML token of more than {_MAX_TOKEN_BYTES >> 20} MiB"
                    raise self.fault(what, "repair the file")
                yield block
            self.parser.Parse(b"", True)
            yield b""
        except expat.ExpatError as error:
            what = f"not well-formed XML: {expat.ErrorString(error.code)}"
            hint = "repair the file, or export it again"
            raise DataError(what, where=f"{self.path}:{error.lineno}", hint=hint) from error
        except (LookupError, ValueError) as error:  # of the encoding that the XML declaration names
            hint = "save it as UTF-8"
            raise DataError("an encoding that cannot be read", where=f"{self.path}:1", hint=hint) from error

    def _blocks(self) -> Iterator[bytes]:
        for large in read_blocks(self.path):
            for start in range(0, len(large), _PARSED_BYTES):
                yield large[start : start + _PARSED_BYTES]

    def fault(self, what: str, hint: str) -> DataError:
        """Return the error for the present line of the file."""
        return DataError(what, where=f"{self.path}:{self.parser.CurrentLineNumber}", hint=hint)

    def check_depth(self, depth: int) -> None:
        """Check the number of elements that are open, one inside the other.

        Raises:
            DataError: If there are too many.
        """
        if depth > _MAX_DEPTH:
            raise self.fault(f"elements nested more than {_MAX_DEPTH:,} deep", "repair the file")

    def code_point(self, attributes: Mapping[str, str]) -> str:
        """Return the character that an XLIFF 2 element <cp> stands for, because XML cannot hold it.

        Raises:
            DataError: If the element does not say.
        """
        try:
            character = chr(int(attributes.get("hex", ""), 16))
        except (ValueError, OverflowError) as error:
            raise self.fault("<cp> without a hexadecimal code point", "repair the element") from error
        return "" if character == "\0" or "\ud800" <= character <= "\udfff" else character

    def _refuse_entity(self, name: str, *_: object) -> None:
        raise self.fault(
            f"the file declares the entity {name!r}", "entities are not expanded: remove the declaration"
        )

    def _refuse_unknown_entity(self, name: str, *_: object) -> None:
        raise self.fault(f"unknown entity &{name};", "write the character itself")


class _UnitParser(XmlParser, ABC):
    """Collects the units of an XML file while expat runs over it.

    Subclasses say which elements open and close a unit and a segment. Text is collected between `begin_segment` and
    `end_segment`, except inside code.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.units: list[Unit] = []
        """Complete units that nobody has taken yet."""
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self._depth = 0
        self._text: list[str] | None = None
        self._num_chars = 0
        self._code_depth = 0

    @abstractmethod
    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        """Enter an element outside of a segment's text."""

    @abstractmethod
    def end(self, name: str) -> None:
        """Leave an element outside of a segment's text."""

    def is_end_of_segment(self, name: str) -> bool:
        """Return whether the closing tag of such an element ends the segment that is being collected."""
        return name == "seg"

    def begin_segment(self) -> None:
        """Collect text from here on."""
        self._text, self._num_chars = [], 0

    def end_segment(self) -> str:
        """Return the collected text as one line."""
        assert self._text is not None
        text, self._text = "".join(self._text), None
        return LINE_BREAKS.sub(" ", text).strip(" \t\r\n")

    def add_text(self, unit: Unit, language: str) -> None:
        """Add the collected text to a unit, unless it has one in this language.

        Raises:
            DataError: If the unit has too many languages.
        """
        unit.texts.setdefault(language, self.end_segment())
        if len(unit.texts) > MAX_LANGUAGES:
            raise self.fault(f"a unit in more than {MAX_LANGUAGES:,} languages", "repair the file")

    def _start(self, qualified: str, attributes: dict[str, str]) -> None:
        name = qualified.rpartition(":")[2]
        self._depth += 1
        self.check_depth(self._depth)
        if self._text is None:
            self.start(name, attributes)
        elif self._code_depth or name in CODE_ELEMENTS:
            self._code_depth += 1
        elif self.is_end_of_segment(name):  # its closing tag would end the segment around it
            raise self.fault(f"<{name}> inside a segment", "repair the file")
        elif name == "cp":  # XLIFF 2: a character that XML cannot hold
            self._characters(self.code_point(attributes))

    def _end(self, qualified: str) -> None:
        name = qualified.rpartition(":")[2]
        self._depth -= 1
        if self._text is None:
            self.end(name)
        elif self._code_depth:
            self._code_depth -= 1
        elif self.is_end_of_segment(name):
            self.end(name)

    def _characters(self, text: str) -> None:
        if self._text is None or self._code_depth:
            return
        self._num_chars += len(text)
        if self._num_chars > MAX_SEGMENT_CHARS:
            hint = "a segment is a sentence or a few: split it"
            raise self.fault(f"a segment of more than {MAX_SEGMENT_CHARS:,} characters", hint)
        self._text.append(text)


class _TmxParser(_UnitParser):
    """<tu> holds one <tuv xml:lang> per language, which holds one <seg>."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._unit = Unit(0, {})
        self._language = ""
        self._is_tmx = False

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if not self._is_tmx and name != "tmx":
            raise self.fault(f"not TMX: the first element is <{name}>", "a TMX file begins with <tmx>")
        self._is_tmx = True
        if name == "tu":
            self._unit = Unit(self.parser.CurrentLineNumber, {})
        elif name == "tuv":
            self._language = attributes.get("xml:lang") or attributes.get("lang") or ""
            if not self._language:
                raise self.fault("<tuv> without xml:lang", "name the language of each variant")
        elif name == "seg":
            self.begin_segment()

    def end(self, name: str) -> None:
        if name == "seg":
            self.add_text(self._unit, self._language)
        elif name == "tu":
            self.units.append(self._unit)


class _XliffParser(_UnitParser):
    """<trans-unit> (1.2) or <segment> (2.x) holds <source> and <target>; the languages stand on <file> or <xliff>."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._languages = {"source": "", "target": ""}
        self._unit = Unit(0, {})
        self._open: list[str] = []

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if not self._open and name != "xliff":
            raise self.fault(f"not XLIFF: the first element is <{name}>", "an XLIFF file begins with <xliff>")
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        if name == "xliff":
            self._languages = {
                "source": attributes.get("srcLang", ""),
                "target": attributes.get("trgLang", ""),
            }
        elif name == "file" and "source-language" in attributes:
            self._languages = {
                "source": attributes["source-language"],
                "target": attributes.get("target-language", ""),
            }
        elif name in ("trans-unit", "segment"):
            self._unit = Unit(self.parser.CurrentLineNumber, {})
        elif name in self._languages and parent in ("trans-unit", "segment"):
            self.begin_segment()

    def is_end_of_segment(self, name: str) -> bool:
        return name in self._languages

    def end(self, name: str) -> None:
        self._open.pop()
        parent = self._open[-1] if self._open else ""
        if name in self._languages and parent in ("trans-unit", "segment"):
            # An untranslated file may lack the target language: the text then has no name, and no one asks for it.
            self.add_text(self._unit, self._languages[name])
        elif name in ("trans-unit", "segment"):
            self.units.append(self._unit)


def read_units(path: Path) -> Iterator[Unit]:
    """Yield the units of a TMX or XLIFF file, as its suffix says, in their order.

    Raises:
        DataError: If the file is not well-formed, is another kind of XML, declares entities or is cut off.
    """
    units = (_TmxParser if is_tmx(path) else _XliffParser)(path)
    for _ in units.parse():
        yield from units.units
        units.units.clear()


def is_tmx(path: Path) -> bool:
    """Return whether the suffix of a document, without that of a compression, is .tmx."""
    return strip_compression(path).suffix.lower() == ".tmx"


def is_spreadsheet(path: Path) -> bool:
    """Return whether the suffix of a document is .xlsx."""
    return strip_compression(path).suffix.lower() == ".xlsx"


def is_document(path: str | Path) -> bool:
    """Return whether the suffix of a file is that of TMX, XLIFF (both possibly compressed) or a spreadsheet."""
    return strip_compression(path).suffix.lower() in _DOCUMENT_SUFFIXES


def read_side(path: Path, language: str) -> Iterator[tuple[int, str]]:
    """Yield one side of a document: the text of each unit or row, empty where it has none, with its line or row.

    Args:
        path: a TMX or XLIFF file, or a spreadsheet.
        language: the language tag as in `read_translation_units`; the title of a column of a spreadsheet.

    Raises:
        ConfigError: If openpyxl, which spreadsheets need, is not installed.
        DataError: If the document is malformed or has no such side.
    """
    if is_spreadsheet(path):
        yield from _read_column(path, language)
        return
    found, there = False, dict[str, None]()
    for unit in read_units(path):
        text = text_in(unit.texts, language)
        found = found or bool(text)
        if not found and len(there) < MAX_LANGUAGES:
            there |= dict.fromkeys(unit.texts)
        yield unit.line, text
    if not found and there:
        raise missing_language(language, there, path)


def missing_language(language: str, there: Iterable[str], path: Path) -> DataError:
    """Return the error for a document without text in a language; `there` are the languages that it has."""
    tags = ", ".join(map(repr, islice(there, 8)))
    hint = "name the language tags of source and target with `columns`"
    return DataError(f"no unit has {language!r}; there are: {tags}", where=str(path), hint=hint)


def location_in(path: Path, number: int) -> str:
    """Return where in a document the unit at a line, or the row of a spreadsheet, is."""
    return f"{path}, row {number}" if is_spreadsheet(path) else f"{path}:{number}"


def read_translation_units(path: Path, columns: Columns) -> NumberedPairs:
    """Read the pairs of a TMX or XLIFF file; units that lack one of the two languages are skipped.

    Args:
        path: the file, possibly compressed.
        columns: `names`, if given, are the language tags of the two sides as they stand in the file.

    Raises:
        DataError: If the file is malformed, or no unit has text in both languages.
    """
    src, tgt = columns.names or columns.languages
    there: dict[str, None] = {}
    found = False
    for unit in read_units(path):
        pair = Pair(text_in(unit.texts, src, tgt), text_in(unit.texts, tgt, src))
        if all(pair):
            found = True
            yield unit.line, pair
        elif not found and len(there) < MAX_LANGUAGES:
            there |= dict.fromkeys(unit.texts)
    if not found and there:
        tags = ", ".join(map(repr, list(there)[:8]))
        hint = "name the language tags, source first: columns: [en-US, de-DE]"
        raise DataError(
            f"no unit has both {src!r} and {tgt!r}; there are: {tags}", where=str(path), hint=hint
        )


def text_in(texts: Mapping[str, str], language: str, other: str = "") -> str:
    """Return the text in a language: of exactly this tag, else of a wider or narrower one ('en' takes 'en-US').

    Args:
        texts: texts by their tags.
        language: the tag that is wanted.
        other: tag of the other side, whose text is not taken for a similar one.
    """
    wanted, excluded, similar = _normalized(language), _normalized(other), ""
    for tag, text in texts.items():
        own = _normalized(tag)
        if own == wanted:
            return text
        if not similar and own and own != excluded and _are_similar(own, wanted):
            similar = text
    return similar


@lru_cache(maxsize=1024)
def _are_similar(one: str, other: str) -> bool:
    """Return whether one tag is the other with a script or region; a language may have two codes, as ja and jpn."""
    short, long = sorted(([short_code(tag), *tag.split("-")[1:]] for tag in (one, other)), key=len)
    return long[: len(short)] == short


def _normalized(tag: str) -> str:
    return tag.strip().replace("_", "-").lower()


# --- spreadsheets -------------------------------------------------------------------------------------------------


def read_spreadsheet(path: Path, columns: Columns) -> NumberedPairs:
    """Read the pairs in the first sheet of an .xlsx file, below a header; numbered by their rows.

    Numbers become text as they are; empty rows are skipped. The package `openpyxl` is needed.

    Raises:
        ConfigError: If openpyxl is not installed.
        DataError: If it is not such a file, or there are no such columns, or a cell holds a date, error or formula.
    """
    names = columns.names or columns.languages
    rows = _sheet_rows(path)
    first_row, header = next(rows, (1, ()))
    titles = _titles(header)
    Columns(names, columns.languages).select([title for title in titles if title], f"{path}, row {first_row}")
    indices = [titles.index(name) for name in names]
    for number, cells in rows:
        values = [cells[index] if index < len(cells) else None for index in indices]
        if any(value is not None for value in values):
            where = f"{path}, row {number}"
            yield (
                number,
                Pair(*(_cell_text(value, name, where) for value, name in zip(values, names, strict=True))),
            )


def _read_column(path: Path, title: str) -> Iterator[tuple[int, str]]:
    """Yield the texts of one column of a spreadsheet; see `read_side`."""
    rows = _sheet_rows(path)
    first_row, header = next(rows, (1, ()))
    titles = _titles(header)
    if title not in titles:
        there = ", ".join(map(repr, filter(None, titles))) or "none"
        hint = "name the columns of source and target with `columns`"
        raise DataError(
            f"no column {title!r}; there are: {there}", where=f"{path}, row {first_row}", hint=hint
        )
    index = titles.index(title)
    for number, cells in rows:
        value = cells[index] if index < len(cells) else None
        yield number, _cell_text(value, title, f"{path}, row {number}")


def read_sheet_header(path: Path) -> list[str]:
    """Return the titles of the columns in the first sheet of an .xlsx file, from left to right.

    Raises:
        ConfigError: If openpyxl is not installed.
        DataError: If it is not such a file.
    """
    return list(filter(None, _titles(next(_sheet_rows(path), (1, ()))[1])))


def _titles(header: tuple[Any, ...]) -> list[str]:
    return ["" if cell is None else str(cell).strip() for cell in header]


def _sheet_rows(path: Path) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the rows of the first sheet that are not empty, numbered from 1."""
    with open_workbook(path) as book:
        sheet = book.worksheets[0]
        # Some programs declare fewer rows and columns than there are.
        sheet.reset_dimensions()
        for number, row in enumerate(sheet.iter_rows(), 1):
            if any(cell.value is not None for cell in row):
                yield number, tuple(_Fault(c.value) if c.data_type == "e" else c.value for c in row)


def unread_sheets_note(path: Path) -> str | None:
    """Return a note that only the first sheet of an .xlsx file is read; None without others that have rows.

    Raises:
        ConfigError: If openpyxl is not installed.
        DataError: If it is not such a file.
    """
    if not is_spreadsheet(path):
        return None
    with open_workbook(path) as book:
        for sheet in book.worksheets[1:]:
            sheet.reset_dimensions()
            if any(cell.value is not None for row in sheet.iter_rows() for cell in row):
                return f"{path}: only the first of {len(book.worksheets)} sheets is read"
    return None


@contextmanager
def open_workbook(path: Path, *, to_write: bool = False) -> Iterator[Any]:
    """Open a spreadsheet with openpyxl.

    Args:
        path: the file.
        to_write: read all of it, formulas included, so that it can be saved; otherwise values alone, row by row.

    Raises:
        ConfigError: If openpyxl is not installed.
        DataError: If it is not such a file, or is damaged or hostile.
    """
    openpyxl = import_package(
        "openpyxl", "pip install 'mtkit[xlsx]', or save the sheet as .csv", where=str(path)
    )
    hint = "save it as .xlsx again, or as .csv"
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            lost = sorted({name for name in archive.namelist() if to_write and _NOT_WRITTEN.match(name)})
            is_encrypted = any(entry.flag_bits & 1 for entry in archive.infolist())
        packed = path.stat().st_size
        if unpacked > _MAX_SHEET_BYTES or (unpacked > 64 << 20 and unpacked > _MAX_SHEET_RATIO * packed):
            raise DataError(
                f"an archive of {packed:,} bytes that unpacks to {unpacked:,}", where=str(path), hint=hint
            )
        if is_encrypted:
            raise DataError("protected by a password", where=str(path), hint="save it without one")
        if lost:
            what = f"pictures, charts, comments or macros, which a copy would lose or change: {lost[0]}"
            raise DataError(what, where=str(path), hint="remove them, or write text instead")
        with catch_warnings(record=True) as warnings:
            simplefilter("always")
            book = openpyxl.load_workbook(
                path, read_only=not to_write, data_only=not to_write, keep_links=to_write, rich_text=to_write
            )
        removed = [text for warning in warnings if "will be removed" in (text := str(warning.message))]
        if to_write and removed:
            what = f"something that a copy would lose: {removed[0]}"
            raise DataError(what, where=str(path), hint="remove it, or write text instead")
        try:
            yield book
        finally:
            book.close()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}", where=str(path), hint="check the path"
        ) from error
    except (
        zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError,  # the last: of an unknown compression
        KeyError, ValueError, IndexError, TypeError, SyntaxError,
    ) as error:  # fmt: skip
        raise DataError("not a spreadsheet, or a damaged one", where=str(path), hint=hint) from error


class _Fault(str):
    """Text of a cell whose formula failed, such as #DIV/0!."""


def _cell_text(value: object, column: str, where: str) -> str:
    """Return a cell as one line of text; an empty cell is an empty text."""
    if value is None:
        return ""
    if isinstance(value, _Fault):
        raise DataError(f"the column {column!r} is the error {value}", where=where, hint="repair the formula")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else repr(value)
    if isinstance(value, str):
        value = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), value)
    return check_text(value, column, where).replace("\r", " ")
