"""Copies of documents with translations filled in, unchanged but for their targets.

In: a document, and a translation of each line that `lines_to_fill` yields. Out: the document, byte by byte, with
targets made of these translations. Both passes stream: memory does not grow with the document.

XLIFF: a <target> beside each <source>, except where people have approved one, in the state that stands for text that
nobody has reviewed. TMX: one <tuv> in the target language in each <tu>. Spreadsheets: a column. Theirs is not a copy
of bytes: openpyxl reads and writes them, and what it would lose is refused.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from mtkit.data.documents import (
    CODE_ELEMENTS,
    LINE_BREAKS,
    MAX_LANGUAGES,
    MAX_SEGMENT_CHARS,
    XmlParser,
    is_spreadsheet,
    is_tmx,
    location_in,
    missing_language,
    open_workbook,
    read_side,
    text_in,
)
from mtkit.errors import DataError

_MAX_UNIT_BYTES = 64 << 20
_SPACE = " \t\r\n"
_NOT_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_NAME = re.compile(r"(</?[gx]\d+/?>)")
"""What stands for an inline tag in a line: <g1> and </g1> for a pair, <x2/> for one alone."""

_OPENING, _CLOSING = frozenset(("bpt", "bx", "sc", "sm")), frozenset(("ept", "ex", "ec", "em"))
"""Inline elements that stand for the two ends of a stretch of text."""
_WITHOUT_TEXT = frozenset((*CODE_ELEMENTS, *_OPENING, *_CLOSING, "x"))
_APPROVED = frozenset(("final", "signed-off", "reviewed"))
"""States of XLIFF in which a translation stays as it is."""


class _Edit(NamedTuple):
    """Bytes of the document, from `start` to before `end`, and what takes their place."""

    start: int
    end: int
    new: bytes


@dataclass(slots=True)
class _Element:
    """An element and the offsets of its tags in the file. An empty-element tag counts as an opening tag."""

    qualified: str
    attributes: Mapping[str, str]
    start: int
    start_end: int = -1
    """Where the opening tag ends."""
    end_start: int = -1
    """Where the closing tag begins."""
    end: int = -1

    @property
    def name(self) -> str:
        """Name without its prefix."""
        return self.qualified.rpartition(":")[2]

    def sibling(self, name: str) -> str:
        """Return the qualified name of an element of the same namespace."""
        return self.qualified[: -len(self.name)] + name


@dataclass(frozen=True, slots=True)
class _Code:
    """An inline tag: a whole element without text, or the opening or closing tag of one with text."""

    element: _Element
    closes: bool = False

    @property
    def span(self) -> tuple[int, int]:
        """Offsets in the file."""
        element = self.element
        if element.name in _WITHOUT_TEXT:
            return element.start, element.end
        return (element.end_start, element.end) if self.closes else (element.start, element.start_end)

    @property
    def pair(self) -> object:
        """Key that the two tags of a pair have in common; None for a tag that stands alone."""
        if self.element.name not in _WITHOUT_TEXT:
            return id(self.element)
        if self.element.name in _OPENING | _CLOSING:
            return next(filter(None, map(self.element.attributes.get, ("i", "startRef", "rid", "id"))), None)
        return None


@dataclass(slots=True)
class _Segment:
    """Text with inline tags that becomes a line, and the span of its bytes."""

    element: _Element
    parts: list[str | _Code] = field(default_factory=list)
    num_chars: int = 0

    @property
    def span(self) -> tuple[int, int]:
        """Offsets of what is between the tags of the element."""
        return self.element.start_end, self.element.end_start

    @property
    def text(self) -> str:
        """The text without tags."""
        return "".join(part for part in self.parts if isinstance(part, str))

    def line(self, keep_tags: bool) -> str:
        """Return the segment as a line, with or without what stands for its tags; empty if it has no text."""
        if not self.text.strip():
            return ""
        return LINE_BREAKS.sub(" ", self._text_with_names() if keep_tags else self.text).strip(_SPACE)

    def _text_with_names(self) -> str:
        names = iter(self._named_codes())
        return "".join(part if isinstance(part, str) else next(names, ("",))[0] for part in self.parts)

    def write(self, translation: str, document: _Document) -> bytes:
        """Return a translation of the line as bytes of the document.

        Its tags are those of the segment if it has each of them once, and elements do not overlap; otherwise none.
        """
        codes = dict(self._named_codes())
        pieces = _NAME.split(translation)
        if _fit_together([codes.get(name) for name in pieces[1::2]], len(codes)):
            written = [
                document.raw(*codes[piece].span) if index % 2 else document.encode(piece)
                for index, piece in enumerate(pieces)
            ]
            text = self._text_with_names()
        else:
            written = [
                document.encode("".join(piece for piece in pieces if piece not in codes).strip(_SPACE))
            ]
            text = self.text
        before, after = len(text) - len(text.lstrip(_SPACE)), len(text.rstrip(_SPACE))
        return document.encode(text[:before]) + b"".join(written) + document.encode(text[after:])

    def _named_codes(self) -> list[tuple[str, _Code]]:
        """Return the tags in order, each with what stands for it in a line; none if the text looks like that itself."""
        if _NAME.search(self.text):
            return []
        codes = [part for part in self.parts if isinstance(part, _Code)]
        openers: dict[object, int] = {}
        names: list[str] = []
        for number, code in enumerate(codes):
            names.append(f"<x{number + 1}/>")
            if code.pair is None:
                continue
            if not code.closes:
                openers[code.pair] = number
            elif code.pair in openers:
                opener = openers.pop(code.pair)
                names[opener], names[number] = f"<g{opener + 1}>", f"</g{opener + 1}>"
        return list(zip(names, codes, strict=True))


def _fit_together(codes: Sequence[_Code | None], number: int) -> bool:
    """Return whether these are `number` different tags, and the elements with text are nested."""
    if len(codes) != number or len(set(map(id, codes))) != number:
        return False
    opened: list[_Element] = []
    for code in codes:
        if code is None:
            return False
        if code.element.name in _WITHOUT_TEXT:
            continue
        if not code.closes:
            opened.append(code.element)
        elif not opened or opened.pop() is not code.element:
            return False
    return not opened


@dataclass(frozen=True, slots=True)
class _Target:
    """Needs of a unit for its translation.

    Attributes:
        segments: what is translated, in order; each is a line.
        span: bytes of the source from which the content of the target is made, by translating the segments in it.
        old: the present target.
        position: where a target is inserted if there is none.
        beside: the element before that place, whose indentation it gets.
        opening, closing: tags around the content.
        edits: what else changes.
    """

    segments: Sequence[_Segment]
    span: tuple[int, int]
    old: _Element | None
    beside: _Element
    opening: str
    closing: str
    edits: tuple[tuple[int, int, str], ...] = ()

    def fill(self, translations: Sequence[str], document: _Document) -> list[_Edit]:
        """Return the edits that write these translations into the document.

        None, so that the target stays as it is, if all are empty or that of a segment with text is.
        """
        both = list(zip(self.segments, translations, strict=True))
        if not any(translations) or any(segment.text.strip() and not text for segment, text in both):
            return []
        chunks, copied = [document.encode_markup(self.opening)], self.span[0]
        for segment, translation in both:
            start, end = segment.span
            if translation:
                chunks += [document.raw(copied, start), segment.write(translation, document)]
                copied = end
        chunks += [document.raw(copied, self.span[1]), document.encode_markup(self.closing)]
        new = b"".join(chunks)
        if self.old is not None:
            edits = [_Edit(self.old.start, self.old.end, new)]
        else:
            position = self.beside.end
            edits = [_Edit(position, position, document.indentation(self.beside.start) + new)]
        edits += [_Edit(start, end, document.encode_markup(markup)) for start, end, markup in self.edits]
        return sorted(edits)


class _Document(XmlParser, ABC):
    """A document that is read once, from its first byte to the last.

    Every event of expat begins where the one before it ends. So the end of a tag is known at the next event.

    Args:
        path: the file.
        languages: language tags of source and target.
    """

    def __init__(self, path: Path, languages: tuple[str, str]) -> None:
        super().__init__(path)
        self.languages = languages
        self.targets: list[_Target] = []
        """Complete units that nobody has taken yet."""
        self.additions: list[tuple[_Element, str, str]] = []
        """Attributes to add to elements outside of units."""
        self.unit: _Element | None = None
        """The element that is held in memory until it ends."""
        self.opened: list[_Element] = []
        self.encoding = "utf-8"
        self._bytes, self._first = bytearray(), 0
        self._position = 0
        self._starting: _Element | None = None
        self._ending: _Element | None = None
        self._segment: _Segment | None = None
        self._code_depth = 0
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.XmlDeclHandler = self._declaration
        self.parser.DefaultHandler = lambda _: self._next_event()

    @abstractmethod
    def start(self, element: _Element) -> None:
        """Enter an element outside of a segment."""

    @abstractmethod
    def end(self, element: _Element) -> None:
        """Leave an element outside of a segment."""

    def end_segment(self, segment: _Segment) -> None:
        """Leave a segment."""

    def check(self) -> None:
        """Check, at the end, that there was something to translate.

        Raises:
            DataError: If not.
        """

    def begin_segment(self, element: _Element) -> None:
        """Collect the text of an element that has just begun."""
        self._segment = _Segment(element)

    def read(self) -> Iterator[tuple[list[_Target], bool]]:
        """Yield the units that each block of the file completes, and whether it was the last."""
        for block in self.parse():
            if not self._first and not self._bytes:
                self._sniff(block)
            self._bytes += block
            if len(self._bytes) > _MAX_UNIT_BYTES:
                raise self.fault(f"a unit of more than {_MAX_UNIT_BYTES >> 20} MiB", "repair the file")
            targets, self.targets = self.targets, []
            yield targets, not block
        self.check()

    def release(self, edits: Sequence[_Edit], *, everything: bool) -> bytes:
        """Return the bytes before the unit that is being read, or all, with edits; they are not held any longer."""
        chunks = []
        for start, end, new in sorted([*edits, *map(self._add_attribute, self.additions)]):
            chunks += [self._take(start), new]
            self._take(end)
        self.additions = []
        last = max(self._first, self._position if self.unit is None else self.unit.start)
        chunks.append(self._take(self._first + len(self._bytes) if everything else last))
        return b"".join(chunks)

    def _take(self, end: int) -> bytes:
        """Return the bytes up to an offset, which are not held any longer."""
        taken = bytes(self._bytes[: end - self._first])
        del self._bytes[: end - self._first]
        self._first = end
        return taken

    def raw(self, start: int, end: int) -> bytes:
        """Return bytes of the document."""
        return bytes(self._bytes[start - self._first : end - self._first])

    def encode(self, text: str) -> bytes:
        """Return text as bytes of the document."""
        return self.encode_markup(escape(_NOT_XML.sub("", text)))

    def encode_markup(self, markup: str) -> bytes:
        """Return markup as bytes of the document."""
        return markup.encode(self.encoding, "xmlcharrefreplace")

    def indentation(self, position: int) -> bytes:
        """Return the line break and the white space before an offset, if there is nothing else in the line."""
        before = self.raw(max(self._first, position - 400), position).decode(self.encoding, "ignore")
        found = re.search(r"\r?\n[ \t]*$", before)
        return self.encode_markup(found[0]) if found else b""

    def _add_attribute(self, addition: tuple[_Element, str, str]) -> _Edit:
        element, name, value = addition
        position = element.start + len(self.encode_markup(f"<{element.qualified}"))
        return _Edit(position, position, self.encode_markup(f" {name}={quoteattr(value)}"))

    def _sniff(self, block: bytes) -> None:
        if block[:2] in (b"\xff\xfe", b"<\0"):
            self.encoding = "utf-16-le"
        elif block[:2] in (b"\xfe\xff", b"\0<"):
            self.encoding = "utf-16-be"

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        self._next_event()
        if encoding is not None and not encoding.lower().startswith("utf-16"):
            self.encoding = encoding

    def _next_event(self) -> int:
        """Return where an event begins, which is where the last one ended."""
        self._position = self.parser.CurrentByteIndex
        if self._starting is not None:
            self._starting.start_end, self._starting = self._position, None
        if self._ending is not None:
            self._ending.end, self._ending = self._position, None
        return self._position

    def _start(self, qualified: str, attributes: dict[str, str]) -> None:
        element = _Element(qualified, attributes, self._next_event())
        self._starting = element
        self.opened.append(element)
        self.check_depth(len(self.opened))
        if self._segment is None:
            self.start(element)
        elif self._code_depth:
            self._code_depth += 1
        elif element.name == "cp":
            self._add_text(self.code_point(attributes))
        else:
            self._segment.parts.append(_Code(element, element.name in _CLOSING))
            self._code_depth = int(element.name in CODE_ELEMENTS)

    def _end(self, qualified: str) -> None:
        position = self._next_event()
        element = self.opened.pop()
        element.end_start, self._ending = position, element
        segment = self._segment
        if segment is None:
            self.end(element)
        elif element is segment.element:
            self._segment = None
            self.end_segment(segment)
        elif self._code_depth:
            self._code_depth -= 1
        elif element.name not in _WITHOUT_TEXT and element.name != "cp":
            segment.parts.append(_Code(element, closes=True))

    def _characters(self, text: str) -> None:
        self._next_event()
        if self._segment is not None and not self._code_depth:
            self._add_text(text)

    def _add_text(self, text: str) -> None:
        assert self._segment is not None
        self._segment.num_chars += len(text)
        if self._segment.num_chars > MAX_SEGMENT_CHARS:
            hint = "a segment is a sentence or a few: split it"
            raise self.fault(f"a segment of more than {MAX_SEGMENT_CHARS:,} characters", hint)
        self._segment.parts.append(text)


class _Tmx(_Document):
    """<tu> holds one <tuv xml:lang> per language, which holds one <seg>."""

    def __init__(self, path: Path, languages: tuple[str, str]) -> None:
        super().__init__(path, languages)
        self._variants: dict[str, tuple[_Element, _Segment]] = {}
        self._last: _Element | None = None
        self._others: dict[str, None] = {}
        self._found = False

    def start(self, element: _Element) -> None:
        if len(self.opened) == 1 and element.name != "tmx":
            raise self.fault(
                f"not TMX: the first element is <{element.name}>", "a TMX file begins with <tmx>"
            )
        if element.name == "tu":
            self.unit, self._variants, self._last = element, {}, None
        elif element.name == "tuv" and not _language(element):
            raise self.fault("<tuv> without xml:lang", "name the language of each variant")
        elif element.name == "seg" and self.opened[-2].name == "tuv":
            self.begin_segment(element)

    def end_segment(self, segment: _Segment) -> None:
        variant = self.opened[-1]
        self._variants.setdefault(_language(variant), (variant, segment))
        if len(self._variants) > MAX_LANGUAGES:
            raise self.fault(f"a unit in more than {MAX_LANGUAGES:,} languages", "repair the file")

    def end(self, element: _Element) -> None:
        if element.name == "tuv":
            self._last = element
        if element is not self.unit:
            return
        self.unit = None
        tags = list(self._variants)
        with_text = [tag for tag, (_, segment) in self._variants.items() if segment.text.strip()]
        found = text_in({tag: tag for tag in with_text}, self.languages[0], self.languages[1])
        old = text_in({tag: tag for tag in tags if tag != found}, self.languages[1])
        if not found or self._last is None:
            if not self._found and len(self._others) < MAX_LANGUAGES:
                self._others |= dict.fromkeys(tags)
            return
        self._found = True
        variant, segment = self._variants[found]
        attribute = "xml:lang" if "xml:lang" in variant.attributes else "lang"
        seg = segment.element.qualified
        self.targets.append(
            _Target(
                [segment],
                segment.span,
                self._variants[old][0] if old else None,
                self._last,
                f"<{variant.qualified} {attribute}={quoteattr(old or self.languages[1])} "
                f'creationtool="mtkit"><{seg}>',
                f"</{seg}></{variant.qualified}>",
            )
        )

    def check(self) -> None:
        if not self._found and self._others:
            raise missing_language(self.languages[0], self._others, self.path)


def _language(variant: _Element) -> str:
    return variant.attributes.get("xml:lang") or variant.attributes.get("lang") or ""


class _Xliff(_Document):
    """<trans-unit> (1.2) or <segment> (2.x) holds <source> and <target>; <seg-source> (1.2) divides a source."""

    def __init__(self, path: Path, languages: tuple[str, str]) -> None:
        super().__init__(path, languages)
        self._source: _Segment | None = None
        self._seg_source: _Element | None = None
        self._parts: list[_Segment] = []
        self._old: _Element | None = None

    def start(self, element: _Element) -> None:
        depth, name = len(self.opened), element.name
        if depth == 1 and name != "xliff":
            raise self.fault(f"not XLIFF: the first element is <{name}>", "an XLIFF file begins with <xliff>")
        parent = self.opened[-2] if depth > 1 else None
        if name == "xliff" and "srcLang" in element.attributes:
            self._check_languages(element, "srcLang", "trgLang")
        elif name == "file" and "source-language" in element.attributes:
            self._check_languages(element, "source-language", "target-language")
        elif name in ("trans-unit", "segment"):
            self.unit, self._source, self._seg_source, self._parts, self._old = element, None, None, [], None
        elif parent is self.unit and parent is not None:
            if name == "source":
                self.begin_segment(element)
            elif name == "seg-source":
                self._seg_source = element
            elif name == "target":
                self._old = element
        elif name == "mrk" and element.attributes.get("mtype") == "seg" and self._is_in_seg_source():
            self.begin_segment(element)

    def end_segment(self, segment: _Segment) -> None:
        if segment.element.name == "source":
            self._source = segment
        else:
            self._parts.append(segment)

    def end(self, element: _Element) -> None:
        if element is not self.unit:
            return
        self.unit = None
        if self._source is None or self._is_approved(element):
            return
        beside = self._seg_source if self._parts and self._seg_source is not None else self._source.element
        source, attributes = self._source.element, dict(self._old.attributes if self._old else {})
        edits: tuple[tuple[int, int, str], ...] = ()
        if element.name == "trans-unit":
            attributes |= {"state": "needs-review-translation", "state-qualifier": "leveraged-mt"}
        else:
            of_segment = {k: v for k, v in element.attributes.items() if k != "subState"}
            markup = f"<{element.qualified}{_written(of_segment | {'state': 'translated'})}>"
            edits = ((element.start, element.start_end, markup),)
        target = source.sibling("target")
        self.targets.append(
            _Target(
                self._parts or [self._source],
                (beside.start_end, beside.end_start),
                self._old,
                self._seg_source or source,
                f"<{target}{_written(attributes)}>",
                f"</{target}>",
                edits,
            )
        )

    def _is_in_seg_source(self) -> bool:
        return self._seg_source is not None and any(each is self._seg_source for each in self.opened)

    def _is_approved(self, unit: _Element) -> bool:
        """Return whether people have approved the target of a unit, or it is not to be translated."""
        said = [each.attributes.get("translate") for each in (*self.opened, unit)]
        inherited = next((word for word in reversed(said) if word), "yes")
        states = (unit.attributes.get("state"), self._old and self._old.attributes.get("state"))
        return (
            inherited == "no" or unit.attributes.get("approved") == "yes" or not _APPROVED.isdisjoint(states)
        )

    def _check_languages(self, element: _Element, *names: str) -> None:
        """Check that the languages of the document are those that are wanted; an absent target language is added."""
        for side, name, wanted in zip(("source", "target"), names, self.languages, strict=True):
            tag = element.attributes.get(name, "")
            if not tag and side == "target":
                self.additions.append((element, name, wanted))
            elif not text_in({tag: tag}, wanted):
                hint = "name both languages with `columns`, or translate with another model"
                raise self.fault(f"the {side} language is {tag!r}, not {wanted!r}", hint)


def _written(attributes: Mapping[str, str]) -> str:
    """Return attributes as they are written in a tag."""
    return "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items())


def _open(path: Path, languages: tuple[str, str]) -> _Document:
    return (_Tmx if is_tmx(path) else _Xliff)(path, languages)


def lines_to_fill(path: Path, languages: tuple[str, str], *, keep_tags: bool) -> Iterator[str]:
    """Yield what is to be translated in a document; a segment or row without text is an empty line.

    Args:
        path: the file, possibly compressed.
        languages: language tags of source and target.
        keep_tags: whether <g1>, </g1> and <x2/> stand for inline tags, which the translations have then too.

    Raises:
        DataError: If the file is malformed, or in other languages.
    """
    if is_spreadsheet(path):
        lines = [text for _, text in read_side(path, languages[0])]
        with open_workbook(path, to_write=True) as book:
            _target_cells(book, path, languages)  # raises if it cannot be written
        yield from lines
        return
    document = _open(path, languages)
    for targets, is_last in document.read():
        document.release((), everything=is_last)
        for target in targets:
            for segment in target.segments:
                yield segment.line(keep_tags)


def fill(path: Path, output: BinaryIO, translations: Iterator[str], languages: tuple[str, str]) -> None:
    """Write a copy of a document with translations of its lines.

    Args:
        path: the file, possibly compressed; the copy is not.
        output: where the copy goes.
        translations: one for each line of `lines_to_fill`; where it is empty, the target stays as it is.
        languages: language tags of source and target.

    Raises:
        DataError: If the file is malformed, or has not as many lines as there are translations.
        OSError: If the copy cannot be written.
    """
    changed = "it was changed while it was translated: begin again"
    if is_spreadsheet(path):
        _fill_sheet(path, output, translations, languages)
        return
    document = _open(path, languages)
    for targets, is_last in document.read():
        edits: list[_Edit] = []
        for target in targets:
            own = [next(translations, None) for _ in target.segments]
            if None in own:
                raise DataError("more segments than translations", where=str(path), hint=changed)
            edits += target.fill([text or "" for text in own], document)
        output.write(document.release(edits, everything=is_last))
    if next(translations, None) is not None:
        raise DataError("fewer segments than translations", where=str(path), hint=changed)


def _target_cells(book: Any, path: Path, languages: tuple[str, str]) -> list[Any]:
    """Return the cell for the translation of each row; if there is no target column, it is added.

    Raises:
        DataError: If one is part of a merged cell.
    """
    sheet = book.worksheets[0]
    header = next(row for row in sheet.iter_rows() if any(cell.value is not None for cell in row))
    titles = [str(cell.value).strip() for cell in header]
    if languages[1] in titles:
        column = header[titles.index(languages[1])].column
    else:
        # Not `max_column`, which counts cells that have a format alone; `iter_rows` would create all cells up to there.
        column = 1 + max(
            cell.column for cell in sheet._cells.values() if cell.value is not None or _is_merged(cell)
        )
        sheet.cell(header[0].row, column, languages[1])
    cells = [sheet.cell(number, column) for number, _ in read_side(path, languages[0])]
    for cell in cells:
        if _is_merged(cell):
            where, hint = location_in(path, cell.row), "split the cell, or write text instead"
            raise DataError("a merged cell in the target column", where=where, hint=hint)
    return cells


def _is_merged(cell: Any) -> bool:
    """Return whether a cell is part of a merged one, whose text is in another part."""
    return type(cell).__name__ == "MergedCell"


def _fill_sheet(
    path: Path, output: BinaryIO, translations: Iterator[str], languages: tuple[str, str]
) -> None:
    """Write a copy of a spreadsheet with translations in the target column."""
    with open_workbook(path, to_write=True) as book:
        for cell in _target_cells(book, path, languages):
            if text := _NOT_XML.sub("", next(translations, "")):
                cell.value, cell.data_type = text, "s"  # a text that begins with = is no formula
        copy = io.BytesIO()
        book.save(copy)
    output.write(copy.getbuffer())  # what fails here is not the fault of the file that was read
