"""Every text file is opened here, and everything mtkit writes goes to disk through here.

Reading is strict: UTF-8 without NUL, one line for each "\\n". Writing is atomic and durable: whoever looks,
after a crash too, finds the old content or the new, never a part. fsync, rename and locks are those of POSIX.
"""

from __future__ import annotations

import bz2
import difflib
import errno
import fcntl
import gzip
import hashlib
import io
import lzma
import os
import re
import select
import shutil
import stat
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from mtkit.errors import DataError, MtkitError, StorageError

BLOCK_BYTES = 1 << 20
_UNPACKERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
COMPRESSED_SUFFIXES = (*_UNPACKERS, ".zst")
_BOM = b"\xef\xbb\xbf"


def strip_compression(path: str | Path) -> Path:
    """The path without the suffix of a compression: x.tsv for x.tsv.gz."""
    path = Path(path)
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a text file, without their line ends; "-" is stdin.

    Files named .gz, .xz, .bz2 or .zst are decompressed. Only "\\n" and "\\r\\n" end a line: a lone "\\r",
    U+2028, U+0085, form feed and the like stay in the line as they are. A last line without "\\n" is a line.
    A byte order mark at the start is dropped. The lines before a fault are yielded before it is raised.

    Raises:
        DataError: not UTF-8 or a NUL (at file:line); missing, unreadable, truncated, not as its suffix says.
    """
    for lines in _lists_of_lines(path):
        yield from lines


class BadLine(str):
    """A line that is no text, with U+FFFD in the place of what is none. Args: fault: what is wrong with it."""

    fault: DataError

    def __new__(cls, text: str, fault: DataError) -> BadLine:
        line = super().__new__(cls, text)
        line.fault = fault
        return line


class LineReader(Iterator[str]):
    """The lines of text files, one file after the other, as `read_lines` gives them; tells whether one is there yet.

    Args:
        paths: of the files; "-" is stdin.
        keep_bad: give a line that is no text as a `BadLine` instead of ending there.

    Raises:
        DataError: on iterating, see `read_lines`.
    """

    def __init__(self, paths: Iterable[str | Path], *, keep_bad: bool = False) -> None:
        self._lists = chain.from_iterable(
            _lists_of_lines(path, self._note_descriptor, keep_bad) for path in paths
        )
        self._lines: deque[str] = deque()
        self._descriptor: int | None = None
        self._end: Exception | None = None

    def __next__(self) -> str:
        while not self._lines:
            if self._end is not None:
                raise self._end
            self._read_more()
        return self._lines.popleft()

    def is_ready(self, seconds: float) -> bool:
        """Whether the next line, or the end, can be read without waiting longer than this.

        What has come of a line whose end has not is kept for later. Compressed files are never waited for.
        """
        deadline = time.monotonic() + seconds
        while not self._lines and self._end is None:
            if self._descriptor is not None:
                left = max(0.0, deadline - time.monotonic())
                if not select.select([self._descriptor], [], [], left)[0]:
                    return False
            self._read_more()
        return True

    def _note_descriptor(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def _read_more(self) -> None:
        """One read more, which may bring no line; what ends the lines is kept until those before it are read."""
        try:
            self._lines.extend(next(self._lists))
        except (StopIteration, MtkitError) as end:
            self._end = end


def _lists_of_lines(
    path: str | Path,
    opened: Callable[[int | None], None] = lambda descriptor: None,
    keep_bad: bool = False,
) -> Iterator[list[str]]:
    """The lines that each read of a file completes: see `read_lines`; for the arguments, `_blocks` and `LineReader`."""
    number = 0
    for block in _blocks(path, opened):
        text, fault = _decode(block)
        if fault and keep_bad:
            lines = list(_decode_each(block, _name(path), number))
            yield lines
            number += len(lines)
            continue
        lines = text.replace("\r\n", "\n").split("\n")
        if lines[-1] == "":  # What follows the last "\n" is no line.
            lines.pop()
        yield lines
        number += len(lines)
        if fault:
            what, hint = fault
            raise DataError(what, where=f"{_name(path)}:{number + 1}", hint=hint)


def count_lines(path: str | Path, *, complete: bool = False) -> int:
    """How many lines `read_lines` yields, without decoding them. Raises: DataError (not for the text).

    Args:
        complete: do not count a last line without "\\n".
    """
    number, last = 0, b"\n"
    for block in _blocks(path):
        number, last = number + block.count(b"\n"), block[-1:] or last
    return number + (last != b"\n" and not complete)


def _blocks(
    path: str | Path, opened: Callable[[int | None], None] = lambda descriptor: None
) -> Iterator[bytes]:
    """The bytes of a file, unpacked, cut after line ends, without the byte order mark.

    Opening and every read give a block, an empty one where no line ended.

    Args:
        opened: told the file descriptor, if reads of it are of what is there; None when nothing has to be waited for.
    """
    start = True
    pending: list[bytes] = []
    with _read_errors(path), _open_bytes(path) as (read, descriptor):
        opened(descriptor)
        yield b""  # whoever wants to can ask now whether there is something to read
        while True:
            chunk = read(BLOCK_BYTES)
            cut = chunk.rfind(b"\n") + 1
            if chunk and not cut:  # A line longer than a block: joined once, when its end is seen.
                pending.append(chunk)
                yield b""
                continue
            block = b"".join((*pending, chunk[:cut]))
            pending = [chunk[cut:]]
            if start and block:
                block, start = block.removeprefix(_BOM), False
            yield block
            if not chunk:
                opened(None)
                return


def _decode(block: bytes) -> tuple[str, tuple[str, str] | None]:
    """The text of a block; or, if something is wrong with it, the lines before that, what and a hint."""
    try:
        text = block.decode("utf-8")
        if "\0" not in text:
            return text, None
        bad = len(block)
    except UnicodeDecodeError as error:
        bad = error.start
    nul = block.find(b"\0", 0, bad)
    offset = bad if nul < 0 else nul
    start = block.rfind(b"\n", 0, offset) + 1
    byte = f"byte {offset - start + 1} of the line"
    if offset == 0 and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
        fault = ("UTF-16, not UTF-8", "convert the file: iconv -f UTF-16 -t UTF-8")
    elif nul >= 0:
        fault = (f"a NUL character, {byte}", "remove it; if the file is UTF-16, convert it")
    else:
        fault = (f"not UTF-8: 0x{block[offset]:02x}, {byte}", "convert the file: iconv -f ENCODING -t UTF-8")
    return block[:start].decode("utf-8"), fault


def _decode_each(block: bytes, name: str, number: int) -> Iterator[str]:
    """The lines of a block one by one, those that are no text as `BadLine`. Args: number: of the lines before it."""
    lines = block.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    for place, line in enumerate(lines, number + 1):
        text, fault = _decode(line)
        if fault:
            what, hint = fault
            text = line.decode("utf-8", errors="replace").replace("\0", "\ufffd")
            yield BadLine(text, DataError(what, where=f"{name}:{place}", hint=hint))
        else:
            yield text


@contextmanager
def _open_bytes(path: str | Path) -> Iterator[tuple[Callable[[int], bytes], int | None]]:
    """A function that reads at most so many unpacked bytes, b"" at the end; and what can be asked for more.

    The file descriptor is None where the function may have read more than it has given.
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise DataError("stdin is closed", where="stdin", hint="give a file, or pipe text in")
        buffer = cast(io.BufferedReader, sys.stdin.buffer)
        yield buffer.read1, buffer.fileno() if hasattr(buffer, "raw") else None
        return
    suffix = Path(path).suffix.lower()
    with open(path, "rb") as raw:
        status = os.fstat(raw.fileno())
        if suffix in COMPRESSED_SUFFIXES and stat.S_ISREG(status.st_mode) and status.st_size == 0:
            raise EOFError  # gzip and zstd would call it an empty text.
        if suffix == ".zst":
            import pyarrow  # Slow to import, rarely needed.

            yield pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd").read, None
        elif suffix in _UNPACKERS:
            yield _UNPACKERS[suffix](raw).read, None
        else:
            yield raw.read1, raw.fileno()  # Of a pipe, what is there, without waiting for a full block.


@contextmanager
def _read_errors(path: str | Path) -> Iterator[None]:
    """Turns what can go wrong in opening, reading and unpacking into one line."""
    name = _name(path)
    if "\0" in name:
        raise DataError("not a file name", where=repr(name), hint="remove the NUL character")
    try:
        yield
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        what, hint = _read_fault(Path(path), error)
        raise DataError(what, where=name, hint=hint) from error


def _read_fault(path: Path, error: Exception) -> tuple[str, str]:
    """What is wrong with a file, and what to do."""
    match error:
        case FileNotFoundError():
            return "no such file", _missing_hint(path)
        case IsADirectoryError():
            return "a folder, not a file", "name a file in it"
        case PermissionError():
            return "not allowed to read it", "chmod +r, or run as its owner"
        case OSError(errno=int(code)):
            return f"cannot be read: {os.strerror(code).lower()}", "check the path and the disk"
    truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
    what = "a truncated" if truncated else "damaged, or not a"
    return f"{what} {path.suffix.lower()} file", "copy or download it again"


def _name(path: str | Path) -> str:
    """How messages call a file."""
    return "stdin" if str(path) == "-" else str(path)


def _missing_hint(path: Path) -> str:
    """What a user may have meant by a path that does not exist."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    close = difflib.get_close_matches(path.name, sorted(os.listdir(path.parent)), n=1)
    if close:
        return f"did you mean {path.parent / close[0]}?"
    return "check the path" if path.is_absolute() else f"the path starts at {Path.cwd()}"


_STORAGE_HINTS = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "your quota is used up: delete something, or choose a folder on another disk",
    errno.EACCES: "choose a folder you may write to, or change its permissions",
    errno.EPERM: "choose a folder you may write to, or change its permissions",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EFBIG: "the limit of file sizes is reached: raise it (ulimit -f), or choose another disk",
    errno.EIO: "the disk may be failing: see the system log, choose another disk",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENOLCK: "this file system has no locks: choose a folder on a local disk",
}


@contextmanager
def storage_errors(where: str | Path) -> Iterator[None]:
    """Turns an `OSError` of the block into a `StorageError` at `where`, in one line with what to do.

    A `BrokenPipeError` without a number passes: the reader of what the block printed went away, and no disk failed.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.errno is None:
            raise
        code = error.errno or 0
        what = os.strerror(code).lower() if code else str(error)
        hint = _STORAGE_HINTS.get(code, "choose another path, or check the disk")
        raise StorageError(what, where=str(where), hint=hint) from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that it holds either what it held before or all of `data`, after a crash too.

    Raises:
        StorageError: no space, no permission, ...; the old file is as it was, and nothing is left beside it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # What went wrong first is what the user should hear.
                temporary.unlink()
            raise
        fsync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of the text in UTF-8, its "\n" kept as they are."""
    write_bytes(path, text.encode("utf-8"))


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a log. A crash can lose the last lines, or leave a part of one. Raises: StorageError."""
    with storage_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def truncate_partial_line(path: str | Path) -> None:
    """Cut what follows the last "\n" off a file: a line that was not written to its end. Raises: StorageError."""
    with storage_errors(path), open(path, "r+b") as file:
        file.truncate(_end_of_line_before(file, file.seek(0, os.SEEK_END)))


def last_line(path: str | Path) -> str | None:
    """The last line that was written to its end; None if there is none. Raises: StorageError."""
    with storage_errors(path), open(path, "rb") as file:
        end = _end_of_line_before(file, file.seek(0, os.SEEK_END))
        if not end:
            return None
        start = _end_of_line_before(file, end - 1)
        file.seek(start)
        return file.read(end - 1 - start).decode("utf-8", errors="replace")


def drop_last_lines(path: str | Path, number: int) -> None:
    """Cut so many whole lines off the end of a file. Raises: StorageError."""
    with storage_errors(path), open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        for _ in range(number):
            end = _end_of_line_before(file, max(0, end - 1))
        file.truncate(end)


def _end_of_line_before(file: BinaryIO, position: int) -> int:
    """Where the last line before a position ends, its "\n" included; 0 if there is none."""
    while position:
        start = max(0, position - BLOCK_BYTES)
        file.seek(start)
        if (found := file.read(position - start).rfind(b"\n")) >= 0:
            return start + found + 1
        position = start
    return 0


def fsync_file(path: str | Path) -> None:
    """Wait until the content of a file is on the disk. Raises: StorageError."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Pipes, and folders of some network disks, have no fsync.
                raise
        finally:
            os.close(descriptor)


def fsync_folder(path: str | Path) -> None:
    """Wait until the names in a folder are on the disk (not what is in its files). Raises: StorageError."""
    fsync_file(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; their names too are on the disk then. Raises: StorageError."""
    with storage_errors(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync_folder(folder.parent)


def remove_tree(path: Path) -> None:
    """Delete a folder with all that is in it, a file or a link; what cannot be deleted stays, without a word."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def commit_folder(tmp: Path, final: Path) -> None:
    """Make a finished folder durable and give it its name, in place of a folder that has it.

    `tmp` must lie beside `final`. An old `final` becomes `.NAME.old`, then `tmp` becomes `final`, then the
    old one is deleted. After a crash at any point one of the two is complete: `committed_folder` says which.

    Raises:
        StorageError: `final` is the old folder, or the new one, complete; `tmp` is left to the caller.
    """
    old = final.with_name(f".{final.name}.old")
    _fsync_tree(tmp)
    with storage_errors(final):
        if final.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "")
        if final.exists():
            remove_tree(old)
            os.rename(final, old)
        try:
            os.rename(tmp, final)
        except OSError:
            if old.exists():
                os.rename(old, final)
            raise
        fsync_folder(final.parent)
        remove_tree(old)  # If it cannot go now, the next commit tries again.


def publish_folder(tmp: Path, final: Path) -> bool:
    """Make a finished folder durable and give it its name, unless a folder has it: of several, the first wins.

    Returns:
        whether it got the name; else `tmp` is left to the caller. Raises: StorageError.
    """
    _fsync_tree(tmp)
    try:
        os.rename(tmp, final)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        with storage_errors(final):
            raise
    fsync_folder(final.parent)
    return True


def _fsync_tree(root: Path) -> None:
    """Wait until a folder, with all that is below it, is on the disk. Raises: StorageError."""
    for folder, _, names in os.walk(root):
        for name in names:
            fsync_file(os.path.join(folder, name))
        fsync_folder(folder)


def committed_folder(final: Path) -> Path:
    """Where a committed folder is: `final`, or after a crash between the two renames the old one aside."""
    old = final.with_name(f".{final.name}.old")
    return old if old.exists() and not final.exists() else final


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises: StorageError."""
    with storage_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(path: str | Path) -> str:
    """SHA-256 of the lines that `read_lines` yields, in hexadecimal, whatever packs them. Raises: DataError.

    For a plain file with "\n" behind each line, and no byte order mark, it is that of the bytes.
    """
    digest, last = hashlib.sha256(), b"\n"
    for block in _blocks(path):
        digest.update(block.replace(b"\r\n", b"\n"))
        last = block[-1:] or last
    if last != b"\n":
        digest.update(b"\n")
    return digest.hexdigest()


class FolderLock:
    """Holds a folder for one process: `with FolderLock(run_folder): ...`. Makes the folder if there is none.

    The lock is an advisory flock on `.lock` in the folder. The system releases it when the process ends,
    however it ends: a lock file that is left behind means nothing.

    Raises:
        StorageError: on entering, another process (or another FolderLock of this one) holds the folder.
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
                self._hold(file)
            except BaseException:
                file.close()
                raise
            self._file = file
        return self

    def _hold(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            what = f"another run is using this folder (pid {file.read(20).decode().strip() or 'unknown'})"
            hint = "wait for it, stop it, or choose another folder"
            raise StorageError(what, where=str(self.folder), hint=hint) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()  # Releases. The file stays: deleting it would run_interleaved with the next holder.
            self._file = None
