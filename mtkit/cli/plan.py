"""Plan of one `mtkit translate`: the lines it translates and the files it reads and writes, checked beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtkit.cli.jobs import Job, Shard, count_all_lines, count_finished_lines
from mtkit.cli.line_format import LineFormat
from mtkit.cli.lines import MATCH_HINT
from mtkit.cli.resume_note import ResumeNote, describe_job
from mtkit.cli.terminal import check_not_compressed, check_not_overwriting, check_stdin_once, open_stdout
from mtkit.errors import ConfigError, DataError
from mtkit.formatting import format_count
from mtkit.torchrun import read_ranks

if TYPE_CHECKING:
    from mtkit.config.sections import DecodingConfig


@dataclass(frozen=True)
class Plan:
    """Lines and files of one `mtkit translate`.

    Attributes:
        job: the lines to translate.
        shard: the shard of the input that they belong to.
        prefix: file with the beginning of each translation, if any.
        constraints: file with the constraints of each line, if any.
        output: file to write; None for stdout.
        attention: file for attention matrices, if wanted.
        line_format: format of the output.
        resume: whether to append to the output.
    """

    job: Job
    shard: Shard
    prefix: str | None
    constraints: str | None
    output: str | None
    attention: str | None
    line_format: LineFormat
    resume: bool

    def resume_note(
        self, models: Sequence[str], decoding: DecodingConfig, settings: Mapping[str, object]
    ) -> ResumeNote | None:
        """Return the note of the output; None for stdout.

        Args:
            models: see `describe_job`, as for the others.
            decoding: how the model is decoded.
            settings: other settings that change the translations; the shard is added.

        Raises:
            StorageError: If a model or an input cannot be read.
        """
        if self.output is None:
            return None
        files = [*self.job.files, self.prefix, self.constraints]
        job = describe_job(models, decoding, files, {**settings, "part": self.shard}) if self.resume else {}
        return ResumeNote(Path(self.output), job)


def make_plan(
    files: Sequence[str],
    count: Callable[[str], int],
    prefix: str | None,
    constraints: str | None,
    output: str | None,
    attention: str | None,
    shard: str | None,
    line_format: LineFormat,
    resume: bool,
) -> Plan:
    """Plan a translation from the options of `mtkit translate`; `count` returns the number of lines of an input.

    Raises:
        ConfigError: If an option cannot be followed, or the output to resume is another job's.
        DataError: If an input cannot be read, or files that belong together differ in length.
        StorageError: If the output to resume cannot be read, or stdout is closed.
    """
    output = _resolve_output(output, resume)
    part = Shard.from_torchrun() if shard is None else Shard.parse(shard)
    if shard is not None and read_ranks().world_size > 1:
        what = "--shard cannot be combined with torchrun, which deals out shards itself"
        raise ConfigError(what, hint="leave it out")
    if shard is None and part.count > 1:
        if output is None:
            what = "several processes need an output file"
            raise ConfigError(what, where="--output", hint="each writes a file of its own")
        output, attention = part.output_path(output), attention and part.output_path(attention)
    aligned = [path for path in (prefix, constraints) if path is not None]
    check_stdin_once([*files, *aligned])
    check_not_overwriting(output, [*files, *aligned])
    check_not_overwriting(attention, [*files, *aligned, *filter(None, [output])], "--attention")
    _check_lengths(files, count, aligned)
    job = Job.plan(files, part, count)
    if resume and output is not None:
        job = job.skip(count_finished_lines(output, line_format, job.first + 1))
    return Plan(job, part, prefix, constraints, output, attention, line_format, resume)


def _resolve_output(output: str | None, resume: bool) -> str | None:
    """Return the file to write, or None for stdout.

    Raises:
        ConfigError: If the name is that of a compressed file, or stdout is to be resumed.
        StorageError: If stdout is closed.
    """
    if output not in (None, "-"):
        check_not_compressed(output)
        if not Path(str(output)).name:
            raise ConfigError(f"{output!r} is no name of a file", where="--output", hint="name one")
        return output
    if resume:
        raise ConfigError("--resume needs a file", where="--output", hint="what went to stdout is not known")
    open_stdout()
    return None


def _check_lengths(files: Sequence[str], count: Callable[[str], int], aligned: Sequence[str]) -> None:
    """Check that files that go with the input line by line have as many lines, as far as these can be counted.

    Raises:
        DataError: If they do not, or if a file cannot be read.
    """
    num_lines = count_all_lines(files, count) if aligned else None
    for path in aligned:
        found = count_all_lines([path])
        if num_lines is not None and found is not None and found != num_lines:
            what = f"{format_count(found, 'line')}, but the input has {num_lines:,}"
            raise DataError(what, where=path, hint=MATCH_HINT)
