"""Where sentence pairs come from: two parallel files, one file of pairs, a data set, the demo.

`open_sources` finds them, so that what is missing is said before anything long begins. A source is read from
its start, as often as it is asked to. Text is taken as it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtkit.config.sections import DataConfig, SourceConfig
from mtkit.data.readers import Columns, NumberedPairs, Pair, read_csv, read_jsonl, read_tsv
from mtkit.data.tables import Hashes, HubTable, ParquetTable, SavedTable, Table, read_rows, row_location
from mtkit.errors import ConfigError, DataError
from mtkit.files import count_lines, read_lines, strip_compression

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Split = Literal["train", "valid", "test"]

DEFAULT_HASHES = Hashes()
_SPLITS_ON_THE_HUB = {"train": "train", "valid": "validation", "test": "test"}
_READERS: dict[str, Callable[[Path, Columns], NumberedPairs]] = {
    ".tsv": read_tsv,
    ".csv": read_csv,
    ".jsonl": read_jsonl,
}


@dataclass(frozen=True)
class Source(ABC):
    """A corpus of pairs, found but not yet read."""

    name: str
    """What reports call it; no two sources of a split have the same."""

    @abstractmethod
    def read(self) -> NumberedPairs:
        """All pairs, from the first.

        Raises:
            DataError: something is missing, damaged or not text; with file:line or row where there is one.
        """

    @abstractmethod
    def location(self, number: int) -> str:
        """Where the pair of this number stands, such as `train.en.gz:17`."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files or folders of this machine that are read."""
        return ()

    @abstractmethod
    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        """A hash that is another whenever `read` yields something else."""


@dataclass(frozen=True)
class ParallelFiles(Source):
    """Two text files: line n of the one translates line n of the other."""

    src: Path
    tgt: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """See `Source.paths`."""
        return self.src, self.tgt

    @cached_property
    def num_pairs(self) -> int:
        """The number of lines. Raises: DataError: it is not the same in both files."""
        num_src, num_tgt = count_lines(self.src), count_lines(self.tgt)
        if num_src != num_tgt:
            raise DataError(
                f"{num_src:,} lines, but {num_tgt:,} in {self.tgt}",
                where=str(self.src),
                hint="line n of one file translates line n of the other, so both have the same number",
            )
        return num_src

    def read(self) -> NumberedPairs:
        """See `Source.read`. Counts both files before the first pair: a missing line would shift the rest."""
        numbers = range(1, self.num_pairs + 1)
        yield from zip(numbers, map(Pair, read_lines(self.src), read_lines(self.tgt)), strict=True)

    def location(self, number: int) -> str:
        """See `Source.location`: the line on the source side."""
        return f"{self.src}:{number}"

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        """See `Source.fingerprint`."""
        return _hash("parallel", hashes.of_text(self.src), hashes.of_text(self.tgt))


@dataclass(frozen=True)
class _PairsFile(Source):
    """One text file of pairs."""

    path: Path
    suffix: str
    """What it is: .tsv, .csv or .jsonl (its name may end in .gz and the like)."""
    columns: Columns

    @property
    def paths(self) -> tuple[Path, ...]:
        """See `Source.paths`."""
        return (self.path,)

    def read(self) -> NumberedPairs:
        """See `Source.read`."""
        return _READERS[self.suffix](self.path, self.columns)

    def location(self, number: int) -> str:
        """See `Source.location`: the line at which the pair begins."""
        return f"{self.path}:{number}"

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        """See `Source.fingerprint`."""
        return _hash(self.suffix, self.columns.names, self.columns.languages, hashes.of_text(self.path))


@dataclass(frozen=True)
class _TableSource(Source):
    """A table that `datasets` reads."""

    table: Table
    columns: Columns

    @property
    def paths(self) -> tuple[Path, ...]:
        """See `Source.paths`."""
        path = Path(self.table.path)
        return (path,) if path.is_absolute() or not isinstance(self.table, HubTable) else ()

    @cached_property
    def _rows(self) -> Dataset | IterableDataset:
        return self.table.load()

    def read(self) -> NumberedPairs:
        """See `Source.read`."""
        return read_rows(self._rows, self.columns, self.table.label)

    def location(self, number: int) -> str:
        """See `Source.location`."""
        return row_location(self.table.label, number)

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        """See `Source.fingerprint`. A data set of the hub that is not pinned to a commit is read for it."""
        key = self.table.content_key(hashes.of_bytes)
        if key is not None:
            return _hash(type(self.table).__name__, self.columns.names, self.columns.languages, key)
        digest = hashlib.sha256()
        for _, pair in self.read():
            digest.update("\0".join((*pair, "")).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class _DemoPairs(Source):
    """The generator inside mtkit."""

    direction: Literal["en-de", "de-en"]
    num_pairs: int
    seed: int
    split: Split

    def read(self) -> NumberedPairs:
        """See `Source.read`."""
        from mtkit.demo.generator import generate

        pairs = generate(self.direction, self.num_pairs, self.seed, self.split)
        yield from enumerate((Pair(src, tgt) for src, tgt in pairs), 1)

    def location(self, number: int) -> str:
        """See `Source.location`."""
        return f"{self.name} ({self.split}): pair {number}"

    def fingerprint(self, hashes: Hashes = DEFAULT_HASHES) -> str:
        """See `Source.fingerprint`."""
        return _hash("demo", self.direction, self.num_pairs, self.seed, self.split, hashes.generator)


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def open_sources(
    configs: Sequence[SourceConfig], data: DataConfig, split: Split, seed: int = 1
) -> list[Source]:
    """Find the sources of a split; text files are opened once, tables are not read yet.

    Args:
        configs: `data.train`, `data.valid` or `data.test`.
        data: where relative paths start, and the languages.
        split: which of the three `configs` is; for the demo, and as the default split of data sets.
        seed: of the demo.

    Raises:
        ConfigError: a kind of file that is not known, or a demo of other languages than `data`'s.
        DataError: a file or folder is missing or cannot be read.
    """
    sources: list[Source] = []
    for number, config in enumerate(configs):
        source = _open_source(config, data, split, seed, f"data.{split}[{number}]")
        sources.append(replace(source, name=_unused(source.name, {other.name for other in sources})))
    return sources


def _open_source(config: SourceConfig, data: DataConfig, split: Split, seed: int, key: str) -> Source:
    """The one place that knows the kinds; `key` is how errors call the entry of the config."""
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
        folder = _existing(data, config.saved, "folder")
        saved = SavedTable(folder, config.split, _SPLITS_ON_THE_HUB[split])
        return _TableSource(config.name or folder.name, saved, columns)
    if config.demo is None or config.pairs is None:
        raise ConfigError("names no source", where=key)
    languages = f"{data.src}-{data.tgt}"
    if config.demo != languages:
        hint = f"it is English and German only: set data.src and data.tgt to {' and '.join(config.demo.split('-'))}"
        what = f"the demo is {config.demo}, but the data is {languages}"
        raise ConfigError(what, where=f"{key}.demo", hint=hint)
    return _DemoPairs(config.name or f"demo {config.demo}", config.demo, config.pairs, seed, split)


def _open_file(name: str, label: str | None, columns: Columns, data: DataConfig, key: str) -> Source:
    """A file of pairs, of the kind that its suffix says."""
    plain = strip_compression(Path(name))
    if Path(name).suffix.lower() == ".parquet":
        path = _existing(data, name, "file")
        return _TableSource(label or path.stem, ParquetTable(path), columns)
    suffix = plain.suffix.lower()
    if suffix not in _READERS:
        hint = "a path ends in .tsv, .csv, .jsonl (also .gz, .xz, .bz2, .zst of these) or .parquet"
        raise ConfigError(f"{name!r} is of no known kind", where=f"{key}.path", hint=hint)
    path = _text_file(data, name)
    return _PairsFile(label or _stem(path), path, suffix, columns)


def read_sides(source: Source) -> tuple[list[str], list[str]]:
    """All of a validation or test set: source lines and target lines, none left out.

    Raises:
        DataError: what `Source.read` raises, or there are no pairs.
    """
    pairs = [pair for _, pair in source.read()]
    if not pairs:
        raise DataError("there are no pairs", where=source.location(1), hint="fill it, or leave it out")
    return [pair.src for pair in pairs], [pair.tgt for pair in pairs]


def _resolve(data: DataConfig, name: str) -> Path:
    """A path of the config, from `data.root` if it is relative."""
    path, root = (Path(os.path.expanduser(part)) for part in (name, data.root))
    if not path.is_absolute() and not root.is_dir():
        where = f"from {Path.cwd()}, the current folder" if not root.is_absolute() else "check the path"
        raise DataError(f"no such folder: {root}", where="data.root", hint=where)
    return root / path


def _text_file(data: DataConfig, name: str) -> Path:
    """A text file that can be opened. Raises: DataError."""
    path = _resolve(data, name)
    next(read_lines(path), None)
    return path


def _existing(data: DataConfig, name: str, kind: Literal["file", "folder"]) -> Path:
    """A file or folder that is there. Raises: DataError."""
    path = _resolve(data, name)
    if not (path.is_file() if kind == "file" else path.is_dir()):
        raise DataError(f"no such {kind}", where=str(path), hint="check the path, and data.root")
    return path


def _hub_name(data: DataConfig, hub: str) -> str:
    """A local folder as an absolute path; what is none is a name on the hub."""
    if hub.startswith(("/", ".", "~")) or _resolve(data, hub).is_dir():
        return str(_existing(data, hub, "folder").absolute())
    return hub


def _stem(path: Path) -> str:
    """`test_2016` of `data/test_2016.en.gz`."""
    return strip_compression(path).stem


def _unused(name: str, used: set[str]) -> str:
    """The name, with a number behind it if it is taken."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return name if name not in used else next(other for other in numbered if other not in used)
