"""Segmentations: text into pieces and back, without ids. SentencePiece, byte pair encoding of words, words, characters.

`tokenizer.VocabularyTokenizer` gives the pieces the ids of a vocabulary, as models of other toolkits have them.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from typing import Any

import sentencepiece

from mtkit.errors import StorageError
from mtkit.packages import import_package

Span = tuple[int, int]
"""Start and end of something in a text, in characters."""

WORD_START = "\u2581"

# Fields and values of SentencePiece's sentencepiece_model.proto.
_PIECES, _PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE, _NORMAL, _USER_DEFINED, _UNUSED = 1, 1, 2, 3, 1, 4, 5
_TRAINER, _MODEL_TYPE = 2, 3
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


_MOSES_MARKS = {
    "&#124;": "|", "&lt;": "<", "&gt;": ">", "&apos;": "'", "&quot;": '"', "&#91;": "[", "&#93;": "]", "&amp;": "&",
    "&bar;": "|", "&bra;": "[", "&ket;": "]", " @-@ ": "-",
}  # fmt: skip
_MOSES_MARKS_PATTERN = re.compile("|".join(map(re.escape, _MOSES_MARKS)))

_SPAN_WINDOW = 8
"""Characters that preparation may have changed between two pieces; further away, a piece is not looked for."""


@dataclass(frozen=True)
class Preparation:
    """Changes to a line before it is split, which are undone after pieces are joined where they can be.

    Attributes:
        moses: language code for Moses tokenization (package sacremoses); None is without.
        escape: whether Moses tokenization writes `&` as `&amp;`, and so on.
        split_dashes: whether Moses tokenization splits words at dashes, which it marks as `@-@`.
        lowercase: whether text is lowercased, after tokenization.
    """

    moses: str | None = None
    escape: bool = False
    split_dashes: bool = False
    lowercase: bool = False

    def __post_init__(self) -> None:
        """Check the types, which come from a file."""
        if not (self.moses is None or isinstance(self.moses, str)):
            raise ValueError(f"moses is {self.moses!r:.40}, not a language code")
        for name in ("escape", "split_dashes", "lowercase"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r:.40}, not true or false")

    @property
    def settings(self) -> dict[str, Any]:
        """The attributes that differ from their defaults."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {field.name: own[field.name] for field in fields(self) if own[field.name] != field.default}


class _Moses:
    """Prepares lines and undoes it.

    Raises:
        ConfigError: If sacremoses is needed and not installed.
    """

    def __init__(self, preparation: Preparation, where: str) -> None:
        self.preparation = preparation
        self._tokenizer = self._detokenizer = None
        if preparation.moses is not None:
            sacremoses = import_package("sacremoses", "pip install 'mtkit[bpe]'", where=where)
            self._tokenizer = sacremoses.MosesTokenizer(lang=preparation.moses)
            self._detokenizer = sacremoses.MosesDetokenizer(lang=preparation.moses)

    def prepare(self, line: str) -> str:
        """Return the line that is split."""
        if self._tokenizer is not None:
            escape, dashes = self.preparation.escape, self.preparation.split_dashes
            line = " ".join(self._tokenizer.tokenize(line, escape=escape, aggressive_dash_splits=dashes))
        return line.lower() if self.preparation.lowercase else line

    def undo(self, text: str, spans: list[Span]) -> tuple[str, list[Span]]:
        """Return the text without Moses tokenization, and the spans in it."""
        if self._detokenizer is None:
            return text, spans
        text, spans = _without_marks(text, spans)
        return _moved(text, self._detokenizer.detokenize(text.split(), unescape=False), spans)


class Segmentation(ABC):
    """Splits lines into pieces and joins pieces to text.

    Args:
        model: the content of the model file.
        preparation: what happens to a line first.
        only: the pieces that may be used; None allows all. Others are split further, where the method can.
        where: name of the file in error messages.

    Raises:
        ConfigError: If a package that is needed is not installed.
        StorageError: If the model is damaged.
    """

    kind: str
    """Its name in tokenizer.json."""
    model: bytes
    """The content of the model file."""

    def __init__(
        self,
        model: bytes,
        *,
        preparation: Preparation = Preparation(),
        only: Collection[str] | None = None,
        where: str = "tokenizer",
    ) -> None:
        self.model, self.preparation, self.only = model, preparation, only
        self._moses = _Moses(preparation, where)

    @abstractmethod
    def split(self, lines: Sequence[str], num_threads: int = 1) -> list[list[str]]:
        """Return the pieces of each line."""

    def spans(self, line: str) -> list[Span]:
        """Return the span of the line that each piece of `split` covers.

        Characters that preparation changed belong to no piece.
        """
        (pieces,) = self.split([line])
        lowered = line.lower() if self.preparation.lowercase else line
        text = lowered if len(lowered) == len(line) else line
        spans, place = [], 0
        for piece in map(self._text_of, pieces):
            found = text.find(piece, place, place + len(piece) + _SPAN_WINDOW)
            start = place if found < 0 else found
            place = start if found < 0 else start + len(piece)
            spans.append((start, place))
        return spans

    @abstractmethod
    def _text_of(self, piece: str) -> str:
        """Return a piece without the mark that shows how it is joined to others."""

    @abstractmethod
    def join(self, pieces: Sequence[str]) -> tuple[str, list[Span]]:
        """Return the text of some pieces, and the span of it that each of them wrote."""

    def begins_word(self, piece: str, before: str) -> bool:
        """Return whether a piece begins a word, after the piece before it."""
        return piece.startswith(WORD_START)

    def may_end_word(self, piece: str) -> bool:
        """Return whether a word may end with a piece."""
        return True

    def normalize(self, line: str) -> str:
        """Return the text that is split: what preparation and normalization make of a line."""
        return self._moses.prepare(line)

    def with_symbols(self, symbols: Sequence[str]) -> Segmentation:
        """Return a segmentation that keeps these strings whole, as far as its method can."""
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Further entries of tokenizer.json that are needed to load it."""
        return self.preparation.settings | ({} if self.only is None else {"restricted": True})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file and the settings."""
        return hashlib.sha256(self.model + repr(sorted(self.settings.items())).encode()).hexdigest()


def load_sentencepiece(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    """Load a SentencePiece model.

    Args:
        model: the bytes of a .model file.
        where: name of the file in error messages.

    Raises:
        StorageError: If they are not a SentencePiece model.
    """
    hint = "copy it again, or train a new one"
    if not model:
        raise StorageError("an empty file, not a SentencePiece model", where=where, hint=hint)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise StorageError("damaged, or not a SentencePiece model", where=where, hint=hint) from error


def append_symbols(model: bytes, symbols: Sequence[str]) -> bytes:
    """Return a SentencePiece model with further user-defined symbols, which are always single pieces, after its pieces.

    A model is a message of Protocol Buffers, in which the pieces are a repeated field: entries of it may be appended.
    """
    for symbol in symbols:
        text = symbol.encode()
        score = b"\x15" + bytes(4)  # field 2, a float: 0.0
        kind = b"\x18\x04"  # field 3, the type: USER_DEFINED
        entry = b"\x0a" + _as_varint(len(text)) + text + score + kind
        model += b"\x0a" + _as_varint(len(entry)) + entry
    return model


class SentencePiece(Segmentation):
    """A SentencePiece model (Kudo and Richardson 2018) of which only the pieces are used, not the ids."""

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        where: str = "tokenizer",
        *,
        preparation: Preparation = Preparation(),
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, preparation=preparation, only=only, where=where)
        self._processor = load_sentencepiece(model, where)
        if only is not None:
            self._processor = load_sentencepiece(_with_unused_pieces(model, frozenset(only)), where)

    def with_symbols(self, symbols: Sequence[str]) -> SentencePiece:
        only = None if self.only is None else [*self.only, *symbols]
        return SentencePiece(append_symbols(self.model, symbols), preparation=self.preparation, only=only)

    def split(self, lines: Sequence[str], num_threads: int = 1) -> list[list[str]]:
        """A piece that the model does not know is the text itself."""
        prepared = [self._moses.prepare(line) for line in lines]
        if num_threads == 1:
            return [self._processor.encode(line, out_type=str) for line in prepared]
        rows: list[list[str]] = self._processor.encode(prepared, out_type=str, num_threads=num_threads)
        return rows

    def spans(self, line: str) -> list[Span]:
        if self.preparation.settings:
            return super().spans(line)
        spans: list[Span] = self._processor.encode(line, return_type="offset_mapping")["offsets"]
        return spans

    def _text_of(self, piece: str) -> str:
        return piece.removeprefix(WORD_START)

    def join(self, pieces: Sequence[str]) -> tuple[str, list[Span]]:
        """Pieces of another model keep their text, their word starts become spaces.

        The text neither begins nor ends with white space.
        """
        decoded = self._processor.decode(list(pieces), return_type="offset_mapping")
        text: str = decoded["text"].replace(WORD_START, " ")
        first, end = len(text) - len(text.lstrip()), len(text.rstrip())
        places = [min(max(0, place - first), max(0, end - first)) for place in range(len(text) + 1)]
        spans = [(places[start], places[stop]) for start, stop in decoded["offsets"]]
        return self._moses.undo(text.strip(), spans)

    def normalize(self, line: str) -> str:
        text: str = self._processor.normalize(self._moses.prepare(line))
        return text


class BytePairEncoding(Segmentation):
    """Byte pair encoding of words (Sennrich et al. 2016) by the package subword-nmt: `@@` continues a word.

    Args:
        codes: the content of the file of merges.
        separator: the mark of a piece that does not end a word.
    """

    kind = "bpe"

    def __init__(
        self,
        codes: bytes,
        *,
        separator: str = "@@",
        preparation: Preparation = Preparation(),
        only: Collection[str] | None = None,
        where: str = "codes",
    ) -> None:
        super().__init__(codes, preparation=preparation, only=only, where=where)
        self.separator = separator
        apply_bpe = import_package("subword_nmt.apply_bpe", "pip install 'mtkit[bpe]'", where=where)
        allowed = None if only is None else set(only)
        self._bpe = apply_bpe.BPE(
            io.StringIO(_checked_codes(codes, where)), separator=separator, vocab=allowed
        )

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | ({} if self.separator == "@@" else {"separator": self.separator})

    def split(self, lines: Sequence[str], num_threads: int = 1) -> list[list[str]]:
        return [self._bpe.segment_tokens(self._moses.prepare(line).split()) for line in lines]

    def _text_of(self, piece: str) -> str:
        return piece.removesuffix(self.separator)

    def begins_word(self, piece: str, before: str) -> bool:
        return self.may_end_word(before)

    def may_end_word(self, piece: str) -> bool:
        return not piece.endswith(self.separator)

    def join(self, pieces: Sequence[str]) -> tuple[str, list[Span]]:
        text, spans = "", list[Span]()
        for index, piece in enumerate(pieces):
            continues = piece.endswith(self.separator)
            added = piece.removesuffix(self.separator)
            if not continues and index < len(pieces) - 1:
                added += " "
            spans.append((len(text), len(text) + len(added)))
            text += added
        return self._moses.undo(text, spans)


class Words(Segmentation):
    """Splits at whitespace, for models of pre-tokenized text. Needs no model file."""

    kind = "words"

    def split(self, lines: Sequence[str], num_threads: int = 1) -> list[list[str]]:
        return [self._moses.prepare(line).split() for line in lines]

    def _text_of(self, piece: str) -> str:
        return piece

    def begins_word(self, piece: str, before: str) -> bool:
        return True

    def join(self, pieces: Sequence[str]) -> tuple[str, list[Span]]:
        text = " ".join(pieces)
        ends = accumulate(len(piece) + 1 for piece in pieces)
        spans = [(end - len(piece) - 1, min(end, len(text))) for end, piece in zip(ends, pieces, strict=True)]
        return self._moses.undo(text, spans)


class Characters(Segmentation):
    """Splits into characters, with U+2581 for spaces. Needs no model file."""

    kind = "characters"

    def split(self, lines: Sequence[str], num_threads: int = 1) -> list[list[str]]:
        return [list(self._moses.prepare(line).replace(" ", WORD_START)) for line in lines]

    def _text_of(self, piece: str) -> str:
        return piece.replace(WORD_START, " ")

    def join(self, pieces: Sequence[str]) -> tuple[str, list[Span]]:
        ends = accumulate(map(len, pieces))
        spans = [(end - len(piece), end) for end, piece in zip(ends, pieces, strict=True)]
        return self._moses.undo("".join(pieces).replace(WORD_START, " "), spans)


SEGMENTATIONS: dict[str, type[SentencePiece] | type[BytePairEncoding] | type[Words] | type[Characters]] = {
    method.kind: method for method in (SentencePiece, BytePairEncoding, Words, Characters)
}
"""Segmentations by their names in tokenizer.json."""


@dataclass(frozen=True)
class Piece:
    """A piece of a SentencePiece model.

    Attributes:
        text: its characters, with U+2581 for a space.
        score: logarithm of its probability (unigram), or the negative number of its merge (bpe).
        kind: the number that says what it is for.
    """

    text: str
    score: float
    kind: int

    @property
    def is_normal(self) -> bool:
        """Return whether text is split into it, and it is neither special, a byte nor a symbol."""
        return self.kind == _NORMAL

    @property
    def is_symbol(self) -> bool:
        """Return whether it was defined by a user, and is always a single piece."""
        return self.kind == _USER_DEFINED

    @property
    def is_unused(self) -> bool:
        """Return whether text is never split into it."""
        return self.kind == _UNUSED


def read_pieces(model: bytes) -> tuple[str, list[Piece]]:
    """Return the type of a SentencePiece model (unigram, bpe, word or char), and its pieces by id.

    Args:
        model: a valid model.
    """
    kind, pieces = 1, list[Piece]()
    for number, value, _ in _protobuf_fields(model):
        if not isinstance(value, bytes):
            continue
        if number == _PIECES:
            piece = {key: own for key, own, _ in _protobuf_fields(value)}
            score = struct.unpack("<f", bytes(piece.get(_PIECE_SCORE, bytes(4))))[0]
            text = bytes(piece[_PIECE_TEXT]).decode("utf-8")
            pieces.append(Piece(text, score, int(piece.get(_PIECE_TYPE, _NORMAL))))
        elif number == _TRAINER:
            settings = {key: own for key, own, _ in _protobuf_fields(value)}
            kind = int(settings.get(_MODEL_TYPE, kind))
    return _MODEL_TYPES.get(kind, str(kind)), pieces


def _with_unused_pieces(model: bytes, only: Collection[str]) -> bytes:
    """Return a SentencePiece model that uses no piece of several characters that is not allowed.

    `SetVocabulary` of older versions of the library did this: it gave such pieces the type UNUSED.

    Args:
        model: a valid model.
        only: the allowed pieces.
    """
    parts = []
    for number, value, raw in _protobuf_fields(model):
        if number == _PIECES and isinstance(value, bytes):
            piece = {key: own for key, own, _ in _protobuf_fields(value)}
            text = bytes(piece[_PIECE_TEXT]).decode("utf-8")
            if piece.get(_PIECE_TYPE, _NORMAL) == _NORMAL and len(text) > 1 and text not in only:
                value += bytes([_PIECE_TYPE << 3, _UNUSED])  # the last value of a field counts
                raw = bytes([_PIECES << 3 | 2]) + _as_varint(len(value)) + value
        parts.append(raw)
    return b"".join(parts)


def _protobuf_fields(message: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Yield the number, the value and the bytes of each field of a message in Protocol Buffers' wire format."""
    place = 0
    while place < len(message):
        start = place
        key, place = _varint(message, place)
        value: int | bytes
        match key & 7:
            case 0:
                value, place = _varint(message, place)
            case 2:
                size, place = _varint(message, place)
                value, place = message[place : place + size], place + size
            case kind:
                size = 8 if kind == 1 else 4
                value, place = message[place : place + size], place + size
        yield key >> 3, value, message[start:place]


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, lowest first, and the place after it."""
    value = shift = 0
    while message[place] & 0x80:
        value |= (message[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | message[place] << shift, place + 1


def _as_varint(value: int) -> bytes:
    """Return a number as `_varint` reads it."""
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _as_varint(value >> 7)


def _checked_codes(codes: bytes, where: str) -> str:
    """Return the text of a file of merges.

    Raises:
        StorageError: If it is not one: subword-nmt would end the process.
    """
    hint = "name the file that `subword-nmt learn-bpe` wrote"
    try:
        text = codes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError("not UTF-8 text", where=where, hint=hint) from error
    lines = text.rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if number == 1 and line.startswith("#version:"):
            if not re.fullmatch(r"#version: ?\d+(\.\d+)*", line.strip()):
                raise StorageError(f"unknown version: {line[:40]!r}", where=f"{where}:1", hint=hint)
        elif len(line.strip("\r\n ").split(" ")) != 2:
            raise StorageError(
                "expected two pieces separated by a space", where=f"{where}:{number}", hint=hint
            )
    return text


def _without_marks(text: str, spans: list[Span]) -> tuple[str, list[Span]]:
    """Return a text with characters for the entities and marks of Moses, and the spans in it."""
    after, places, end = "", list[int](), 0
    for found in _MOSES_MARKS_PATTERN.finditer(text):
        after += text[end : found.start()]
        # the space before a mark belongs to the piece before it
        first = len(found[0]) - len(found[0].lstrip())
        places += range(len(after) - found.start() + end, len(after))
        places += [len(after) + (place > first) for place in range(len(found[0]))]
        after, end = after + _MOSES_MARKS[found[0]], found.end()
    places += range(len(after), len(after) + len(text) - end + 1)
    return after + text[end:], [(places[start], places[end]) for start, end in spans]


def _moved(before: str, after: str, spans: list[Span]) -> tuple[str, list[Span]]:
    """Return a text from which spaces were taken, and the spans of the text before in it."""
    places, place = [], 0
    for character in before:
        places.append(place)
        if place < len(after) and after[place] == character:
            place += 1
    places.append(len(after))
    return after, [(places[start], places[end]) for start, end in spans]
