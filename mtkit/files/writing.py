"""Writing files atomically and durably: after a crash there is the old content or the new, never a part of it.

fsync and rename are those of POSIX.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mtkit.errors import StorageError
from mtkit.files.reading import BLOCK_BYTES

_BACKWARD_BYTES = 1 << 16
"""Bytes that are read at a time from the end of a file."""

_NO_LOCKS = "this file system has no locks: choose a folder on a local disk"
_HINTS = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "your quota is used up: delete something, or choose a folder on another disk",
    errno.EACCES: "choose a folder you may write to, or change its permissions",
    errno.EPERM: "choose a folder you may write to, or change its permissions",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EFBIG: "the limit of file sizes is reached: raise it (ulimit -f), or choose another disk",
    errno.EIO: "the disk may be failing: see the system log, choose another disk",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
}


@contextmanager
def storage_errors(where: str | Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` at `where`.

    A `BrokenPipeError` without an errno is not turned: the reader of printed output went away, no disk failed.

    Raises:
        StorageError: If the block raises an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.errno is None:
            raise
        code = error.errno or 0
        what = os.strerror(code).lower() if code else str(error)
        hint = _HINTS.get(code, "choose another path, or check the disk")
        raise StorageError(what, where=str(where), hint=hint) from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically: it holds its old content or all of `data`, even after a crash.

    Raises:
        StorageError: If it cannot be written. The old file is unchanged, and no temporary file is left.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file to be written atomically: it holds its old content until the end of the block, then all of the new.

    A device or pipe, such as /dev/stdout, is written to at once: renaming a file would remove it.

    Raises:
        StorageError: If it cannot be written. After any error the old file is unchanged, and no temporary file is left.
    """
    path = Path(path)
    if _is_special(path):
        with storage_errors(path), open(path, "wb") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # The user should hear of the first error, not of this one.
                temporary.unlink()
            raise
        fsync_folder(path.parent)


def _is_special(path: Path) -> bool:
    """Return whether a path is a device or pipe, or one of the links to them in /dev."""
    if os.path.abspath(path.parent) in ("/dev", "/dev/fd"):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8 with `write_bytes`, without translating line endings.

    Raises:
        StorageError: If it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def append_line(path: str | Path, line: str) -> None:
    """Append a line to a log. A crash can lose the last lines, or leave part of one.

    Raises:
        StorageError: If it cannot be written.
    """
    with storage_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def truncate_partial_line(path: str | Path) -> None:
    """Remove a last line that does not end with "\\n".

    Raises:
        StorageError: If the file cannot be read or written.
    """
    with storage_errors(path), open(path, "r+b") as file:
        file.truncate(_last_line_end(file, file.seek(0, os.SEEK_END)))


def last_line(path: str | Path) -> str | None:
    """Return the last line that ends with "\\n", or None if there is none.

    Raises:
        StorageError: If the file cannot be read.
    """
    with storage_errors(path), open(path, "rb") as file:
        end = _last_line_end(file, file.seek(0, os.SEEK_END))
        if not end:
            return None
        start = _last_line_end(file, end - 1)
        file.seek(start)
        return file.read(end - 1 - start).decode("utf-8", errors="replace")


def read_lines_backwards(path: str | Path) -> Iterator[bytes]:
    """Yield the lines that end with "\\n", without it, from the last to the first. Reads a block at a time.

    Raises:
        StorageError: If the file cannot be read.
    """
    with storage_errors(path), open(path, "rb") as file:
        end = _last_line_end(file, file.seek(0, os.SEEK_END))
        position, first = end - 1, b""
        while position > 0:
            start = max(0, position - _BACKWARD_BYTES)
            file.seek(start)
            first, *lines = (file.read(position - start) + first).split(b"\n")
            yield from reversed(lines)
            position = start
        if end:
            yield first


def drop_last_lines(path: str | Path, number: int) -> None:
    """Remove the last lines of a file; every line must end with "\\n".

    Raises:
        StorageError: If the file cannot be read or written.
    """
    with storage_errors(path), open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        for _ in range(number):
            end = _last_line_end(file, max(0, end - 1))
        file.truncate(end)


def _last_line_end(file: BinaryIO, position: int) -> int:
    """Return the offset after the last "\\n" before a position, or 0 if there is none."""
    while position:
        start = max(0, position - BLOCK_BYTES)
        file.seek(start)
        if (found := file.read(position - start).rfind(b"\n")) >= 0:
            return start + found + 1
        position = start
    return 0


def fsync_file(path: str | Path) -> None:
    """Wait until the content of a file is on disk.

    Raises:
        StorageError: If the disk fails.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Pipes, and folders on some network disks, do not support fsync.
                raise
        finally:
            os.close(descriptor)


def fsync_folder(path: str | Path) -> None:
    """Wait until the names in a folder are on disk; the content of its files is not waited for.

    Raises:
        StorageError: If the disk fails.
    """
    fsync_file(path)


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal.

    Raises:
        StorageError: If the file cannot be read.
    """
    with storage_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
