"""Note beside the output of a resumable job: it identifies the job, so that no other job appends to its output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtkit.checkpoint import MANIFEST_FILE
from mtkit.errors import ConfigError
from mtkit.files import storage_errors, write_text

if TYPE_CHECKING:
    from mtkit.config.sections import DecodingConfig

_MODEL, _OPTIONS, _INPUT = "model", "way of searching", "input"
"""Keys of a note. They stay as they are, so that notes of earlier versions remain valid."""

_FINISHED = "finished output"
"""Key of a finished job's note: the digest of its output."""

_DIFFERENCES = {_MODEL: "another model", _OPTIONS: "other options", _INPUT: "another input"}

_DIGESTED_BYTES = 2**20
"""Bytes at the beginning of a file that tell it, with its size, from others."""


@dataclass(frozen=True)
class ResumeNote:
    """The note of a job, in OUT.mtkit-job for OUT.

    Args:
        output: file that the job writes.
        job: digests that identify the job, from `describe_job`; empty for a job that cannot be resumed.
    """

    output: Path
    job: Mapping[str, str]

    @property
    def _path(self) -> Path:
        return self.output.with_name(f"{self.output.name}.mtkit-job")

    def is_finished(self) -> bool:
        """Check that the output, if there is any, is this job's, and return whether it is complete.

        Raises:
            ConfigError: If the output is another job's, or was modified after its job had finished.
            StorageError: If the output or the note cannot be read.
        """
        if not self.output.is_file():
            return False
        note = self._read() if self._path.is_file() else None
        if self.output.stat().st_size > 0:
            self._check_same_job(note)
        return note == self._finished_note()

    def _check_same_job(self, note: Mapping[str, str] | None) -> None:
        if note is None:
            what = f"{self.output} was written without --resume, so its job is unknown"
            raise ConfigError(what, where="--resume", hint="delete it, or write to another file")
        if changes := [_DIFFERENCES[key] for key, digest in self.job.items() if note.get(key) != digest]:
            what = f"{self.output} was written by a job with {' and '.join(changes)}"
            hint = "repeat the command of the interrupted job, or write to another file"
            raise ConfigError(what, where="--resume", hint=hint)
        digest = _digest(_fingerprint(self.output))
        if note.get(_FINISHED, digest) != digest:
            what = f"{self.output} was modified after its job had finished"
            raise ConfigError(what, where="--resume", hint="delete it, or write to another file")

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write the note before the first line, and again after the last; remove it if the job cannot be resumed.

        Raises:
            StorageError: If the note cannot be written or removed.
        """
        if self.job and (self.output.is_file() or not self.output.exists()):
            self._write(self.job)
            yield
            self._write(self._finished_note())
        else:
            with storage_errors(self._path):
                self._path.unlink(missing_ok=True)
            yield

    def _finished_note(self) -> dict[str, str]:
        """Return the note of the job if the output, as it is now, is complete."""
        return {**self.job, _FINISHED: _digest(_fingerprint(self.output))}

    def _read(self) -> dict[str, str]:
        """Return the content of the note; empty if the file is not a note."""
        with storage_errors(self._path):
            text = self._path.read_text(encoding="utf-8", errors="replace")
        try:
            note = json.loads(text)
        except ValueError:
            return {}
        return note if isinstance(note, dict) else {}

    def _write(self, note: Mapping[str, str]) -> None:
        write_text(self._path, json.dumps(note, indent=1) + "\n")


def describe_job(
    models: Sequence[str],
    decoding: DecodingConfig,
    files: Sequence[str | None],
    settings: Mapping[str, object],
) -> dict[str, str]:
    """Return digests that identify a job. Files that can be read only once do not count.

    Args:
        models: model folders; their weights count, not their paths.
        decoding: all but its batch size counts.
        files: the input, and what goes with it line by line.
        settings: others that change the translations. Their names are digested too: renaming one invalidates old notes.

    Raises:
        StorageError: If a model or a file cannot be read.
    """
    from mtkit.translation.model_folder import find_checkpoint, shortlist_file

    if decoding.shortlist:
        found = _fingerprint(shortlist_file(Path(models[0])))
        settings = settings if found is None else {**settings, "shortlist": found}
    return {
        _MODEL: _digest([_fingerprint(find_checkpoint(Path(model)) / MANIFEST_FILE) for model in models]),
        _OPTIONS: _digest([decoding.model_dump(exclude={"batch_tokens"}), dict(settings)]),
        _INPUT: _digest([None if path is None else _fingerprint(Path(path)) for path in files]),
    }


def _fingerprint(path: Path) -> list[object] | None:
    """Return the size of a file and the digest of its first bytes; None for what is not a file."""
    if not path.is_file():
        return None
    with storage_errors(path), open(path, "rb") as file:
        return [path.stat().st_size, hashlib.sha256(file.read(_DIGESTED_BYTES)).hexdigest()]


def _digest(value: object) -> str:
    """Return the SHA-256 of a value's JSON; what JSON lacks is represented by its `str`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
