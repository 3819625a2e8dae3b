"""Segmentations: text into pieces and back, without ids. SentencePiece, or byte pair encoding of words.

`tokenizer.VocabularyTokenizer` gives the pieces the ids of a vocabulary, as models of other toolkits have them.
"""

from __future__ import annotations

import hashlib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import sentencepiece

from mtkit.errors import ConfigError, StorageError

Span = tuple[int, int]
"""Start and end of something in a text, in characters."""

WORD_START = "\u2581"


class Segmentation(ABC):
    """Splits lines into pieces and joins pieces to text."""

    kind: str
    """Its name in tokenizer.json."""
    model: bytes
    """The content of the model file."""

    @abstractmethod
    def split(self, lines: Sequence[str], num_threads: int = 1) -> list[list[str]]:
        """Return the pieces of each line."""

    @abstractmethod
    def spans(self, line: str) -> list[Span]:
        """Return the span of the line that each piece of `split` covers."""

    @abstractmethod
    def join(self, pieces: Sequence[str]) -> tuple[str, list[Span]]:
        """Return the text of some pieces, and the span of it that each of them wrote."""

    @abstractmethod
    def normalize(self, line: str) -> str:
        """Return the text that is split: what normalization makes of a line."""

    @property
    def settings(self) -> dict[str, Any]:
        """Further entries of tokenizer.json that are needed to load it."""
        return {}

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


class SentencePiece(Segmentation):
    """A SentencePiece model (Kudo and Richardson 2018) of which only the pieces are used, not the ids."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: str = "tokenizer") -> None:
        self.model = model
        self._processor = load_sentencepiece(model, where)

    def split(self, lines: Sequence[str], num_threads: int = 1) -> list[list[str]]:
        """See `Segmentation.split`. A piece that the model does not know is the text itself."""
        if num_threads == 1:
            return [self._processor.encode(line, out_type=str) for line in lines]
        rows: list[list[str]] = self._processor.encode(list(lines), out_type=str, num_threads=num_threads)
        return rows

    def spans(self, line: str) -> list[Span]:
        """See `Segmentation.spans`."""
        spans: list[Span] = self._processor.encode(line, return_type="offset_mapping")["offsets"]
        return spans

    def join(self, pieces: Sequence[str]) -> tuple[str, list[Span]]:
        """See `Segmentation.join`. Pieces of another model keep their text, their word starts become spaces."""
        decoded = self._processor.decode(list(pieces), return_type="offset_mapping")
        text: str = decoded["text"].replace(WORD_START, " ")
        stripped = text.lstrip(" ") if pieces and pieces[0].startswith(WORD_START) else text
        shift = len(text) - len(stripped)
        return stripped, [(max(0, start - shift), max(0, end - shift)) for start, end in decoded["offsets"]]

    def normalize(self, line: str) -> str:
        """See `Segmentation.normalize`."""
        text: str = self._processor.normalize(line)
        return text


class BytePairEncoding(Segmentation):
    """Byte pair encoding of words (Sennrich et al. 2016) by the package subword-nmt: `@@` continues a word.

    Args:
        codes: the content of the file of merges.
        moses: language code for Moses tokenization (package sacremoses) before the split; None if the text is
            split at spaces alone.
        lowercase: whether text is lowercased first.
        separator: the mark of a piece that does not end a word.
        where: name of the file in error messages.

    Raises:
        ConfigError: If subword-nmt or sacremoses is not installed.
        StorageError: If the codes are malformed.
    """

    kind = "bpe"

    def __init__(
        self,
        codes: bytes,
        *,
        moses: str | None = None,
        lowercase: bool = False,
        separator: str = "@@",
        where: str = "codes",
    ) -> None:
        self.model, self.moses, self.lowercase, self.separator = codes, moses, lowercase, separator
        hint = "pip install 'mtkit[bpe]'"
        try:
            from subword_nmt.apply_bpe import BPE
        except ImportError as error:
            raise ConfigError("the package subword-nmt is not installed", where=where, hint=hint) from error
        self._bpe = BPE(io.StringIO(_checked_codes(codes, where)), separator=separator)
        self._tokenizer = self._detokenizer = None
        if moses is not None:
            try:
                from sacremoses import MosesDetokenizer, MosesTokenizer
            except ImportError as error:
                raise ConfigError(
                    "the package sacremoses is not installed", where=where, hint=hint
                ) from error
            self._tokenizer, self._detokenizer = MosesTokenizer(lang=moses), MosesDetokenizer(lang=moses)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Segmentation.settings`."""
        return {"moses": self.moses, "lowercase": self.lowercase, "separator": self.separator}

    def split(self, lines: Sequence[str], num_threads: int = 1) -> list[list[str]]:
        """See `Segmentation.split`."""
        return [self._bpe.segment_tokens(self._words(line)) for line in lines]

    def _words(self, line: str) -> list[str]:
        text = " ".join(self.normalize(line).split())
        words: list[str] = text.split(" ")
        if self._tokenizer is not None:
            words = self._tokenizer.tokenize(text, escape=False)
        return [word for word in words if word]

    def spans(self, line: str) -> list[Span]:
        """See `Segmentation.spans`. Characters that tokenization changed belong to the piece before them."""
        (pieces,) = self.split([line])
        spans, place = [], 0
        text = line.lower() if self.lowercase and len(line.lower()) == len(line) else line
        for piece in pieces:
            found = text.find(piece.removesuffix(self.separator), place)
            start = place if found < 0 else found
            end = start if found < 0 else found + len(piece.removesuffix(self.separator))
            spans.append((start, end))
            place = end
        return spans

    def join(self, pieces: Sequence[str]) -> tuple[str, list[Span]]:
        """See `Segmentation.join`."""
        text, spans = "", list[Span]()
        for index, piece in enumerate(pieces):
            continues = piece.endswith(self.separator)
            added = piece.removesuffix(self.separator)
            if not continues and index < len(pieces) - 1:
                added += " "
            spans.append((len(text), len(text) + len(added)))
            text += added
        if self._detokenizer is None:
            return text, spans
        return _moved(text, self._detokenizer.detokenize(text.split(" "), unescape=True), spans)

    def normalize(self, line: str) -> str:
        """See `Segmentation.normalize`."""
        return line.lower() if self.lowercase else line


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


def _moved(before: str, after: str, spans: list[Span]) -> tuple[str, list[Span]]:
    """Return a text from which spaces were taken, and the spans of the text before in it."""
    places, place = [], 0
    for character in before:
        places.append(place)
        if place < len(after) and after[place] == character:
            place += 1
    places.append(len(after))
    return after, [(places[start], places[end]) for start, end in spans]
