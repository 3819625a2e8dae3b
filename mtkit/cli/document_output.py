"""A document as the output of `mtkit translate`: a copy of the input with the translations filled in."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mtkit.cli.jobs import Shard
from mtkit.cli.line_format import LineFormat
from mtkit.cli.resume_note import ResumeNote
from mtkit.cli.terminal import check_not_compressed, check_not_overwriting
from mtkit.data.documents import is_document
from mtkit.errors import ConfigError, StorageError
from mtkit.files import atomic_file, read_lines, storage_errors, strip_compression

_KINDS = {".tmx": "TMX", ".xlf": "XLIFF", ".xliff": "XLIFF", ".xlsx": "a spreadsheet"}


@dataclass(frozen=True)
class DocumentOutput:
    """A document to be written once all of it is translated. Until then the translations are in a text file beside it.

    Attributes:
        source: the document that is translated.
        path: its copy.
        languages: language tags of source and target.
        keep_tags: whether inline tags come along.
        resume: whether the text file is kept if the job is interrupted.
    """

    source: Path
    path: Path
    languages: tuple[str, str]
    keep_tags: bool
    resume: bool

    @property
    def lines(self) -> Path:
        """Text file with the translations so far."""
        if self.resume:
            return self.path.with_name(f"{self.path.name}.mtkit-lines")
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.lines.tmp")

    def read(self, path: Path) -> Iterator[str]:
        """Yield what is to be translated in the document.

        Raises:
            DataError: If it cannot be read, or is in other languages.
        """
        from mtkit.data.filling import lines_to_fill

        return lines_to_fill(path, self.languages, keep_tags=self.keep_tags)

    def is_finished(self, job: Mapping[str, str]) -> bool:
        """Return whether the document was written by this job, and not changed since.

        Raises:
            ConfigError: If there is a document of another job.
            StorageError: If it cannot be read.
        """
        return self.resume and ResumeNote(self.path, job).is_finished()

    @contextmanager
    def temporary_lines(self) -> Iterator[None]:
        """Remove the text file at the end of the block, also after SIGTERM, unless the job can be resumed."""

        def stop(number: int, frame: object) -> None:
            raise SystemExit(128 + number)

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            if not self.resume:
                self.lines.unlink(missing_ok=True)

    def write(self, job: Mapping[str, str]) -> None:
        """Write the document, and remove the text file.

        Raises:
            DataError: If the document that is translated has changed meanwhile.
            StorageError: If it cannot be written; nothing of it is left behind.
        """
        from mtkit.data.filling import fill

        with ResumeNote(self.path, job).recorded(), atomic_file(self.path) as file:
            fill(self.source, file, read_lines(self.lines), self.languages)
        with storage_errors(self.lines):
            self.lines.unlink()
            self.lines.with_name(f"{self.lines.name}.mtkit-job").unlink(missing_ok=True)


def check_document_output(
    files: Sequence[str],
    others: Sequence[str | None],
    output: str | None,
    shard: str | None,
    line_format: LineFormat,
) -> bool:
    """Return whether the output is a document; if it is, check that it can be written.

    Args:
        files: the input.
        others: other files of the command.
        output: the output.
        shard: as for --shard.
        line_format: format of the output if it is text.

    Raises:
        ConfigError: If the input is not one document of the same kind, or the options need text.
        StorageError: If there is no such folder.
    """
    if output is None or not is_document(output):
        return False
    check_not_compressed(output)
    kind = _kind(output)
    text_file = f"write text: -o {strip_compression(output).with_suffix('.txt')}"
    if len(files) != 1 or _kind(files[0]) != kind or not os.path.isfile(files[0]):
        what = f"{output} is {kind}, so the input must be one file of this kind"
        raise ConfigError(what, where="--output", hint=text_file)
    if shard is not None or Shard.from_torchrun().count > 1:
        raise ConfigError("a document is written as a whole, not in shards", where="--output", hint=text_file)
    if line_format != LineFormat():
        what = "a document holds one translation of each segment and nothing else"
        raise ConfigError(
            f"{what}: no --json, --n-best, --scores, --confidence, --alignment or --alternatives",
            hint=text_file,
        )
    check_not_overwriting(output, [*files, *filter(None, others)])
    if not Path(output).parent.is_dir():
        raise StorageError("no such folder", where=str(Path(output).parent), hint="choose another folder")
    return True


def _kind(path: str) -> str | None:
    return _KINDS.get(strip_compression(path).suffix.lower())
