"""Sources of sentence pairs: two parallel files, one file of pairs, a dataset, or the demo.

In: entries of the config. Out: sources, which yield pairs.

`open_sources` finds them all first, so that a missing file is reported before anything slow begins. A source can be
read several times, always from its start. The text is not changed, apart from the `tag` of a source.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtkit.config.sections import DataConfig, SourceConfig
from mtkit.data.alignments import VISIBLE, WordLinks, read_alignments
from mtkit.data.documents import read_spreadsheet, read_translation_units
from mtkit.data.readers import Columns, NumberedPairs, Pair, read_csv, read_jsonl, read_tsv
from mtkit.data.tables import Hashes, HubTable, ParquetTable, SavedTable, Table, read_rows, row_location
from mtkit.errors import ConfigError, DataError
from mtkit.files import count_lines, read_blocks, read_lines, strip_compression
from mtkit.formatting import format_count

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Split = Literal["train", "valid", "test"]

DEFAULT_HASHES = Hashes()
_DEMO_SEED = 1
"""Random seed of the demo, which has the same pairs in every run."""
_SPLITS_ON_THE_HUB = {"train": "train", "valid": "validation", "test": "test"}
_READERS: dict[str, Callable[[Path, Columns], NumberedPairs]] = {
    ".tsv": read_tsv,
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".tmx": read_translation_units,
    ".xlf": read_translation_units,
    ".xliff": read_translation_units,
    ".xlsx": read_spreadsheet,
}
_PLAIN_TEXT = (".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class Source(ABC):
    """A corpus of pairs that was found but is not read yet."""

    name: str
    """The name in reports, unique among the sources of a split."""

    @abstractmethod
    def read(self) -> NumberedPairs:
        """Yield all pairs, from the first.

        Raises:
            DataError: If something is missing, damaged or not text (at file:line or row, if there is one).
        """

    @abstractmethod
    def location(self, number: int) -> str:
        """Return where the pair with this number is, such as `train.en.gz:17`."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return the local files or folders that are read."""
        return ()

    @property
    def alignments(self) -> Path | None:
        """Return the file of word alignments, if there is one."""
        return None

    def read_alignments(self) -> Iterator[WordLinks]:
        """Yield the linked words of each pair that `read` yields, if there are `alignments`.

        Raises:
            DataError: If the file is malformed.
        """
        raise NotImplementedError

    @abstractmethod
    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        """Return a hash that changes when `read` yields other pairs."""


@dataclass(frozen=True)
class ParallelFiles(Source):
    """Two text files: line n of one translates line n of the other."""

    src: Path
    tgt: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.src, self.tgt

    @cached_property
    def num_pairs(self) -> int:
        """Return the number of lines.

        Raises:
            DataError: If the files have different numbers of lines.
        """
        num_src, num_tgt = count_lines(self.src), count_lines(self.tgt)
        if num_src != num_tgt:
            raise DataError(
                f"{format_count(num_src, 'line')}, but {num_tgt:,} in {self.tgt}",
                where=str(self.src),
                hint="line n of one file translates line n of the other, so both need the same number",
            )
        return num_src

    def read(self) -> NumberedPairs:
        """Both files are counted first: a missing line would shift the rest."""
        numbers = range(1, self.num_pairs + 1)
        try:
            yield from zip(numbers, map(Pair, read_lines(self.src), read_lines(self.tgt)), strict=True)
        except ValueError as error:
            what = f"it or {self.tgt} has changed since its lines were counted"
            raise DataError(what, where=str(self.src), hint="begin again when both are whole") from error

    def location(self, number: int) -> str:
        """Return the line on the source side."""
        return f"{self.src}:{number}"

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        return _hash("parallel", hashes.of_text(self.src), hashes.of_text(self.tgt))


@dataclass(frozen=True)
class _PairsFile(Source):
    """One file of pairs."""

    path: Path
    suffix: str
    """The format, a key of `_READERS`, without the suffix of a compression."""
    columns: Columns

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self) -> NumberedPairs:
        return _READERS[self.suffix](self.path, self.columns)

    def location(self, number: int) -> str:
        """Return the line at which the pair begins, or the row of a spreadsheet."""
        return row_location(str(self.path), number) if self.suffix == ".xlsx" else f"{self.path}:{number}"

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        digest = hashes.of_text if self.suffix in _PLAIN_TEXT else hashes.of_bytes
        return _hash(self.suffix, self.columns.names, self.columns.languages, digest(self.path))


@dataclass(frozen=True)
class _TableSource(Source):
    """A table that `datasets` reads."""

    table: Table
    columns: Columns

    @property
    def paths(self) -> tuple[Path, ...]:
        path = Path(self.table.path)
        return (path,) if path.is_absolute() or not isinstance(self.table, HubTable) else ()

    @cached_property
    def _rows(self) -> Dataset | IterableDataset:
        return self.table.load()

    def read(self) -> NumberedPairs:
        return read_rows(self._rows, self.columns, self.table.label)

    def location(self, number: int) -> str:
        return row_location(self.table.label, number)

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        """A dataset of the Hub that is not pinned to a commit is read for it."""
        key = self.table.content_key(hashes.of_bytes)
        if key is not None:
            return _hash(type(self.table).__name__, self.columns.names, self.columns.languages, key)
        digest = hashlib.sha256()
        for _, pair in self.read():
            digest.update("\0".join((*pair, "")).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class _DemoPairs(Source):
    """The built-in generator."""

    direction: Literal["en-de", "de-en"]
    num_pairs: int
    split: Split

    def read(self) -> NumberedPairs:
        from mtkit.demo.generator import generate

        pairs = generate(self.direction, self.num_pairs, _DEMO_SEED, self.split)
        yield from enumerate((Pair(src, tgt) for src, tgt in pairs), 1)

    def location(self, number: int) -> str:
        return f"{self.name} ({self.split}): pair {number}"

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        return _hash("demo", self.direction, self.num_pairs, _DEMO_SEED, self.split, hashes.generator)


@dataclass(frozen=True)
class _AlignedSource(Source):
    """A source with a file of word alignments."""

    source: Source
    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return (*self.source.paths, self.path)

    @property
    def alignments(self) -> Path:
        return self.path

    def read(self) -> NumberedPairs:
        return self.source.read()

    def read_alignments(self) -> Iterator[WordLinks]:
        return read_alignments(self.path)

    def location(self, number: int) -> str:
        return self.source.location(number)

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        return _hash("aligned", hashes.of_text(self.path), self.source.fingerprint(hashes))


@dataclass(frozen=True)
class _TaggedSource(Source):
    """A source with a tag before each of its source lines."""

    source: Source
    tag: str

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.source.paths

    @property
    def alignments(self) -> Path | None:
        return self.source.alignments

    def read_alignments(self) -> Iterator[WordLinks]:
        """Yield the links with the tag as the first source word."""
        for links in self.source.read_alignments():
            yield tuple((s + 1, t) for s, t in links)

    def read(self) -> NumberedPairs:
        """Yield the pairs with the tag; an empty source line stays empty."""
        for number, (src, tgt) in self.source.read():
            yield number, Pair(f"{self.tag} {src}" if VISIBLE.search(src) else src, tgt)

    def location(self, number: int) -> str:
        return self.source.location(number)

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        return _hash("tagged", self.tag, self.source.fingerprint(hashes))


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def untagged(entries: Iterable[SourceConfig]) -> list[SourceConfig]:
    """Return corpora without their tags, for where these are no text."""
    return [entry.model_copy(update={"tag": None}) for entry in entries]


def open_sources(configs: Sequence[SourceConfig], data: DataConfig, split: Split) -> list[Source]:
    """Find the sources of a split. Text files are opened once; tables are not read yet.

    Args:
        configs: `data.train`, `data.valid` or `data.test`.
        data: the root of relative paths, and the languages.
        split: which of the three `configs` is: the split of the demo, and the default split of datasets.

    Raises:
        ConfigError: If a file type is unknown, or the demo has other languages than `data`.
        DataError: If a file or folder is missing or cannot be read.
    """
    sources: list[Source] = []
    for number, config in enumerate(configs):
        source = _open_source(config, data, split, f"data.{split}.{number}")
        if config.alignments is not None:
            source = _AlignedSource(source.name, source, _text_file(data, config.alignments))
        if config.tag is not None:
            source = _TaggedSource(source.name, source, config.tag)
        sources.append(replace(source, name=_unique_name(source.name, {other.name for other in sources})))
    return sources


def _open_source(config: SourceConfig, data: DataConfig, split: Split, key: str) -> Source:
    """Find the source of a config entry; `key` names the entry in errors."""
    columns = Columns(config.columns, (data.src, data.tgt))
    if config.src is not None and config.tgt is not None:
        src, tgt = (_text_file(data, name) for name in (config.src, config.tgt))
        return ParallelFiles(config.name or _stem(src), src, tgt)
    if config.path is not None:
        return _open_file(config.path, config.name, columns, data, key)
    if config.hub is not None:
        hub_split = config.split or _SPLITS_ON_THE_HUB[split]
        table = HubTable(_hub_name(data, config.hub), config.config, hub_split, config.revision)
        return _TableSource(config.name or config.hub.rstrip("/").split("/")[-1], table, columns)
    if config.saved is not None:
        folder = _existing_path(data, config.saved, "folder")
        saved = SavedTable(folder, config.split, _SPLITS_ON_THE_HUB[split])
        return _TableSource(config.name or folder.name, saved, columns)
    if config.demo is None or config.pairs is None:
        raise ConfigError("no source", where=key)
    languages = f"{data.src}-{data.tgt}"
    if config.demo != languages:
        hint = f"set data.src and data.tgt to {' and '.join(config.demo.split('-'))}"
        what = f"the demo is {config.demo}, but the data is {languages}"
        raise ConfigError(what, where=f"{key}.demo", hint=hint)
    return _DemoPairs(config.name or f"demo {config.demo}", config.demo, config.pairs, split)


def _open_file(name: str, label: str | None, columns: Columns, data: DataConfig, key: str) -> Source:
    """Find a file of pairs, whose suffix says its format."""
    plain = strip_compression(Path(name))
    if Path(name).suffix.lower() == ".parquet":
        path = _existing_path(data, name, "file")
        return _TableSource(label or path.stem, ParquetTable(path), columns)
    suffix = plain.suffix.lower()
    if suffix not in _READERS:
        hint = (
            "use .tsv, .csv, .jsonl, .tmx, .xlf, .xlsx or .parquet; "
            "all but the last two may end in .gz, .xz, .bz2 or .zst too"
        )
        raise ConfigError(f"unknown file type: {name!r}", where=f"{key}.path", hint=hint)
    if suffix in _PLAIN_TEXT:
        path = _text_file(data, name)
    else:
        path = _existing_path(data, name, "file")
        next(read_blocks(path), None)  # raises if it cannot be read
    return _PairsFile(label or _stem(path), path, suffix, columns)


def read_sides(source: Source) -> tuple[list[str], list[str]]:
    """Return all source lines and all target lines of a validation or test set, unfiltered.

    Raises:
        DataError: If the source cannot be read, or has no pairs.
    """
    pairs = [pair for _, pair in source.read()]
    if not pairs:
        raise DataError("there are no pairs", where=source.location(1), hint="fill it, or leave it out")
    return [pair.src for pair in pairs], [pair.tgt for pair in pairs]


def _resolve(data: DataConfig, name: str) -> Path:
    """Return a path of the config, relative to `data.root` unless it is absolute.

    Raises:
        DataError: If `data.root` is needed and does not exist.
    """
    path, root = (Path(os.path.expanduser(part)) for part in (name, data.root))
    if not path.is_absolute() and not root.is_dir():
        hint = "check the path" if root.is_absolute() else f"the path is relative to {Path.cwd()}"
        raise DataError(f"no such folder: {root}", where="data.root", hint=hint)
    return root / path


def _text_file(data: DataConfig, name: str) -> Path:
    """Return the path of a text file, checking that it can be read."""
    path = _resolve(data, name)
    next(read_lines(path), None)
    return path


def _existing_path(data: DataConfig, name: str, kind: Literal["file", "folder"]) -> Path:
    """Return the path of a file or folder, checking that it exists."""
    path = _resolve(data, name)
    if not (path.is_file() if kind == "file" else path.is_dir()):
        raise DataError(f"no such {kind}", where=str(path), hint="check the path, and data.root")
    return path


def _hub_name(data: DataConfig, hub: str) -> str:
    """Return a local folder as an absolute path, anything else as the name of a dataset on the Hub."""
    if hub.startswith(("/", ".", "~")) or _resolve(data, hub).is_dir():
        return str(_existing_path(data, hub, "folder").absolute())
    return hub


def _stem(path: Path) -> str:
    """Return `test_2016` for `data/test_2016.en.gz`."""
    return strip_compression(path).stem


def _unique_name(name: str, used: set[str]) -> str:
    """Return the name, with a number appended if it is already used."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return name if name not in used else next(other for other in numbered if other not in used)
