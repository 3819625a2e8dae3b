"""A note beside the output of a job that can be resumed: what job it is, so that no other goes on in its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mtkit.checkpoint import MANIFEST_FILE
from mtkit.config.sections import DecodingConfig
from mtkit.errors import ConfigError
from mtkit.files import storage_errors, write_text
from mtkit.translation.model_folder import find_checkpoint

_FINISHED = "finished output"
"""What the note of a finished job says besides its parts: a digest of the output."""

_DIGESTED_BYTES = 2**20
"""From the beginning of a file; with its size they tell it from others."""


@dataclass(frozen=True)
class ResumeNote:
    """The note of a job.

    Args:
        output: the file that the job writes, beside which the note stands.
        parts: what the job is made of, and a digest of each; of a job that is not resumable nothing.
    """

    output: Path
    parts: Mapping[str, str]

    @property
    def path(self) -> Path:
        """OUT.mtkit-job for OUT."""
        return self.output.with_name(f"{self.output.name}.mtkit-job")

    def refuse_other(self) -> None:
        """Check that what was written, if there is any, is of this job. Raises: ConfigError, StorageError."""
        if not self.output.is_file() or self.output.stat().st_size == 0:
            return
        if not self.path.is_file():
            what = f"{self.output} was not begun with --resume, so nobody knows by which job"
            raise ConfigError(what, where="--resume", hint="delete it, or write to another file")
        before = self._read()
        if changed := [name for name, digest in self.parts.items() if before.get(name) != digest]:
            what = f"{self.output} was begun with another {' and another '.join(changed)}"
            hint = "give what the stopped job was given, or write to another file"
            raise ConfigError(what, where="--resume", hint=hint)

        if before.get(_FINISHED, digest(beginning(self.output))) != digest(beginning(self.output)):
            what = f"{self.output} was changed after the job had finished it"
            raise ConfigError(what, where="--resume", hint="delete it, or write to another file")

    def is_finished(self) -> bool:
        """Whether this job has written its last line, and the output is as it left it. Raises: StorageError."""
        return self.output.is_file() and self.path.is_file() and self._read() == self._when_finished()

    @contextmanager
    def kept(self, resumable: bool) -> Iterator[None]:
        """The note stands from the first line on, and is told of the last. A job that is not resumable removes it.

        Raises:
            StorageError: it cannot be written or removed.
        """
        if resumable and (self.output.is_file() or not self.output.exists()):
            self._write(self.parts)
            yield
            self._write(self._when_finished())
        else:
            with storage_errors(self.path):
                self.path.unlink(missing_ok=True)
            yield

    def _when_finished(self) -> dict[str, str]:
        """What the note says when the output, as it is now, is all that the job has to write."""
        return {**self.parts, _FINISHED: digest(beginning(self.output))}

    def _read(self) -> dict[str, str]:
        """What the note says; nothing if it is no note."""
        with storage_errors(self.path):
            text = self.path.read_text(encoding="utf-8", errors="replace")
        try:
            said = json.loads(text)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    def _write(self, said: Mapping[str, str]) -> None:
        write_text(self.path, json.dumps(said, indent=1) + "\n")


def describe_job(
    models: Sequence[str],
    decoding: DecodingConfig,
    files: Sequence[str | None],
    options: Mapping[str, object],
) -> dict[str, str]:
    """What a job is made of. Files that can be read only once are not looked at.

    Args:
        models: folders; the weights count, wherever they are.
        decoding: the size of the batches does not count.
        files: input, and what goes with it line by line.
        options: others that change the translations.

    Raises:
        StorageError: a model or a file cannot be read.
    """
    return {
        "model": digest([beginning(find_checkpoint(Path(model)) / MANIFEST_FILE) for model in models]),
        "way of searching": digest([decoding.model_dump(exclude={"batch_tokens"}), dict(options)]),
        "input": digest([None if path is None else beginning(Path(path)) for path in files]),
    }


def beginning(path: Path) -> list[object] | None:
    """Size and first bytes of a file, digested; None of what is no file."""
    if not path.is_file():
        return None
    with storage_errors(path), open(path, "rb") as file:
        return [path.stat().st_size, hashlib.sha256(file.read(_DIGESTED_BYTES)).hexdigest()]


def digest(value: object) -> str:
    """Of anything that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
