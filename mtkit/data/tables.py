"""Tables read by `datasets`: Parquet files, datasets of the Hugging Face Hub, folders saved by `datasets`.

In: a table and its columns. Out: its pairs, each with its row. `datasets` takes seconds to import, so it is imported
only when such a table is read.
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
"""A function that returns the SHA-256 of a file."""


@dataclass(frozen=True)
class Hashes:
    """Functions and names that identify the content of sources in fingerprints."""

    of_bytes: HashFile = sha256_file
    of_text: HashFile = sha256_text
    """Hashes the lines of a text file, whatever its name and compression."""
    generator: tuple[str, ...] = GENERATOR
    """Identity of the generator of the demo pairs."""


_CHUNK_ROWS = 1000
_MAX_MESSAGE_CHARS = 300


@dataclass(frozen=True)
class HubTable:
    """A dataset of the Hub, or (given an absolute path) a local folder with the same layout."""

    path: str
    config: str | None
    split: str
    revision: str | None

    @property
    def label(self) -> str:
        """Return the name of the table for messages."""
        return " ".join(filter(None, (self.path, self.config, self.split)))

    def load(self) -> Dataset:
        """Open it, downloading what is not in the cache of `datasets` yet.

        Raises:
            DataError: If `datasets` cannot load it.
        """
        with _table_errors(self.label, "check its name, config and split, and the network"):
            import datasets

            return datasets.load_dataset(self.path, self.config, split=self.split, revision=self.revision)

    def content_key(self, hash_file: HashFile) -> list[object] | None:
        """Return what determines the content; None for a dataset of the Hub that is not pinned to a commit."""
        if Path(self.path).is_absolute():
            return [_folder_key(Path(self.path), hash_file), self.config, self.split]
        if self.revision is not None and re.fullmatch("[0-9a-f]{40}", self.revision):
            return [self.path, self.config, self.split, self.revision]
        return None


@dataclass(frozen=True)
class SavedTable:
    """A folder written by `save_to_disk`: one table, or several named after their splits."""

    path: Path
    split: str | None
    default_split: str

    @property
    def label(self) -> str:
        """Return the name of the table for messages."""
        return " ".join(filter(None, (str(self.path), self.split)))

    def load(self) -> Dataset:
        """Open it.

        Raises:
            DataError: If `datasets` cannot load it.
        """
        with _table_errors(self.label, "name a folder written by save_to_disk, and one of its splits"):
            import datasets

            saved = datasets.load_from_disk(str(self.path))
            if isinstance(saved, datasets.Dataset):
                if self.split is None:
                    return saved
                saved = {str(saved.split or self.default_split): saved}
            return self._select_split(saved)

    def _select_split(self, splits: dict[str, Dataset] | DatasetDict) -> Dataset:
        """Return the rows that the split names, which may be an instruction such as `train[:10%]`."""
        import datasets

        lengths = {name: len(table) for name, table in splits.items()}
        parts = datasets.ReadInstruction.from_spec(self.split or self.default_split).to_absolute(lengths)
        return datasets.concatenate_datasets(
            [splits[part.splitname].select(range(part.from_ or 0, part.to)) for part in parts]
        )

    def content_key(self, hash_file: HashFile) -> list[object]:
        """Return what determines the content."""
        return [_folder_key(self.path, hash_file), self.split or self.default_split]


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file."""

    path: Path

    @property
    def label(self) -> str:
        """Return the name of the table for messages."""
        return str(self.path)

    def load(self) -> IterableDataset:
        """Open it as a stream, which avoids the copy that `datasets` makes otherwise.

        Raises:
            DataError: If `datasets` cannot load it.
        """
        with _table_errors(self.label, "name a Parquet file"):
            import datasets
            from pyarrow import parquet

            files = glob.escape(str(self.path.absolute()))
            metadata = parquet.read_metadata(self.path)
            # By default the size of the first row group, which an empty table has too, with no rows.
            is_empty = metadata.num_row_groups > 0 and metadata.row_group(0).num_rows == 0
            size = _CHUNK_ROWS if is_empty else None
            return datasets.load_dataset(
                "parquet", data_files=files, split="train", streaming=True, batch_size=size
            )

    def content_key(self, hash_file: HashFile) -> list[object]:
        """Return what determines the content."""
        return [hash_file(self.path)]


Table = HubTable | SavedTable | ParquetTable


def read_rows(rows: Dataset | IterableDataset, columns: Columns, label: str) -> NumberedPairs:
    """Yield the pairs of a loaded table, each with its row, from 1.

    Args:
        rows: the table.
        columns: its columns for source and target.
        label: the name of the table for messages.

    Raises:
        DataError: If the columns are missing, a value is not text, or the file is damaged (with the row).
    """
    names = columns.select(rows.column_names, label)
    for number, cells in enumerate(_read_cells(rows, names or (TRANSLATION,), label), 1):
        where = row_location(label, number)
        if names is None:
            yield number, columns.extract_translation(cells[0], where)
        else:
            src, tgt = (check_text(cell, name, where) for name, cell in zip(names, cells, strict=True))
            yield number, Pair(src, tgt)


def row_location(label: str, number: int) -> str:
    """Return the location of a row for messages."""
    return f"{label}: row {number}"


def _read_cells(
    rows: Dataset | IterableDataset, names: Sequence[str], label: str
) -> Iterator[tuple[object, ...]]:
    """Yield the cells of these columns, row by row."""
    hint = "the table is damaged: download or write it again"
    with _table_errors(label, hint):
        batches = (
            rows.with_format(None).select_columns(list(dict.fromkeys(names))).iter(batch_size=_CHUNK_ROWS)
        )
    while True:
        with _table_errors(label, hint):
            batch = next(batches, None)
        if batch is None:
            return
        yield from zip(*(batch[name] for name in names), strict=True)


def _folder_key(folder: Path, hash_file: HashFile) -> list[tuple[str, str]]:
    """Return the names and hashes of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), hash_file(path)) for path in files]


@contextmanager
def _table_errors(where: str, hint: str) -> Iterator[None]:
    """Silence `datasets`, and turn its many exceptions into a `DataError`."""
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
        raise DataError(f"cannot be read: {message[:_MAX_MESSAGE_CHARS]}", where=where, hint=hint) from error
    finally:
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
        for library in noisy:
            library.utils.enable_progress_bars()
