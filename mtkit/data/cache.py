"""The cache of encoded corpora and tokenizers: its folder, the file hashes kept in it, and its cleanup."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtkit.config.sections import DataConfig
from mtkit.data.tables import Hashes, HashFile
from mtkit.errors import StorageError
from mtkit.files import sha256_file, sha256_text, storage_errors, write_text
from mtkit.files.folders import is_locked

_HOW_TO_CHOOSE = "data.cache in the config, or the variable MTKIT_CACHE, sets the cache folder"
_ABANDONED_SECONDS = 24 * 3600
_SETTLED_NS = 2_000_000_000  # A file changed less than this ago may change again with the same timestamps.


def cache_folder(data: DataConfig | None) -> Path:
    """Return the cache folder: `data.cache` if there is one, $MTKIT_CACHE, or mtkit/ in the user's cache folder.

    Raises:
        StorageError: If it is in a home folder that does not exist.
    """
    named = (data and data.cache) or os.environ.get("MTKIT_CACHE")
    folder = Path(named or os.environ.get("XDG_CACHE_HOME") or "~/.cache", "" if named else "mtkit")
    expanded = os.path.expanduser(folder)
    if expanded.startswith("~"):
        raise StorageError("no such home folder", where=str(folder), hint=_HOW_TO_CHOOSE)
    return Path(expanded)


@contextmanager
def cache_errors(data: DataConfig) -> Iterator[None]:
    """Add to errors of writing the cache how to choose another folder for it.

    Raises:
        StorageError: If the block raises one.
    """
    try:
        yield
    except StorageError as error:
        if not Path(error.where or "").is_relative_to(cache_folder(data)) or _HOW_TO_CHOOSE in str(
            error.hint
        ):
            raise
        raise StorageError(error.what, where=error.where, hint=f"{error.hint}; {_HOW_TO_CHOOSE}") from error


def open_cache(data: DataConfig, kind: str) -> tuple[Path, Hashes]:
    """Return the cache's folder for one kind of entries, created if missing, and the cached hashes of files.

    Raises:
        StorageError: If it cannot be created.
    """
    cache = cache_folder(data)
    with cache_errors(data), storage_errors(cache):
        for name in (kind, "hashes"):
            (cache / name).mkdir(parents=True, exist_ok=True)
    hashes = cache / "hashes"
    return cache / kind, Hashes(HashCache(hashes, sha256_file), HashCache(hashes, sha256_text, "text "))


class HashCache:
    """Hashes of files, cached by path, size and timestamps, so that a large corpus is not hashed at every start.

    Args:
        folder: where they are cached.
        hash_file: computes the hash of a file.
        kind: distinguishes these hashes from others in the folder.
    """

    def __init__(self, folder: Path, hash_file: HashFile, kind: str = "") -> None:
        self._folder, self._hash_file, self._kind = folder, hash_file, kind

    def __call__(self, path: Path) -> str:
        """Return the hash of a file.

        Raises:
            StorageError: If its status cannot be read.
            DataError: If it is hashed as text and cannot be read.
        """
        with storage_errors(path):
            status = path.stat()
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        identity = f"{self._kind}{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        # The bytes of a name need not be UTF-8.
        entry = self._folder / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        with suppress(OSError):
            cached = entry.read_text("ascii")
            if len(cached) == 64:
                return cached
        digest = self._hash_file(path)
        if time.time_ns() - changed > _SETTLED_NS:
            with suppress(StorageError):
                write_text(entry, digest)
        return digest


def remove_abandoned_folders(parent: Path) -> None:
    """Delete the temporary folders of killed processes: those unlocked, in which nothing was written for a day."""
    for folder in parent.glob(".*.tmp"):
        with suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > _ABANDONED_SECONDS and not is_locked(folder):
                shutil.rmtree(folder)
