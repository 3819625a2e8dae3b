"""Lines that one process translates: a shard of the input, or the rest of an interrupted job."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path

from mtkit.cli.line_format import LineFormat
from mtkit.errors import ConfigError
from mtkit.files import (
    count_lines,
    drop_last_lines,
    last_line,
    read_lines,
    read_lines_backwards,
    truncate_partial_line,
)
from mtkit.formatting import format_count
from mtkit.torchrun import is_main_process, read_ranks

_OTHER_JOB_HINT = "it belongs to another job: write to another file"


@dataclass(frozen=True)
class Shard:
    """One of `count` contiguous shards of the input, `number` from 1.

    Its `repr` is part of what a resume note digests: with other fields, no job of before could be resumed.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse "2/8".

        Raises:
            ConfigError: If the text is not of this form.
        """
        number, slash, count = text.partition("/")
        if slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit():
            shard = cls(int(number), int(count))
            if 1 <= shard.number <= shard.count:
                return shard
        raise ConfigError(f"must be i/n, not {text!r}", where="--shard", hint="2/8 is the second of eight")

    @classmethod
    def from_torchrun(cls) -> Shard:
        """Return the shard of a process that torchrun started; otherwise the whole input.

        Raises:
            ConfigError: If torchrun's variables are incomplete.
        """
        ranks = read_ranks()
        if ranks.world_size == 1 and not is_main_process():  # several of these would write the same output
            what = f"RANK is {os.environ['RANK']!r}, but WORLD_SIZE does not tell the number of processes"
            raise ConfigError(what, hint="start several processes with torchrun, or unset RANK")
        return cls(ranks.rank + 1, ranks.world_size)

    def line_range(self, num_lines: int) -> range:
        """Return which of `num_lines` lines, from 0, belong to the shard."""
        return range(num_lines * (self.number - 1) // self.count, num_lines * self.number // self.count)

    def output_path(self, path: str) -> str:
        """Return the output file of a process: OUT.2-of-8 for OUT, so that `cat OUT.*` joins the shards."""
        digits = len(str(self.count))
        return f"{path}.{self.number:0{digits}}-of-{self.count}"


@dataclass(frozen=True)
class Job:
    """Lines of the input that are to be translated.

    Attributes:
        files: input, "-" for stdin.
        first: number of the first line, from 0.
        stop: number of the line after the last one; None for the end of a stream, whose lines were not counted.
    """

    files: tuple[str, ...]
    first: int = 0
    stop: int | None = None

    @classmethod
    def plan(cls, files: Sequence[str], shard: Shard, count: Callable[[str], int] = count_lines) -> Job:
        """Return the lines of a shard.

        Args:
            files: input, "-" for stdin.
            shard: the part of it that is to be translated.
            count: returns the number of lines of a file.

        Raises:
            ConfigError: If a stream, whose lines cannot be counted beforehand, is to be sharded.
            DataError: If a file cannot be read.
        """
        num_lines = count_all_lines(files, count)
        if num_lines is not None:
            lines = shard.line_range(num_lines)
            return cls(tuple(files), lines.start, lines.stop)
        if shard.count > 1:
            what = "stdin cannot be sharded: its number of lines is not known beforehand"
            raise ConfigError(what, where="--shard", hint="name the input files")
        return cls(tuple(files))

    def skip(self, num_finished: int) -> Job:
        """Return the job without its first lines.

        Raises:
            ConfigError: If there are not that many.
        """
        if self.total is not None and num_finished > self.total:
            there = format_count(num_finished, "line")
            what = f"the output has {there}, but there are {self.total:,} to translate"
            raise ConfigError(what, where="--resume", hint=_OTHER_JOB_HINT)
        return replace(self, first=self.first + num_finished)

    @property
    def total(self) -> int | None:
        """Number of lines; None if it is not known."""
        return None if self.stop is None else self.stop - self.first

    def select(self, all_lines: Iterator[str]) -> Iterator[str]:
        """Return the job's lines out of all lines of the input, or of a file that goes with it line by line.

        Raises:
            ConfigError: If a stream ends before the lines that are already translated; on iterating.
        """
        if self.stop is None and self.first:
            return self._rest_of_stream(all_lines)
        return islice(all_lines, self.first, self.stop)

    def _rest_of_stream(self, all_lines: Iterator[str]) -> Iterator[str]:
        """Yield what follows the lines of a stream that are already translated.

        Raises:
            ConfigError: If the stream is shorter.
        """
        num_skipped = sum(1 for _ in islice(all_lines, self.first))
        if num_skipped < self.first:
            what = f"the output has {format_count(self.first, 'line')}, but there are {num_skipped:,} to translate"
            raise ConfigError(what, where="--resume", hint=_OTHER_JOB_HINT)
        yield from all_lines


def count_all_lines(paths: Sequence[str], count: Callable[[str], int] = count_lines) -> int | None:
    """Count the lines of files together; None if one of them can be read only once.

    Args:
        paths: the files.
        count: returns the number of lines of one.

    Raises:
        DataError: If a file cannot be read.
    """
    if any(path == "-" or _is_pipe(path) for path in paths):
        return None
    return sum(map(count, paths))


def _is_pipe(path: str) -> bool:
    """Return whether a path exists but is neither file nor folder, so that it can be read only once."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def count_finished_lines(output: str, line_format: LineFormat, first: int = 1) -> int:
    """Count the input lines that an interrupted job has translated.

    The last line with several translations may lack some of them, so it does not count.

    Args:
        output: the file; if it does not exist, nothing is translated.
        line_format: format of the job that is to be resumed.
        first: number of the job's first input line, from 1.

    Raises:
        ConfigError: If the file was not written by such a job.
        StorageError: If the file cannot be read.
        DataError: If the file is not text.
    """
    last = last_line(output) if Path(output).exists() else None
    if last is None:
        return 0
    if (difference := line_format.difference(last)) is not None:
        what = f"{output} was written {difference}"
        raise ConfigError(what, where="--resume", hint="give the options of the interrupted job")
    if not line_format.has_numbers:
        return count_lines(output, complete=True)
    begin, end = _line_number(next(read_lines(output))), _line_number(last)
    if begin != first or end is None or end < first:
        what = f"{output} is not the output of a job that begins at line {first}"
        raise ConfigError(what, where="--resume", hint="write to another file")
    return end - first


def truncate_unfinished(output: str | Path, line_format: LineFormat) -> None:
    """Truncate an output, if it exists, after the lines that `count_finished_lines` counts.

    Raises:
        StorageError: If the file cannot be written.
    """
    if not Path(output).exists():
        return
    truncate_partial_line(output)
    last = last_line(output)
    if line_format.has_numbers and last is not None:
        prefix = f"{_line_number(last)} ||| ".encode()
        unfinished = takewhile(lambda line: line.startswith(prefix), read_lines_backwards(output))
        drop_last_lines(output, sum(1 for _ in unfinished))


def _line_number(line: str) -> int | None:
    """Return the number before the first ` ||| ` of a line, or None."""
    number = line.partition(" ||| ")[0]
    return int(number) if number.isascii() and number.isdigit() else None
