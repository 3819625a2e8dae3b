"""Large translations as jobs: a part of the input for each machine, and going on where a killed one stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from mtkit.cli.line_format import LineFormat
from mtkit.errors import ConfigError
from mtkit.files import count_lines, drop_last_lines, last_line, read_lines, truncate_partial_line
from mtkit.torchrun import read_ranks

_ENDLESS = 2**62
"""More lines than any stream has."""


@dataclass(frozen=True)
class Shard:
    """Segment `number` (from 1) of `count` parts of the input, in the order of the lines."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "2/8". Raises: ConfigError: not of that form."""
        number, slash, count = text.partition("/")
        if slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit():
            shard = cls(int(number), int(count))
            if 1 <= shard.number <= shard.count:
                return shard
        raise ConfigError(f"{text!r} is no part", where="--shard", hint="2/8 is the second of eight")

    @classmethod
    def of_process(cls) -> Shard:
        """Return the shard of a process that torchrun started; otherwise the whole input.

        Raises:
            ConfigError: If torchrun's variables are incomplete.
        """
        ranks = read_ranks()
        return cls(ranks.rank + 1, ranks.world_size)

    def lines(self, total: int) -> range:
        """Its lines of so many, from 0."""
        return range(total * (self.number - 1) // self.count, total * self.number // self.count)

    def output(self, path: str) -> str:
        """Where a process of torchrun writes: the path with its number, so that `cat PATH.*` is the whole."""
        digits = len(str(self.count))
        return f"{path}.{self.number:0{digits}}-of-{self.count}"


@dataclass(frozen=True)
class Job:
    """Which lines of the input are to be translated.

    Attributes:
        files: input, "-" for stdin.
        lines: their numbers, from 0; None: all there are, not counted.
    """

    files: tuple[str, ...]
    lines: range | None = None

    @classmethod
    def plan(cls, files: Sequence[str], shard: Shard) -> Job:
        """The lines of a shard.

        Raises:
            ConfigError: a shard of stdin, whose lines cannot be counted beforehand.
            DataError: a file that cannot be read.
        """
        num_lines = count_all(files)
        if num_lines is not None:
            return cls(tuple(files), shard.lines(num_lines))
        if shard.count > 1:
            what = "only files can be divided: the lines of stdin are not known beforehand"
            raise ConfigError(what, where="--shard", hint="name the input files")
        return cls(tuple(files))

    def without_first(self, num_done: int) -> Job:
        """What is left to do. Raises: ConfigError: more is done than there is."""
        if self.lines is None:
            return replace(self, lines=range(num_done, _ENDLESS) if num_done else None)
        if num_done > len(self.lines):
            what = f"the output has {num_done:,} lines, but there are {len(self.lines):,} to translate"
            raise ConfigError(what, where="--resume", hint="it is of another job: write to another file")
        return replace(self, lines=self.lines[num_done:])

    @property
    def first(self) -> int:
        """Number of the first line, from 0."""
        return self.lines.start if self.lines else 0

    @property
    def total(self) -> int | None:
        """How many lines, if that is known."""
        return None if self.lines is None or self.lines.stop == _ENDLESS else len(self.lines)

    def of(self, every: Iterator[str]) -> Iterator[str]:
        """Its lines of all lines of the input, or of a file that goes with it line by line.

        Raises:
            ConfigError: a stream ends before the lines that are already translated; on iterating.
        """
        if self.lines is None:
            return every
        return self._rest(every) if self.total is None else islice(every, self.lines.start, self.lines.stop)

    def _rest(self, every: Iterator[str]) -> Iterator[str]:
        """What follows the first lines of a stream. Raises: ConfigError: it has not so many."""
        there = sum(1 for _ in islice(every, self.first))
        if there < self.first:
            what = f"the output has {self.first:,} lines, but there are {there:,} to translate"
            raise ConfigError(what, where="--resume", hint="it is of another job: write to another file")
        yield from every


def count_all(paths: Sequence[str]) -> int | None:
    """How many lines files have together; None if one can be read only once. Raises: DataError."""
    if any(path == "-" or _is_pipe(path) for path in paths):
        return None
    return sum(map(count_lines, paths))


def _is_pipe(path: str) -> bool:
    """Whether a path is there, but no file or folder: it can be read only once."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def num_done(output: str, line_format: LineFormat, first: int = 1) -> int:
    """How many lines an interrupted job has translated.

    With several translations of each line, those of the last line may not be all, so that it is not counted.

    Args:
        output: the file; if there is none, nothing is done.
        line_format: of the job that is to go on.
        first: number of the job's first line, from 1.

    Raises:
        ConfigError: it is no output of such a job.
        StorageError, DataError: it cannot be read.
    """
    last = last_line(output) if Path(output).exists() else None
    if last is None:
        return 0
    if (difference := line_format.difference(last)) is not None:
        what = f"{output} was written {difference}"
        raise ConfigError(what, where="--resume", hint="give the options of the stopped job")
    if not line_format.n_best:
        return count_lines(output, complete=True)
    begins, ends = line_number(next(read_lines(output))), line_number(last)
    if begins != first or ends is None or ends < first:
        what = f"{output} is not of a job that begins with line {first}"
        raise ConfigError(what, where="--resume", hint="write to another file")
    return ends - first


def cut_off_incomplete(output: str | Path, line_format: LineFormat) -> None:
    """Cut what `num_done` does not count off an output, if there is one. Raises: StorageError, DataError."""
    if not Path(output).exists():
        return
    truncate_partial_line(output)
    last = last_line(output)
    if line_format.n_best and last is not None:
        number = line_number(last)
        drop_last_lines(output, sum(line_number(line) == number for line in read_lines(output)))


def line_number(line: str) -> int | None:
    """The number before the first ` ||| ` of a line; None if there is none."""
    number = line.partition(" ||| ")[0]
    return int(number) if number.isascii() and number.isdigit() else None
