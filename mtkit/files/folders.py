"""Folders that appear complete or not at all, and locks on folders.

A folder is filled under a temporary name beside its final one, made durable, and renamed:

    with temporary_folder(final) as temporary:
        ...  # write into `temporary`
        commit_folder(temporary, final)

`commit_folder` replaces a folder that is there; with `publish_folder` the first of several processes wins.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mtkit.errors import FolderInUseError, StorageError
from mtkit.files.writing import fsync_file, fsync_folder, storage_errors


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, durably.

    Raises:
        StorageError: If it cannot be created.
    """
    with storage_errors(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync_folder(folder.parent)


def remove_tree(path: Path) -> None:
    """Delete a folder and its content, a file or a link; silently leave what cannot be deleted."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(final: Path) -> Iterator[Path]:
    """Create an empty folder beside `final` to be filled and renamed in the block; delete it if it is still there.

    Its name is `.NAME.NUMBER.tmp` with a random number, so that processes on several machines do not collide.

    Raises:
        StorageError: If it cannot be created. Errors of the block name `final` instead of the temporary folder.
    """
    temporary = final.with_name(f".{final.name}.{secrets.randbelow(10**12)}.tmp")
    try:
        make_folder(final.parent)
        with storage_errors(final):
            temporary.mkdir()
        yield temporary
    except StorageError as error:
        where = (error.where or str(final)).replace(str(temporary), str(final))
        raise StorageError(error.what, where=where, hint=error.hint) from error
    finally:
        remove_tree(temporary)


def commit_folder(temporary: Path, final: Path) -> None:
    """Make a finished folder durable and rename it to `final`, replacing a folder of that name.

    `temporary` must be in the same folder as `final`. An old `final` becomes `.NAME.old`, then `temporary` becomes
    `final`, then the old one is deleted. After a crash at any point one of the two is complete, and
    `committed_folder` returns it.

    Raises:
        StorageError: If that fails. `final` is then the old folder or the new one, complete; the caller deletes
            `temporary`.
    """
    old = _old_name(final)
    _fsync_tree(temporary)
    with storage_errors(final):
        if final.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "")
        if final.exists():
            remove_tree(old)
            os.rename(final, old)
        try:
            os.rename(temporary, final)
        except OSError:
            if old.exists():
                os.rename(old, final)
            raise
        fsync_folder(final.parent)
        remove_tree(old)  # If it cannot be deleted now, the next commit tries again.


def committed_folder(final: Path) -> Path:
    """Return where a committed folder is: `final`, or the old one if a crash came between the two renames."""
    old = _old_name(final)
    return old if old.exists() and not final.exists() else final


def _old_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def publish_folder(temporary: Path, final: Path) -> bool:
    """Make a finished folder durable and rename it to `final`, unless another process was faster.

    Returns:
        whether it was renamed; if not, the caller deletes `temporary`.

    Raises:
        StorageError: If the disk fails.
    """
    _fsync_tree(temporary)
    try:
        os.rename(temporary, final)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        with storage_errors(final):
            raise
    fsync_folder(final.parent)
    return True


def _fsync_tree(root: Path) -> None:
    """Wait until a folder and everything below it are on disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            fsync_file(os.path.join(folder, name))
        fsync_folder(folder)


class FolderLock:
    """Context manager that keeps other processes out of a folder: `with FolderLock(run_folder): ...`.

    Creates the folder if it is missing. The lock is an advisory flock on `.lock` in the folder. The system releases
    it when the process ends, however it ends, so a `.lock` file that is left behind means nothing.

    Raises:
        FolderInUseError: If another process, or another `FolderLock` of this one, holds the folder (on entering).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: BinaryIO | None = None

    def __enter__(self) -> FolderLock:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / ".lock"
            if path.exists() and not (path.is_file() and re.fullmatch(rb"\d*\n?", path.read_bytes())):
                hint = "remove it, or choose another folder"
                raise StorageError("not a lock of mtkit's", where=str(path), hint=hint)
            file = open(path, "a+b", buffering=0)
            try:
                self._acquire(file)
            except BaseException:
                file.close()
                raise
            self._file = file
        return self

    def _acquire(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            what = f"another run, process {file.read(20).decode().strip() or 'unknown'}, is using this folder"
            hint = "wait for it, stop it, or choose another folder"
            raise FolderInUseError(what, where=str(self.folder), hint=hint) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())

    def fileno(self) -> int:
        """Return the descriptor of the lock, for a child process that is to hold it too."""
        assert self._file is not None
        return self._file.fileno()

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()  # This releases the lock. Deleting the file would race with the next holder.
            self._file = None


def is_locked(folder: Path) -> bool:
    """Return whether a `FolderLock` holds a folder. Creates nothing."""
    try:
        with open(folder / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
