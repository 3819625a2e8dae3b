"""Text to pieces and back: SentencePiece (Kudo and Richardson 2018), trained here or given as a .model.

A vocabulary is the pieces of the model, special pieces that it lacks, and unused rows up to a multiple of 8.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from mtkit.config.sections import TokenizerConfig
from mtkit.data.readers import Pair
from mtkit.errors import ConfigError, DataError, MtkitError, StorageError
from mtkit.files import storage_errors, write_bytes

Ids = npt.NDArray[np.int32]
Span = tuple[int, int]
"""Where something begins and ends in a text, in characters."""

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
"""pad, unk, bos and eos of a trained model; their ids are 0, 1, 2 and 3."""

MAX_TRAINING_CHARS = 4000
"""Longer lines do not train the tokenizer."""

JOINT_FILE, SRC_FILE, TGT_FILE = "tokenizer.model", "tokenizer.src.model", "tokenizer.tgt.model"

WORD_START = "\u2581"
_ROW_MULTIPLE = 8
_MANY_LINES = 256  # From here on SentencePiece's threads pay for being started.
_TRAINING_THREADS = 16  # Sums of the EM algorithm are made per thread: another number, another model.
_NOT_IN_A_LINE = str.maketrans({"\n": " ", "\r": " ", "\0": None})


class Tokenizer:
    """A SentencePiece model and its special pieces.

    Attributes:
        pad, unk, bos, eos: ids of the special pieces. Those that the model lacks follow its last piece.
        num_pieces: pieces with a meaning, special ones included.
        vocab_size: rows of an embedding: `num_pieces` rounded up to a multiple of 8.
        fingerprint: SHA-256 of the model.
    """

    def __init__(self, model: bytes, where: str = "tokenizer") -> None:
        """Take the bytes of a .model; `where` is how errors call it. Raises: StorageError: it is damaged."""
        self._model = model
        self._processor = _load_processor(model, where)
        self._num_own = self._processor.get_piece_size()
        self.unk: int = self._processor.unk_id()
        self.num_pieces = self._num_own
        own = self._processor
        self.pad, self.bos, self.eos = map(self._own_or_new, (own.pad_id(), own.bos_id(), own.eos_id()))
        self.vocab_size = -(-self.num_pieces // _ROW_MULTIPLE) * _ROW_MULTIPLE
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def _own_or_new(self, own: int) -> int:
        if own >= 0:
            return own
        self.num_pieces += 1
        return self.num_pieces - 1

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a .model file. Raises: StorageError: it is missing or damaged."""
        with storage_errors(path):
            model = Path(path).read_bytes()
        return cls(model, str(path))

    def save(self, path: str | Path) -> None:
        """Write the .model file. Raises: StorageError."""
        write_bytes(path, self._model)

    def encode(self, lines: Sequence[str]) -> list[Ids]:
        """The ids of each line, without bos and eos. Raises: DataError: half a surrogate pair in a line."""
        return [np.array(row, dtype=np.int32) for row in self._encode_rows(lines)]

    def encode_flat(self, lines: Sequence[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The ids of all lines in one array, and how many each line has. Raises: DataError: as `encode`."""
        rows = self._encode_rows(lines)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    def _encode_rows(self, lines: Sequence[str]) -> list[list[int]]:
        try:
            return self._encode_all(list(lines))
        except (TypeError, RuntimeError) as error:
            _refuse_surrogates(lines, error)
            raise

    def _encode_all(self, lines: list[str]) -> list[list[int]]:
        if len(lines) < _MANY_LINES:
            return [self._processor.encode(line, out_type=int) for line in lines]
        rows: list[list[int]] = self._processor.encode(lines, out_type=int, num_threads=_num_threads())
        return rows

    def decode(self, sequences: Sequence[Sequence[int] | npt.NDArray[np.integer]]) -> list[str]:
        """One line of text for each sequence of ids; pad, bos, eos and unused rows are passed over.

        A line break made of byte pieces becomes a space.
        """
        return [self._decode_row(np.asarray(ids, dtype=np.int64).tolist()) for ids in sequences]

    def _decode_row(self, ids: list[int]) -> str:
        passed_over = (self.pad, self.bos, self.eos)
        text: str = self._processor.decode([i for i in ids if i < self._num_own and i not in passed_over])
        return text.translate(_NOT_IN_A_LINE)

    def pieces(self, line: str) -> list[str]:
        """The line's pieces as text, U+2581 in place of spaces; as many as `encode` gives ids."""
        pieces: list[str] = self._processor.encode(line, out_type=str)
        return pieces

    def count_characters(self, lines: Sequence[str]) -> Counter[str]:
        """How often each character comes in lines, as the model normalizes them; spaces are left out."""
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(self._processor.normalize(line))
        for space in (" ", WORD_START):
            counts.pop(space, None)
        return counts

    def spans(self, line: str) -> list[Span]:
        """The characters of the line that each of its pieces stands for, for as many as `encode` gives ids.

        A space belongs to the piece behind it. Where normalisation makes several pieces of one character, all but one
        of them are empty; so are all byte pieces of a character but the last.
        """
        spans: list[Span] = self._processor.encode(line, return_type="offset_mapping")["offsets"]
        return spans

    def unknown_spans(self, line: str) -> list[Span]:
        """Where the line has characters that no piece has: they are unknown, or spelled in bytes."""
        strange = [i == self.unk or self._processor.is_byte(i) for i in self.encode([line])[0].tolist()]
        if not any(strange):
            return []
        found: list[Span] = []
        for start, end in compress(self.spans(line), strange):
            if found and start == found[-1][1]:
                start = found.pop()[0]
            found.append((start, end))
        return [(start, end) for start, end in found if line[start:end].strip()]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """What each id adds to the text that `decode` makes of all."""
        shown = [i < self._num_own and i not in (self.pad, self.bos, self.eos) for i in ids]
        found = self._processor.decode(list(compress(ids, shown)), return_type="offset_mapping")
        texts = iter([found["text"][start:end].translate(_NOT_IN_A_LINE) for start, end in found["offsets"]])
        return [next(texts) if is_shown else "" for is_shown in shown]

    def piece(self, index: int) -> str:
        """The text of a piece by its id; rows that the model lacks have names that no text has."""
        if index < self._num_own:
            return str(self._processor.id_to_piece(index))
        names = {self.pad: SPECIALS[0], self.bos: SPECIALS[2], self.eos: SPECIALS[3]}
        return names.get(index, f"<unused {index}>")

    def is_single_piece(self, text: str) -> bool:
        """Whether a text is a piece by itself, as user symbols are: neither several pieces nor the word of one."""
        ids = self.encode([text])[0].tolist()
        pieces = [self.piece(i) for i in ids]
        return pieces in ([text], [WORD_START, text]) and self.unk not in ids and WORD_START not in text


def _load_processor(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    hint = "copy it again, or train it anew"
    if not model:
        raise StorageError("an empty file, not a SentencePiece model", where=where, hint=hint)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise StorageError("damaged, or not a SentencePiece model", where=where, hint=hint) from error
    return processor


def _num_threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse_surrogates(lines: Sequence[str], cause: Exception) -> None:
    """Say which line cannot be written as UTF-8, if one cannot."""
    for number, line in enumerate(lines, 1):
        if re.search("[\ud800-\udfff]", line):
            raise DataError("half of a surrogate pair", where=f"line {number}", hint="remove it") from cause


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of both sides; one and the same if `joint`."""

    src: Tokenizer
    tgt: Tokenizer
    joint: bool

    @property
    def fingerprint(self) -> str:
        """A hash of both models."""
        return hashlib.sha256(f"{self.src.fingerprint} {self.tgt.fingerprint}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Copy the models into a folder, where `load_tokenizers` finds them, and no others. Raises: StorageError."""
        with storage_errors(folder):
            for name in (SRC_FILE, TGT_FILE) if self.joint else (JOINT_FILE,):
                (folder / name).unlink(missing_ok=True)
        if self.joint:
            self.src.save(folder / JOINT_FILE)
        else:
            self.src.save(folder / SRC_FILE)
            self.tgt.save(folder / TGT_FILE)


def load_tokenizers(folder: Path) -> Tokenizers:
    """The tokenizers of a run or model folder. Raises: StorageError: they are missing or damaged."""
    if (folder / JOINT_FILE).exists():
        joint = Tokenizer.load(folder / JOINT_FILE)
        return Tokenizers(joint, joint, joint=True)
    if not folder.is_dir():
        raise StorageError("no such folder", where=str(folder), hint="check the path")
    if not any((folder / name).exists() for name in (SRC_FILE, TGT_FILE)):
        hint = "a run or model folder holds it: copy it there"
        raise StorageError(f"no {JOINT_FILE} in this folder", where=str(folder), hint=hint)
    return Tokenizers(Tokenizer.load(folder / SRC_FILE), Tokenizer.load(folder / TGT_FILE), joint=False)


def make_tokenizers(
    config: TokenizerConfig, pairs: Iterable[Pair], seed: int = 1, say: Callable[[str], None] | None = None
) -> Tokenizers:
    """Load the models that the config names, or train on the pairs (which are read only then).

    Args:
        config: kind and size of the vocabulary, or paths of models.
        pairs: the training pairs; sampled evenly if they are more than `config.training_lines`.
        seed: of the sample. The same pairs, config and seed give the same model, byte for byte.
        say: told, after training, which share of the text got no pieces of its own.

    Raises:
        ConfigError: a vocabulary too small for the corpus, user symbols that clash.
        DataError: no text to train on, or what reading the pairs raises.
        StorageError: a model that is missing or damaged.
    """
    if config.model is not None:
        joint = Tokenizer.load(os.path.expanduser(config.model))
        return Tokenizers(joint, joint, joint=True)
    if config.src_model is not None and config.tgt_model is not None:
        src, tgt = (Tokenizer.load(os.path.expanduser(path)) for path in (config.src_model, config.tgt_model))
        return Tokenizers(src, tgt, joint=False)
    _check_symbols(config.user_symbols)
    if config.joint:
        sample = _sample(pairs, max(1, config.training_lines // 2), seed)
        joint = _trained([text for pair in sample for text in pair], config, "tokenizer", say)
        return Tokenizers(joint, joint, joint=True)
    sample = _sample(pairs, config.training_lines, seed)
    src, tgt = (
        _trained([pair[side] for pair in sample], config, f"{name} tokenizer", say)
        for side, name in enumerate(("source", "target"))
    )
    return Tokenizers(src, tgt, joint=False)


def _trained(
    lines: list[str], config: TokenizerConfig, name: str, say: Callable[[str], None] | None
) -> Tokenizer:
    """A tokenizer trained on these lines, and what is to be said of it."""
    tokenizer = Tokenizer(_train(lines, config))
    if say is not None and (told := _left_out(tokenizer, lines, config)):
        say(f"{name}: {told}")
    return tokenizer


def _left_out(tokenizer: Tokenizer, lines: Sequence[str], config: TokenizerConfig) -> str | None:
    """How many characters of the lines, and which share of their text, have no pieces; None if all have."""
    counts = tokenizer.count_characters(lines)
    known = {tokenizer.piece(i) for i in range(tokenizer.num_pieces)}
    lost = {character: number for character, number in counts.items() if character not in known}
    if not lost:
        return None
    share = sum(lost.values()) / counts.total()
    what = "spelled as bytes" if config.byte_fallback else "unknown"
    return (
        f"{len(lost):,} of {len(counts):,} different characters, {100 * share:.2g} % of the text, are {what} "
        f"(tokenizer.character_coverage {config.character_coverage:g})"
    )


def _sample(pairs: Iterable[Pair], size: int, seed: int) -> list[Pair]:
    """An even sample in one pass (Vitter 1985, algorithm R); all pairs, in order, if no more than `size`."""
    rng = random.Random(seed)
    sample: list[Pair] = []
    for number, pair in enumerate(pairs):
        if number < size:
            sample.append(pair)
        elif (place := rng.randrange(number + 1)) < size:
            sample[place] = pair
    return sample


def _train(lines: list[str], config: TokenizerConfig) -> bytes:
    """The bytes of a model trained on these lines."""
    usable = [line for line in lines if line.strip() and len(line) <= MAX_TRAINING_CHARS]
    if not usable:
        raise DataError("no text to train the tokenizer on", hint="fill the sources of data.train")
    model = io.BytesIO()
    try:
        train = partial(
            sentencepiece.SentencePieceTrainer.train,
            sentence_iterator=iter(usable),
            model_writer=model,
            model_type=config.type,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            character_coverage=config.character_coverage,
            byte_fallback=config.byte_fallback,
            normalization_rule_name=config.normalization,
            user_defined_symbols=list(config.user_symbols),
            max_sentence_length=4 * MAX_TRAINING_CHARS,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=SPECIALS[0],
            unk_piece=SPECIALS[1],
            bos_piece=SPECIALS[2],
            eos_piece=SPECIALS[3],
        )
        _in_a_thread(train)
    except RuntimeError as error:
        raise _explain(str(error), config) from error
    return model.getvalue()


def _in_a_thread(work: Callable[[], object]) -> None:
    """Call what is C++ for minutes. In the main thread a Ctrl-C or SIGTERM would be heard only afterwards."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)  # daemon: the process need not wait for it to leave
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _check_symbols(symbols: Sequence[str]) -> None:
    """Refuse what SentencePiece would refuse without a reason, or take for a special piece."""
    for symbol in symbols:
        if not symbol.strip() or symbol in SPECIALS or symbols.count(symbol) > 1:
            what = f"{symbol!r} is blank, listed twice or a special piece"
            raise ConfigError(what, where="tokenizer.user_symbols", hint="remove it")


def _explain(message: str, config: TokenizerConfig) -> MtkitError:
    """What SentencePiece means."""
    if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        what = f"{config.vocab_size} is too few for the characters, bytes and special pieces of this corpus"
        hint = f"at least {needed[1]}, or a tokenizer.character_coverage below {config.character_coverage:g}"
        return ConfigError(what, where="tokenizer.vocab_size", hint=hint)
    if clash := re.search(r"(\S+) is already defined", message):
        what = f"{clash[1]!r} is a piece already"
        return ConfigError(what, where="tokenizer.user_symbols", hint="remove it")
    if "all_chars_count" in message:
        return DataError("no text to train the tokenizer on", hint="data.train holds nothing but white space")
    what = f"SentencePiece cannot train on this corpus: {' '.join(message.split())}"
    return DataError(what, hint="try another tokenizer.vocab_size or tokenizer.type")
