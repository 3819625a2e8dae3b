"""Tables read by `datasets`: Parquet files, data sets of the Hugging Face hub, saved `datasets` folders.

`datasets` takes seconds to import, so that happens only when such a table is read.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtkit.data.readers import TRANSLATION, Columns, NumberedPairs, Pair, check_text
from mtkit.demo import GENERATOR
from mtkit.errors import DataError
from mtkit.files import sha256_file, sha256_text

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

HashFile = Callable[[Path], str]
"""SHA-256 of a file."""


@dataclass(frozen=True)
class Hashes:
    """How contents of files are told from each other."""

    of_bytes: HashFile = sha256_file
    of_text: HashFile = sha256_text
    """Of the lines, whatever the file's name and compression."""
    generator: tuple[str, ...] = GENERATOR
    """Identifies the generator of the demo's pairs."""


_ROWS_AT_ONCE = 1000
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class HubTable:
    """A data set of the hub, or (an absolute path) a local folder laid out the same way."""

    path: str
    config: str | None
    split: str
    revision: str | None

    @property
    def label(self) -> str:
        """How messages call it."""
        return " ".join(filter(None, (self.path, self.config, self.split)))

    def load(self) -> Dataset:
        """Download what is not in the cache of `datasets` yet, and open it. Raises: DataError."""
        with _table_errors(self.label, "check its name, config and split, and the network"):
            import datasets

            return datasets.load_dataset(self.path, self.config, split=self.split, revision=self.revision)

    def content_key(self, hash_file: HashFile) -> list[object] | None:
        """What decides its content; None for a name on the hub that no commit pins: only reading it tells."""
        if Path(self.path).is_absolute():
            return [_folder_key(Path(self.path), hash_file), self.config, self.split]
        if self.revision is not None and re.fullmatch("[0-9a-f]{40}", self.revision):
            return [self.path, self.config, self.split, self.revision]
        return None


@dataclass(frozen=True)
class SavedTable:
    """A folder written by `save_to_disk`: one table, or several under the names of their splits."""

    path: Path
    split: str | None
    default_split: str

    @property
    def label(self) -> str:
        """How messages call it."""
        return " ".join(filter(None, (str(self.path), self.split)))

    def load(self) -> Dataset:
        """Open it. Raises: DataError."""
        with _table_errors(self.label, "name a folder written by save_to_disk, and one of its splits"):
            import datasets

            saved = datasets.load_from_disk(str(self.path))
            if isinstance(saved, datasets.Dataset):
                if self.split is None:
                    return saved
                saved = {str(saved.split or self.default_split): saved}
            return self._cut(saved)

    def _cut(self, splits: dict[str, Dataset] | DatasetDict) -> Dataset:
        """The rows that an instruction such as `train[:10%]` names."""
        import datasets

        lengths = {name: len(table) for name, table in splits.items()}
        parts = datasets.ReadInstruction.from_spec(self.split or self.default_split).to_absolute(lengths)
        return datasets.concatenate_datasets(
            [splits[part.splitname].select(range(part.from_ or 0, part.to)) for part in parts]
        )

    def content_key(self, hash_file: HashFile) -> list[object]:
        """What decides its content."""
        return [_folder_key(self.path, hash_file), self.split or self.default_split]


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file."""

    path: Path

    @property
    def label(self) -> str:
        """How messages call it."""
        return str(self.path)

    def load(self) -> IterableDataset:
        """Open it, without the copy that `datasets` makes when not streaming. Raises: DataError."""
        with _table_errors(self.label, "name a Parquet file"):
            import datasets

            files = glob.escape(str(self.path.absolute()))
            return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)

    def content_key(self, hash_file: HashFile) -> list[object]:
        """What decides its content."""
        return [hash_file(self.path)]


Table = HubTable | SavedTable | ParquetTable


def read_rows(rows: Dataset | IterableDataset, columns: Columns, place: str) -> NumberedPairs:
    """The pairs of a loaded table, each with its row, from 1.

    Raises:
        DataError: the columns are missing, a value is not text, the file is damaged; with the row.
    """
    chosen = columns.choose(rows.column_names, place)
    names = (TRANSLATION,) if chosen is None else chosen
    for number, cells in enumerate(_cells(rows, names, place), 1):
        where = row_location(place, number)
        if chosen is None:
            yield number, columns.pick_translation(cells[0], where)
        else:
            src, tgt = (check_text(cell, name, where) for name, cell in zip(chosen, cells, strict=True))
            yield number, Pair(src, tgt)


def row_location(place: str, number: int) -> str:
    """How messages call a row."""
    return f"{place}: row {number}"


def _cells(rows: Dataset | IterableDataset, names: Sequence[str], place: str) -> Iterator[tuple[object, ...]]:
    """What stands in these columns, row by row."""
    hint = "the table is damaged: download or write it again"
    with _table_errors(place, hint):
        batches = (
            rows.with_format(None).select_columns(list(dict.fromkeys(names))).iter(batch_size=_ROWS_AT_ONCE)
        )
    while True:
        with _table_errors(place, hint):
            batch = next(batches, None)
        if batch is None:
            return
        yield from zip(*(batch[name] for name in names), strict=True)


def _folder_key(folder: Path, hash_file: HashFile) -> list[tuple[str, str]]:
    """Names and hashes of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), hash_file(path)) for path in files]


@contextmanager
def _table_errors(where: str, hint: str) -> Iterator[None]:
    """Keeps `datasets` quiet, and tells its many exceptions in one line."""
    import datasets
    import huggingface_hub
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    causes = (OSError, ValueError, RuntimeError, TypeError, ArrowException, DatasetsError)
    loggers = {name: logging.getLogger(name).level for name in ("datasets", "huggingface_hub")}
    noisy = [lib for lib in (datasets, huggingface_hub) if not lib.utils.are_progress_bars_disabled()]
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for library in noisy:
        library.utils.disable_progress_bars()
    try:
        yield
    except causes as error:
        message = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise DataError(f"cannot be read: {message[:_LONGEST_MESSAGE]}", where=where, hint=hint) from error
    finally:
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
        for library in noisy:
            library.utils.enable_progress_bars()
