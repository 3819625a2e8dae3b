"""Fingerprints of what a stage reads: they tell whether it has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from mtkit.checkpoint import MANIFEST_FILE
from mtkit.errors import StorageError
from mtkit.files import sha256_file, storage_errors
from mtkit.translation.model_folder import find_checkpoint, read_config, read_model_config


def fingerprint(path: Path, hash_file: Callable[[Path], str] = sha256_file) -> str | None:
    """Return a hash of a file or folder that changes when its content does; None if it does not exist.

    A model's is that of its manifest, which has the hashes of its files, and of a run that of its best checkpoint, so
    that a report or a log may be added, with its decoding settings if they have changed since. Any other folder is
    read from beginning to end.

    Args:
        path: the file or folder.
        hash_file: returns the hash of a file's content.

    Raises:
        StorageError: If a file cannot be read.
    """
    if not path.is_dir():
        return hash_file(path) if path.is_file() else None
    with suppress(StorageError):
        folder = find_checkpoint(path)
        decoding = read_model_config(path, folder, hint="", to_translate=True).decoding
        is_changed = decoding != read_config(folder, hint="", to_translate=True).decoding
        changed = f" {decoding.model_dump_json()}" if is_changed else ""
        return hash_file(folder / MANIFEST_FILE) + changed
    digest = hashlib.sha256()
    for file in _files_below(path):
        digest.update(f"{file.relative_to(path)}\n{hash_file(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, sorted, except hidden ones such as locks."""
    with storage_errors(folder):
        for root, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
