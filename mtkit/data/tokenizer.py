"""Tokenizers: SentencePiece (Kudo and Richardson 2018), trained here or given as a .model.

In: lines of text. Out: token ids, and back.

A vocabulary has the pieces of the model, the special pieces that it lacks, and unused rows up to a multiple of 8.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mtkit.config.sections import TokenizerConfig
from mtkit.data.batching import Ids
from mtkit.data.readers import Pair
from mtkit.data.segmentation import (
    SEGMENTATIONS,
    WORD_START,
    Preparation,
    Segmentation,
    Span,
    append_symbols,
    load_sentencepiece,
)
from mtkit.data.sentencepiece_training import (
    SPECIALS,
    check_user_symbols,
    count_lost_characters,
    sample_pairs,
    train_sentencepiece,
)
from mtkit.errors import ConfigError, DataError, StorageError
from mtkit.files import storage_errors, write_bytes
from mtkit.job_limits import usable_cores

_JOINT_FILE, _SRC_FILE, _TGT_FILE = "tokenizer.model", "tokenizer.src.model", "tokenizer.tgt.model"
VOCABULARY_FILE = "tokenizer.json"
"""Vocabularies with ids of their own, and how text is split for them; absent if ids are SentencePiece's."""
TOKENIZER_FILES = (_JOINT_FILE, _SRC_FILE, _TGT_FILE, VOCABULARY_FILE)
_FORMAT = 1

_ROW_MULTIPLE = 8
_MIN_LINES_FOR_THREADS = 256  # With fewer lines, starting SentencePiece's threads takes longer than it saves.
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
"""Piece that stands for a byte of a character that has no piece."""
_MAX_LOST = 0.002
"""Share of the target's characters that normalization may change where the config leaves it to us: European languages
have 0.00001 of them, Thai and Persian 0.01, Chinese 0.05 and more."""
_TO_ONE_LINE = str.maketrans({"\n": " ", "\r": " ", "\0": None})


class Tokenizer:
    """A SentencePiece model and its special pieces.

    Attributes:
        pad, unk, bos, eos: ids of the special pieces; those that the model lacks come after its last piece.
        special: ids of the tokens that have no text: pad, bos, eos, and others of a vocabulary.
        num_pieces: number of pieces, with the special ones.
        vocab_size: number of embedding rows: `num_pieces` rounded up to a multiple of 8.
        fingerprint: SHA-256 of the model.
    """

    def __init__(self, model: bytes, where: str = "tokenizer") -> None:
        """Load a model from the bytes of a .model file.

        Args:
            model: the bytes.
            where: the name of the file in error messages.

        Raises:
            StorageError: If they are not a SentencePiece model.
        """
        self._model = model
        self._processor = load_sentencepiece(model, where)
        self._model_size = self._processor.get_piece_size()
        self.unk: int = self._processor.unk_id()
        self.num_pieces = self._model_size
        ids = (self._processor.pad_id(), self._processor.bos_id(), self._processor.eos_id())
        self.pad, self.bos, self.eos = map(self._id_or_new, ids)
        self.special: tuple[int, ...] = (self.pad, self.bos, self.eos)
        self.vocab_size = -(-self.num_pieces // _ROW_MULTIPLE) * _ROW_MULTIPLE
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def _id_or_new(self, model_id: int) -> int:
        """Return the model's id of a special piece, or the next free one if the model lacks it (-1)."""
        if model_id >= 0:
            return model_id
        self.num_pieces += 1
        return self.num_pieces - 1

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a .model file.

        Raises:
            StorageError: If it is missing or damaged.
        """
        with storage_errors(path):
            model = Path(path).read_bytes()
        return cls(model, str(path))

    def save(self, path: str | Path) -> None:
        """Write the .model file.

        Raises:
            StorageError: If it cannot be written.
        """
        write_bytes(path, self.model)

    @property
    def model(self) -> bytes:
        """The content of the .model file."""
        return self._model

    def encode(self, lines: Sequence[str]) -> list[Ids]:
        """Return the ids of each line, without bos and eos.

        Raises:
            DataError: If a line contains half of a surrogate pair.
        """
        return [np.array(row, dtype=np.int32) for row in self._encode_rows(lines)]

    def encode_flat(self, lines: Sequence[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Return the ids of all lines in one array, and the number of ids of each line.

        Raises:
            DataError: If a line contains half of a surrogate pair.
        """
        rows = self._encode_rows(lines)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    def _encode_rows(self, lines: Sequence[str]) -> list[list[int]]:
        try:
            return self._encode_all(list(lines))
        except (TypeError, RuntimeError) as error:
            _check_surrogates(lines, error)
            raise

    def _encode_all(self, lines: list[str]) -> list[list[int]]:
        if len(lines) < _MIN_LINES_FOR_THREADS:
            return [self._processor.encode(line, out_type=int) for line in lines]
        rows: list[list[int]] = self._processor.encode(lines, out_type=int, num_threads=usable_cores())
        return rows

    def decode(self, sequences: Sequence[Sequence[int] | npt.NDArray[np.integer]]) -> list[str]:
        """Return one line of text for each sequence of ids, skipping pad, bos, eos and unused rows.

        A line break made of byte pieces becomes a space.
        """
        return [self._decode_row(np.asarray(ids, dtype=np.int64).tolist()) for ids in sequences]

    def _decode_row(self, ids: list[int]) -> str:
        text: str = self._processor.decode([i for i in ids if self._has_text(i)])
        return text.translate(_TO_ONE_LINE)

    def _has_text(self, index: int) -> bool:
        return index < self._model_size and index not in self.special

    def pieces(self, line: str) -> list[str]:
        """Return the pieces of a line, one for each id of `encode`, with U+2581 for spaces."""
        pieces: list[str] = self._processor.encode(line, out_type=str)
        return pieces

    def count_characters(self, lines: Sequence[str]) -> Counter[str]:
        """Count the characters of the lines after the model's normalization, without spaces."""
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(self._processor.normalize(line))
        for space in (" ", WORD_START):
            counts.pop(space, None)
        return counts

    def spans(self, line: str) -> list[Span]:
        """Return the span of the line that each piece covers, one for each id of `encode`.

        A space belongs to the piece after it. If normalization makes several pieces of one character, all but one of
        their spans are empty; so are those of a character's byte pieces except the last.
        """
        spans: list[Span] = self._processor.encode(line, return_type="offset_mapping")["offsets"]
        return spans

    def unknown_spans(self, line: str) -> list[Span]:
        """Return the spans of characters that no piece contains: they are unknown, or spelled as bytes."""
        is_unknown = [i == self.unk or self._processor.is_byte(i) for i in self.encode([line])[0].tolist()]
        return _merge_spans(line, compress(self.spans(line), is_unknown)) if any(is_unknown) else []

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each id contributes to the result of `decode`."""
        has_text = [self._has_text(i) for i in ids]
        decoded = self._processor.decode(list(compress(ids, has_text)), return_type="offset_mapping")
        texts = iter(
            [decoded["text"][start:end].translate(_TO_ONE_LINE) for start, end in decoded["offsets"]]
        )
        return [next(texts) if shown else "" for shown in has_text]

    def begins_word(self, piece: str, before: str) -> bool:
        """Return whether a piece begins a word, after the piece before it."""
        return piece.startswith(WORD_START)

    def may_end_word(self, piece: str) -> bool:
        """Return whether a word may end with a piece."""
        return True

    def piece(self, index: int) -> str:
        """Return the piece with this id; rows that the model lacks have names that never occur in text."""
        if index < self._model_size:
            return str(self._processor.id_to_piece(index))
        names = {self.pad: SPECIALS[0], self.bos: SPECIALS[2], self.eos: SPECIALS[3]}
        return names.get(index, f"<unused {index}>")

    def with_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """Return a tokenizer with further tokens: strings that always become a single piece.

        Args:
            tokens: strings that are no pieces yet.
        """
        return Tokenizer(append_symbols(self._model, tokens))

    @property
    def tags(self) -> tuple[str, ...]:
        """The tokens such as >>fra<< that name a language at the start of a line."""
        return ()

    def leading_tag(self, line: str) -> str:
        """Return what stands in the place of such a token at the start of a line; nothing if there is none."""
        return ""

    def is_single_piece(self, text: str) -> bool:
        """Return whether a text is exactly one piece, as user symbols are, and not a piece at the start of a word."""
        ids = self.encode([text])[0].tolist()
        pieces = [self.piece(i) for i in ids]
        return pieces in ([text], [WORD_START, text]) and self.unk not in ids and WORD_START not in text


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their ids, as a model of another toolkit has them.

    Attributes:
        tokens: the tokens by id, all different.
        pad, unk, eos: special tokens.
        bos: the token that the decoder starts with (`decoder_start_token` elsewhere); may be pad or eos.
        tags: whether a token such as `>>fra<<` at the start of a line is one token, whatever splits the rest.
        special: further special tokens, which have no text and are never generated.
    """

    tokens: tuple[str, ...]
    pad: str
    unk: str
    bos: str
    eos: str
    tags: bool = False
    special: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the special tokens are there and no token is there twice."""
        ids = self.ids
        if len(ids) != len(self.tokens):
            twice = next(token for token, number in Counter(self.tokens).items() if number > 1)
            raise ValueError(f"the token {twice!r} is there twice")
        names = {name: getattr(self, name) for name in ("pad", "unk", "bos", "eos")}
        for name, token in [*names.items(), *(("special token", token) for token in self.special)]:
            if token not in ids:
                raise ValueError(f"{name} {token!r} is not a token of the vocabulary")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each token."""
        return {token: index for index, token in enumerate(self.tokens)}

    @property
    def pieces(self) -> frozenset[str]:
        """The tokens that are not special."""
        return frozenset(self.tokens) - {self.pad, self.unk, self.bos, self.eos, *self.special}


class VocabularyTokenizer(Tokenizer):
    """A tokenizer whose ids are those of a vocabulary, as models of other toolkits have them.

    Args:
        segmentation: splits text into pieces.
        vocabulary: gives them ids; a piece that is not in it is unknown.
    """

    def __init__(self, segmentation: Segmentation, vocabulary: Vocabulary) -> None:
        self.segmentation, self.vocabulary = segmentation, vocabulary
        self._ids = vocabulary.ids
        # In a text they are nothing but text.
        marks = {vocabulary.pad, vocabulary.bos, vocabulary.eos}
        self._ids_in_text = {token: i for token, i in self._ids.items() if token not in marks}
        self.pad, self.unk, self.bos, self.eos = (
            self._ids[token] for token in (vocabulary.pad, vocabulary.unk, vocabulary.bos, vocabulary.eos)
        )
        self.special = (self.pad, self.bos, self.eos, *(self._ids[token] for token in vocabulary.special))
        self.num_pieces = self.vocab_size = len(vocabulary.tokens)
        described = json.dumps([segmentation.kind, segmentation.fingerprint, asdict(vocabulary)])
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()

    @property
    def model(self) -> bytes:
        return self.segmentation.model

    def _encode_all(self, lines: list[str]) -> list[list[int]]:
        tags = [self.leading_tag(line) for line in lines]
        texts = [line[len(tag) :] for line, tag in zip(lines, tags, strict=True)]
        num_threads = 1 if len(lines) < _MIN_LINES_FOR_THREADS else usable_cores()
        rows = self.segmentation.split(texts, num_threads)
        return [
            [self._ids_in_text.get(piece, self.unk) for piece in ([tag, *row] if tag else row)]
            for tag, row in zip(tags, rows, strict=True)
        ]

    @cached_property
    def tags(self) -> tuple[str, ...]:
        known = self.vocabulary.tokens if self.vocabulary.tags else ()
        return tuple(token for token in known if token.startswith(">>") and token.endswith("<<"))

    def leading_tag(self, line: str) -> str:
        end = line.find("<<") + 2 if self.vocabulary.tags and line.startswith(">>") else 0
        return line[:end] if end >= 2 else ""

    def _decode_row(self, ids: list[int]) -> str:
        text, _ = self.segmentation.join([self.piece(i) for i in ids if self._has_text(i)])
        return text.translate(_TO_ONE_LINE)

    def _has_text(self, index: int) -> bool:
        return index not in self.special

    def pieces(self, line: str) -> list[str]:
        tag = self.leading_tag(line)
        (pieces,) = self.segmentation.split([line[len(tag) :]])
        return [tag, *pieces] if tag else pieces

    def count_characters(self, lines: Sequence[str]) -> Counter[str]:
        counts = Counter("".join(map(self.segmentation.normalize, lines)))
        for space in (" ", WORD_START):
            counts.pop(space, None)
        return counts

    def spans(self, line: str) -> list[Span]:
        width = len(self.leading_tag(line))
        spans = [(start + width, end + width) for start, end in self.segmentation.spans(line[width:])]
        return [(0, width), *spans] if width else spans

    def unknown_spans(self, line: str) -> list[Span]:
        pieces = self.pieces(line)
        is_unknown = [
            self._ids_in_text.get(piece, self.unk) == self.unk or BYTE_PIECE.fullmatch(piece) is not None
            for piece in pieces
        ]
        return _merge_spans(line, compress(self.spans(line), is_unknown))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        has_text = [self._has_text(i) for i in ids]
        text, spans = self.segmentation.join([self.piece(i) for i in compress(ids, has_text)])
        texts = iter([text[start:end].translate(_TO_ONE_LINE) for start, end in spans])
        return [next(texts) if shown else "" for shown in has_text]

    def begins_word(self, piece: str, before: str) -> bool:
        return self.segmentation.begins_word(piece, before)

    def may_end_word(self, piece: str) -> bool:
        return self.segmentation.may_end_word(piece)

    def piece(self, index: int) -> str:
        return self.vocabulary.tokens[index]

    def with_tokens(self, tokens: Sequence[str]) -> VocabularyTokenizer:
        vocabulary = replace(self.vocabulary, tokens=(*self.vocabulary.tokens, *tokens))
        return VocabularyTokenizer(self.segmentation.with_symbols(tokens), vocabulary)

    def is_single_piece(self, text: str) -> bool:
        """Return whether a text is exactly one piece, as tags are too."""
        return self.encode([text])[0].tolist() == [self._ids.get(text)] or super().is_single_piece(text)


def _merge_spans(line: str, spans: Iterable[Span]) -> list[Span]:
    """Return adjacent spans as one, without those that hold only spaces."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and start == merged[-1][1]:
            start = merged.pop()[0]
        merged.append((start, end))
    return [(start, end) for start, end in merged if line[start:end].strip()]


def _check_surrogates(lines: Sequence[str], cause: Exception) -> None:
    """Check that all lines can be encoded as UTF-8.

    Raises:
        DataError: If a line contains half of a surrogate pair.
    """
    for number, line in enumerate(lines, 1):
        if re.search("[\ud800-\udfff]", line):
            raise DataError("half of a surrogate pair", where=f"line {number}", hint="remove it") from cause


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of both sides, the same object if `joint`."""

    src: Tokenizer
    tgt: Tokenizer
    joint: bool

    @property
    def fingerprint(self) -> str:
        """Return a hash of both models."""
        return hashlib.sha256(f"{self.src.fingerprint} {self.tgt.fingerprint}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the models into a folder for `load_tokenizers`, replacing others that are there.

        Raises:
            StorageError: If they cannot be written.
        """
        files = self.files()
        with storage_errors(folder):
            for name in set(TOKENIZER_FILES) - files.keys():
                (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            write_bytes(folder / name, content)

    def files(self) -> dict[str, bytes]:
        """Return the files that `load_tokenizers` needs, by name."""
        if self.src is self.tgt:
            files = {_JOINT_FILE: self.src.model}
        else:
            files = {_SRC_FILE: self.src.model, _TGT_FILE: self.tgt.model}
        if isinstance(self.src, VocabularyTokenizer) and isinstance(self.tgt, VocabularyTokenizer):
            sides = {"src": _describe(self.src), "tgt": _describe(self.tgt)}
            described = {"format": _FORMAT, "joint": self.joint, **sides}
            files[VOCABULARY_FILE] = json.dumps(described, ensure_ascii=False, indent=0).encode()
        return files


def add_tokens(tokenizers: Tokenizers, tokens: Sequence[str]) -> Tokenizers:
    """Return tokenizers whose vocabularies end with further tokens, on both sides.

    Args:
        tokenizers: the tokenizers.
        tokens: strings that become a single token wherever they occur.

    Raises:
        ConfigError: If one is blank, listed twice or a piece already, or the tokenizer cannot keep it whole.
    """
    where = "tokenizer.add_tokens"
    known = {side.piece(i) for side in (tokenizers.src, tokenizers.tgt) for i in range(side.num_pieces)}
    for token in tokens:
        if token in known:
            raise ConfigError(f"{token!r} is a token already", where=where, hint="remove it")
        if token.split() != [token] or tokens.count(token) > 1:
            raise ConfigError(
                f"{token!r} is blank, has a space or is listed twice", where=where, hint="remove it"
            )
    src = tokenizers.src.with_tokens(tokens)
    tgt = src if tokenizers.tgt is tokenizers.src else tokenizers.tgt.with_tokens(tokens)
    for token in tokens:
        if not (src.is_single_piece(token) and tgt.is_single_piece(token)):
            hint = (
                "SentencePiece and words between spaces can take new tokens, as they are after normalization"
            )
            raise ConfigError(f"the tokenizer of this model splits {token!r}", where=where, hint=hint)
    return Tokenizers(src, tgt, tokenizers.joint)


def _describe(tokenizer: VocabularyTokenizer) -> dict[str, Any]:
    """Return a side of tokenizer.json."""
    segmentation = tokenizer.segmentation
    return {
        "segmentation": segmentation.kind,
        **segmentation.settings,
        "vocabulary": asdict(tokenizer.vocabulary),
    }


def load_tokenizers(folder: Path) -> Tokenizers:
    """Load the tokenizers of a run or model folder.

    Raises:
        StorageError: If they are missing or damaged.
    """
    if (folder / VOCABULARY_FILE).exists():
        return _load_with_vocabularies(folder)
    if (folder / _JOINT_FILE).exists():
        joint = Tokenizer.load(folder / _JOINT_FILE)
        return Tokenizers(joint, joint, joint=True)
    if not folder.is_dir():
        raise StorageError("no such folder", where=str(folder), hint="check the path")
    if not any((folder / name).exists() for name in (_SRC_FILE, _TGT_FILE)):
        hint = "copy it from the run or model folder"
        raise StorageError(f"no {_JOINT_FILE} in this folder", where=str(folder), hint=hint)
    return Tokenizers(Tokenizer.load(folder / _SRC_FILE), Tokenizer.load(folder / _TGT_FILE), joint=False)


def _load_with_vocabularies(folder: Path) -> Tokenizers:
    """Load tokenizers that tokenizer.json describes.

    Raises:
        ConfigError: If a package that splits text for them is not installed.
        StorageError: If a file is missing or damaged.
    """
    path = folder / VOCABULARY_FILE
    with storage_errors(path):
        content = path.read_bytes()
    try:
        described = json.loads(content)
        if described["format"] > _FORMAT:
            raise StorageError("written by a later version of mtkit", where=str(path), hint="update mtkit")
        one_model = (folder / _JOINT_FILE).exists()
        src = _load_side(described["src"], folder / (_JOINT_FILE if one_model else _SRC_FILE))
        same = one_model and described["tgt"] == described["src"]
        tgt = (
            src if same else _load_side(described["tgt"], folder / (_JOINT_FILE if one_model else _TGT_FILE))
        )
        return Tokenizers(src, tgt, joint=bool(described["joint"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        hint = "copy it again, or import the model again"
        raise StorageError(f"not a vocabulary of mtkit: {error}", where=str(path), hint=hint) from error


def _load_side(described: dict[str, Any], path: Path) -> VocabularyTokenizer:
    """Load the tokenizer of one side from tokenizer.json and its model file."""
    with storage_errors(path):
        model = path.read_bytes()
    settings = dict(described)
    fields_ = dict(settings.pop("vocabulary"))
    tokens, special = (tuple(map(str, fields_.pop(name, ()))) for name in ("tokens", "special"))
    vocabulary = Vocabulary(tokens, special=special, **fields_)
    kind = settings.pop("segmentation")
    if kind not in SEGMENTATIONS:
        raise ValueError(f"unknown segmentation {kind!r}")
    preparation = Preparation(
        **{
            name: settings.pop(name)
            for name in ("moses", "escape", "split_dashes", "lowercase")
            if name in settings
        }
    )
    only = vocabulary.pieces if settings.pop("restricted", False) else None
    method = SEGMENTATIONS[kind]
    segmentation = method(model, preparation=preparation, only=only, where=str(path), **settings)
    return VocabularyTokenizer(segmentation, vocabulary)


def make_tokenizers(
    config: TokenizerConfig,
    pairs: Iterable[Pair],
    seed: int = 1,
    say: Callable[[str], None] = lambda _: None,
    *,
    reverse: bool = False,
) -> Tokenizers:
    """Load the models that the config names, or train them on the pairs (which are read only then).

    Args:
        config: type and size of the vocabulary, or paths of models.
        pairs: the training pairs, sampled evenly if there are more than `config.training_lines`.
        seed: the random seed of the sample. The same pairs, config and seed give the same model, byte for byte.
        say: called with why text is not normalized, and with the share of the text that no piece covers.
        reverse: whether both sides are targets.

    Raises:
        ConfigError: If the vocabulary is too small for the corpus, or user symbols clash.
        DataError: If there is no text to train on, or the pairs cannot be read.
        StorageError: If a model is missing or damaged.
    """
    if config.model is not None:
        joint = Tokenizer.load(os.path.expanduser(config.model))
        return Tokenizers(joint, joint, joint=True)
    if config.src_model is not None and config.tgt_model is not None:
        src, tgt = (Tokenizer.load(os.path.expanduser(path)) for path in (config.src_model, config.tgt_model))
        return Tokenizers(src, tgt, joint=False)
    check_user_symbols(config.user_symbols)
    if config.joint:
        sample = sample_pairs(pairs, max(1, config.training_lines // 2), seed)
        written = [tgt for _, tgt in sample] + [src for src, _ in sample if reverse]
        normalization = _choose_normalization(config, written, say)
        texts = [text for pair in sample for text in pair]
        joint = _train_tokenizer(texts, config, normalization, "tokenizer", say)
        return Tokenizers(joint, joint, joint=True)
    sample = sample_pairs(pairs, config.training_lines, seed)
    srcs, tgts = [src for src, _ in sample], [tgt for _, tgt in sample]
    src = _train_tokenizer(srcs, config, _choose_normalization(config, [], say), "source tokenizer", say)
    tgt = _train_tokenizer(tgts, config, _choose_normalization(config, tgts, say), "target tokenizer", say)
    return Tokenizers(src, tgt, joint=False)


def _choose_normalization(config: TokenizerConfig, tgts: Sequence[str], say: Callable[[str], None]) -> str:
    """Return the name of SentencePiece's rule, which `auto` chooses by what it would do to these targets."""
    if config.normalization != "auto":
        return config.normalization
    lost, share = count_lost_characters(tgts, "nmt_nfkc")
    if share <= _MAX_LOST:
        return "nmt_nfkc"
    examples = " ".join(character if character.isprintable() else f"U+{ord(character):04X}"
                        for character, _ in lost.most_common(5))  # fmt: skip
    say(
        f"text is not normalized (tokenizer.normalization identity): nmt_nfkc would change {100 * share:.2g} % of the "
        f"target's characters, such as {examples}"
    )
    return "identity"


def _train_tokenizer(
    lines: list[str], config: TokenizerConfig, normalization: str, name: str, say: Callable[[str], None]
) -> Tokenizer:
    """Train a tokenizer on these lines, and report the characters that it does not cover."""
    tokenizer = Tokenizer(train_sentencepiece(lines, config, normalization))
    if report := _report_uncovered(tokenizer, lines, config):
        say(f"{name}: {report}")
    return tokenizer


def _report_uncovered(tokenizer: Tokenizer, lines: Sequence[str], config: TokenizerConfig) -> str | None:
    """Return how many characters, and which share of the text, no piece covers; None if all are covered."""
    if config.user_symbols:
        symbols = re.compile("|".join(map(re.escape, config.user_symbols)))
        lines = [symbols.sub("", line) for line in lines]
    counts = tokenizer.count_characters(lines)
    pieces = {tokenizer.piece(i) for i in range(tokenizer.num_pieces)}
    uncovered = {character: count for character, count in counts.items() if character not in pieces}
    if not uncovered:
        return None
    share = sum(uncovered.values()) / counts.total()
    what = "spelled as bytes" if config.byte_fallback else "unknown"
    return (
        f"{len(uncovered):,} of {len(counts):,} different characters, {100 * share:.2g} % of the text, are {what} "
        f"(tokenizer.character_coverage {config.character_coverage:g})"
    )
