"""A config to start from, for given files: `mtkit init`.

Sizes follow from the number of pairs alone, by the rules of `_SIZES` and of the functions below. They are those of the
configs that come with mtkit; nobody should take them for tuned.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtkit.config.loading import parse_config
from mtkit.config.sections import Config
from mtkit.config.yaml_document import format_value
from mtkit.data.recognize import TEST_NAME, VALID_NAME, Entry, Languages, find_split_files, recognize
from mtkit.data.sources import open_sources, read_sides
from mtkit.errors import DataError


@dataclass(frozen=True)
class Size:
    """A model and how it is trained.

    Attributes:
        max_pairs: of corpora for which it is meant.
        d_model, layers, dropout, batch_tokens, learning_rate: see the config.
        epochs: how often it sees each pair.
    """

    max_pairs: float
    d_model: int
    layers: int
    dropout: float
    batch_tokens: int
    learning_rate: float
    epochs: int


_SIZES = (
    Size(20_000, 128, 4, 0.3, 2048, 0.002, 40),
    Size(200_000, 256, 4, 0.2, 4096, 0.001, 30),
    Size(2_000_000, 512, 6, 0.1, 25_000, 0.0007, 20),
    Size(math.inf, 512, 6, 0.1, 25_000, 0.0007, 10),
)
"""From few pairs to many."""

_FILE_KEYS = ("src", "tgt", "path")
_CHARACTERS_OF_A_PIECE = 4.0
"""About, in a language with an alphabet."""
_PIECES_OF_ROOT = 20
"""Pieces of the vocabulary, times the square root of the number of pairs."""
_MIN_PIECES, _MAX_PIECES = 1000, 32_000
_MIN_STEPS, _MAX_STEPS = 1000, 100_000
_MOST_WARMUP = 4000
_VALIDATIONS = 20
"""Validations of a run."""
_PATIENCE = 5
"""Validations without a new best before a run stops."""


@dataclass(frozen=True)
class Starter:
    """A config in YAML, with comments, and what it was made of.

    Attributes:
        languages: of source and target.
        num_pairs: training pairs.
        missing: the splits for which there are no files.
    """

    text: str
    languages: Languages
    num_pairs: int
    missing: tuple[str, ...]


def make_starter_config(
    train: Sequence[str],
    valid: Sequence[str] = (),
    test: Sequence[str] = (),
    languages: tuple[str | None, str | None] = (None, None),
    run: str | None = None,
) -> Starter:
    """A config for these files, all of which are read to their end: a fault in one is known now.

    Args:
        train, valid, test: files; without those of `valid` or `test`, what is called so beside the training files.
        languages: of source and target, where the names of files or columns do not tell them.
        run: the run folder.

    Raises:
        ConfigError: languages or columns that cannot be told.
        DataError: a file cannot be read, or two parallel files differ in their number of lines.
    """
    trained = recognize(train, languages)
    codes = trained.languages
    valid = valid or find_split_files(trained.entries[0], VALID_NAME, [*train, *test])
    test = test or find_split_files(trained.entries[0], TEST_NAME, [*train, *valid])
    splits = {"train": trained.entries}
    splits |= {
        split: recognize(files, codes).entries if files else []
        for split, files in (("valid", valid), ("test", test))
    }
    root = _common_folder([entry for entries in splits.values() for entry in entries])
    if root != ".":
        splits = {split: [inside(entry) for entry in entries] for split, entries in splits.items()}
    run = run or f"runs/{'-'.join(codes)}"
    num_pairs, num_pieces = measure(parse_config({
        "run": run, "data": {"root": root, "src": codes[0], "tgt": codes[1], **splits},
    }))  # fmt: skip
    text = write(run, codes, root, splits, num_pairs, num_pieces)
    return Starter(text, codes, num_pairs, tuple(split for split, entries in splits.items() if not entries))


def _common_folder(entries: Sequence[Entry]) -> str:
    """The folder in which all files are, or else the current one."""
    files = [str(entry[key]) for entry in entries for key in _FILE_KEYS if key in entry]
    folders = {os.path.dirname(file) or "." for file in files}
    return folders.pop() if len(folders) == 1 else "."


def inside(entry: Entry) -> Entry:
    """An entry whose files are called as from the folder in which they are."""
    return {key: os.path.basename(str(entry[key])) if key in _FILE_KEYS else entry[key] for key in entry}


def measure(config: Config) -> tuple[int, float]:
    """The number of training pairs, and about how many pieces the longer side of a pair has. All sources are read."""
    num_pairs = num_characters = 0
    trained = open_sources(config.data.train, config.data, "train")
    for source in trained:
        for _, pair in source.read():
            num_pairs += 1
            num_characters += max(len(pair.src), len(pair.tgt))
    for split, sources in (("valid", config.data.valid), ("test", config.data.test)):
        for source in open_sources(sources, config.data, split):  # type: ignore[arg-type]
            read_sides(source)
    if not num_pairs:
        raise DataError("there are no pairs", where=trained[0].location(1), hint="fill the files")
    return num_pairs, 1 + num_characters / num_pairs / _CHARACTERS_OF_A_PIECE


def write(
    run: str,
    languages: Languages,
    root: str,
    splits: Mapping[str, Sequence[Entry]],
    num_pairs: int,
    num_pieces: float,
) -> str:
    """The YAML, sized by the number of pairs and of the pieces in them."""
    size = next(size for size in _SIZES if num_pairs < size.max_pairs)
    updates = size.epochs * num_pairs * num_pieces / size.batch_tokens
    steps = round_to_two_digits(min(_MAX_STEPS, max(_MIN_STEPS, updates)))
    vocab_size = round_to_two_digits(
        min(_MAX_PIECES, max(_MIN_PIECES, _PIECES_OF_ROOT * math.sqrt(num_pairs)))
    )
    src, tgt = map(format_value, languages)
    lines = [
        f"# {src} to {tgt}, {num_pairs:,} training pairs. Written by `mtkit init`; sizes follow from that number.",
        "# `mtkit check` says what will come of it, `mtkit config schema` lists every key.",
        f"run: {format_value(run)}  # the run folder: everything that training writes",
        "data:",
        *([] if root == "." else [f"  root: {format_value(root)}  # relative paths start here"]),
        f"  src: {src}",
        f"  tgt: {tgt}",
        *listed("train", splits["train"], ""),
        *listed(
            "valid", splits["valid"], "chooses the best checkpoint; some 1,000 pairs that are not in train"
        ),
        *listed("test", splits["test"], "translated and scored once, at the end"),
        f"tokenizer: {{vocab_size: {vocab_size}}}  # about {_PIECES_OF_ROOT} x the square root of the pairs",
        "model:",
        f"  d_model: {size.d_model}",
        f"  encoder_layers: {size.layers}",
        f"  decoder_layers: {size.layers}",
        f"  dropout: {size.dropout}  # the fewer pairs, the more",
        "training:",
        f"  batch_tokens: {size.batch_tokens}  # the first thing to lower if memory runs out, with accumulate raised",
        f"  max_steps: {steps}  # {epochs(steps, updates, size)}",
        f"  learning_rate: {size.learning_rate}",
        "  schedule: cosine",
        f"  warmup_steps: {round_to_two_digits(min(_MOST_WARMUP, steps / 10))}",
    ]
    if splits["valid"]:
        lines += [
            "validation:",
            f"  every_steps: {round_to_two_digits(steps / _VALIDATIONS)}",
            f"  patience: {_PATIENCE}  # validations without a new best before training stops",
        ]
    lines.append("decoding: {beam_size: 5}")
    return "".join(f"{line}\n" for line in lines)


def listed(key: str, entries: Sequence[Entry], comment: str) -> list[str]:
    """A list of sources in lines; an empty one says what it is for."""
    behind = f"  # {comment}" if comment else ""
    if not entries:
        return [f"  {key}: []{behind}"]
    return [f"  {key}:{behind}", *(f"    - {format_value(entry)}" for entry in entries)]


def epochs(steps: int, updates: float, size: Size) -> str:
    """How often so many steps see each pair, in words."""
    return f"about {max(1, round(steps / updates * size.epochs)):,} times over all pairs"


def round_to_two_digits(number: float) -> int:
    """A number of at least 1, rounded to two digits."""
    unit = 10 ** max(0, math.floor(math.log10(max(1.0, number))) - 1)
    return max(1, round(number / unit)) * unit
