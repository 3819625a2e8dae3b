"""A file that is written chunk by chunk over several calls, and appears when it is whole."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mtkit.errors import ConfigError, MtkitError, StorageError
from mtkit.files import fsync_folder, make_folder, storage_errors, write_text


class ResumableFile:
    """A file OUT that a job writes in chunks to OUT.part; at the end it is renamed.

    The note OUT.mtkit-job says after each chunk how many lines of the input are done and how long OUT.part is, so that
    the same job, called again, continues after the last whole chunk. It also identifies the job: no other one appends
    to OUT.part or takes OUT for its own. It stays beside OUT, and has the counts of the job. OUT.part is locked until
    `close`, or until the process ends.

    Args:
        path: OUT.
        job: what identifies the job, in JSON.
        fresh: start over, whatever is there.

    Attributes:
        num_lines: lines of the input that are done.
        counts: sums of the counts of all chunks.
        is_finished: whether OUT is whole.

    Raises:
        ConfigError: If OUT or OUT.part is another job's, or OUT was modified.
        StorageError: If the note cannot be read, or another process writes the file.
    """

    def __init__(self, path: Path, job: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path, self.job = path, json.loads(json.dumps(job))
        self._part = path.with_name(f"{path.name}.part")
        self._note = path.with_name(f"{path.name}.mtkit-job")
        self.num_lines, self.is_finished, self._size = 0, False, 0
        self.counts: Counter[str] = Counter()
        self._file: BinaryIO | None = None
        if self._part.exists():
            self._open()
        try:
            self._resume(fresh=fresh)
        except MtkitError:
            self.close()
            raise

    def _resume(self, *, fresh: bool) -> None:
        """Read what is done from the note."""
        path, note = self.path, {} if fresh else self._read_note()
        is_begun = path.exists() or (self._part.exists() and self._part.stat().st_size > 0)
        if fresh or not is_begun:
            return
        if note.get("job") != self.job:
            what = "another job wrote this file" if note else "this file exists, and is not of this command"
            raise ConfigError(what, where=str(path), hint="choose another file, or start over with `fresh`")
        self.is_finished = bool(note["finished"]) and path.exists()
        self.num_lines, self._size, self.counts = note["lines"], note["bytes"], Counter(note["counts"])
        if self.is_finished and path.stat().st_size != self._size:
            what = "was modified after it had been written"
            raise ConfigError(what, where=str(path), hint="choose another file, or start over with `fresh`")
        if not self.is_finished and not (self._part.exists() and self._part.stat().st_size >= self._size):
            self.num_lines, self._size, self.counts = 0, 0, Counter()

    def append(self, text: str, num_lines: int, counts: Mapping[str, int]) -> None:
        """Write a chunk: the text that belongs to the next lines of the input.

        Raises:
            StorageError: If it cannot be written.
        """
        make_folder(self.path.parent)
        file = self._file or self._open()
        if not self._size:
            self._write_note()  # OUT.part must be known as this job's from its first byte on
        with storage_errors(self.path):
            file.truncate(self._size)  # a chunk that the note does not know of
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()
        self.num_lines += num_lines
        self.counts.update(counts)
        self._write_note()

    def _open(self) -> BinaryIO:
        """Open and lock OUT.part."""
        with storage_errors(self.path), ExitStack() as stack:
            file = stack.enter_context(open(self._part, "a+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.stat(self._part)  # while the lock was taken, the other process may have finished
            except (BlockingIOError, FileNotFoundError) as error:
                what = "another process is writing this file"
                hint = "wait for it, stop it, or choose another file"
                raise StorageError(what, where=str(self.path), hint=hint) from error
            stack.pop_all()
        self._file = file
        return file

    def close(self) -> None:
        """Let other processes write the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> None:
        """Let the file appear.

        Raises:
            StorageError: If the disk fails.
        """
        self.append("", 0, {})
        # before the renaming: until then there is no OUT that it could be about
        self._write_note(finished=True)
        with storage_errors(self.path):
            os.replace(self._part, self.path)
        self.close()
        fsync_folder(self.path.parent)
        self.is_finished = True

    def _write_note(self, *, finished: bool = False) -> None:
        note = {"job": self.job, "lines": self.num_lines, "bytes": self._size, "counts": dict(self.counts),
                "finished": finished}  # fmt: skip
        write_text(self._note, json.dumps(note, indent=1, ensure_ascii=False) + "\n")

    def _read_note(self) -> dict[str, Any]:
        """Return the note; empty if there is none, or it is none of ours."""
        with suppress(ValueError, TypeError, FileNotFoundError), storage_errors(self._note):
            note = json.loads(self._note.read_bytes()) if self._note.exists() else {}
            if isinstance(note, dict) and note.keys() >= {"job", "lines", "bytes", "counts", "finished"}:
                return note
        return {}
