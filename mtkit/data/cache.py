"""The folder of encoded corpora: where it is, the hashes remembered in it, what is swept out of it."""

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

_CACHE_NAMES = "data.cache in the config, or the variable MTKIT_CACHE, names it"
_ABANDONED_SECONDS = 24 * 3600
_SETTLED_NS = 2_000_000_000  # A file changed later than that may change again without its times telling.


def cache_folder(data: DataConfig) -> Path:
    """Where encoded corpora are kept: `data.cache`, $MTKIT_CACHE, or mtkit/ in the user's cache folder.

    Raises:
        StorageError: it is in a home folder that there is not.
    """
    named = data.cache or os.environ.get("MTKIT_CACHE")
    folder = Path(named or os.environ.get("XDG_CACHE_HOME") or "~/.cache", "" if named else "mtkit")
    at_home = os.path.expanduser(folder)
    if at_home.startswith("~"):
        raise StorageError(
            "there is no such home folder", where=str(folder), hint=f"choose another: {_CACHE_NAMES}"
        )
    return Path(at_home)


@contextmanager
def cache_errors(data: DataConfig) -> Iterator[None]:
    """Says, where the cache cannot be written, what names its folder."""
    try:
        yield
    except StorageError as error:
        if not Path(error.where or "").is_relative_to(cache_folder(data)) or _CACHE_NAMES in str(error.hint):
            raise
        raise StorageError(error.what, where=error.where, hint=f"{error.hint}: {_CACHE_NAMES}") from error


def open_cache(data: DataConfig, kind: str) -> tuple[Path, Hashes]:
    """The cache's folder of this kind, made if it is not there, and the hashes of files. Raises: StorageError."""
    cache = cache_folder(data)
    with cache_errors(data), storage_errors(cache):
        for name in (kind, "hashes"):
            (cache / name).mkdir(parents=True, exist_ok=True)
    memory = cache / "hashes"
    return cache / kind, Hashes(HashCache(memory, sha256_file), HashCache(memory, sha256_text, "text "))


class HashCache:
    """Hashes of files, remembered by path, size and times: a large corpus is not hashed at every start.

    Args:
        folder: where they are remembered.
        hash_file: gives the hash of a file.
        kind: tells these hashes from others in the folder.
    """

    def __init__(self, folder: Path, hash_file: HashFile, kind: str = "") -> None:
        self._folder, self._hash_file, self._kind = folder, hash_file, kind

    def __call__(self, path: Path) -> str:
        """The hash of a file. Raises: StorageError, DataError: it cannot be read."""
        with storage_errors(path):
            status = path.stat()
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        identity = f"{self._kind}{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        memo = self._folder / hashlib.sha256(identity.encode()).hexdigest()[:32]
        with suppress(OSError):
            known = memo.read_text("ascii")
            if len(known) == 64:
                return known
        digest = self._hash_file(path)
        if time.time_ns() - changed > _SETTLED_NS:
            with suppress(StorageError):
                write_text(memo, digest)
        return digest


def remove_abandoned(parent: Path) -> None:
    """Delete what killed processes left behind: folders in which nothing was written for a day."""
    for folder in parent.glob(".*.tmp"):
        with suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(folder)
