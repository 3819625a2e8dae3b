"""Large translations as jobs: a part of the input for each machine, and going on where a killed one stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from mtkit.errors import ConfigError
from mtkit.files import count_lines, cut_off_partial_line, drop_last_lines, read_lines


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `count` parts of the input, in the order of the lines."""

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
    def of_process(cls, environment: Mapping[str, str]) -> Shard:
        """The part of a process that torchrun started; else all."""
        rank, size = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            what = f"RANK is {rank!r} and WORLD_SIZE {size!r}"
            raise ConfigError(what, hint="start several processes with torchrun, or unset both")
        return cls(int(rank) + 1, int(size))

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
    def plan(cls, files: Sequence[str], shard: Shard, num_done: int = 0) -> Job:
        """The lines of a shard that are not done yet.

        Raises:
            ConfigError: a shard of stdin, whose lines cannot be counted beforehand; more is done than there is.
            DataError: a file that cannot be read.
        """
        counted = [count_lines(path) for path in files if path != "-" and not is_pipe(path)]
        if len(counted) == len(files):
            lines = shard.lines(sum(counted))
            if num_done > len(lines):
                what = f"the output has {num_done:,} lines, but there are {len(lines):,} to translate"
                raise ConfigError(what, where="--resume", hint="it is of another job: write to another file")
            return cls(tuple(files), lines[num_done:])
        if shard.count > 1:
            what = "only files can be divided: the lines of stdin are not known beforehand"
            raise ConfigError(what, where="--shard", hint="name the input files")
        return cls(tuple(files), range(num_done, 2**62) if num_done else None)

    @property
    def first(self) -> int:
        """Number of the first line, from 0."""
        return self.lines.start if self.lines else 0

    @property
    def total(self) -> int | None:
        """How many lines, if that is known."""
        return None if self.lines is None or self.lines.stop == 2**62 else len(self.lines)

    def read(self, files: Sequence[str] | None = None) -> Iterator[str]:
        """The lines, of the input or of files that go with it line by line. Raises: DataError."""
        every = chain.from_iterable(read_lines(path) for path in files or self.files)
        if self.lines is None:
            return every
        return islice(every, self.lines.start, self.lines.stop)


def is_pipe(path: str) -> bool:
    """Whether a path is there, but no file or folder: it can be read only once."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def num_done(output: str, n_best: bool) -> int:
    """How many lines an interrupted job has translated; what is incomplete is cut off its output.

    Args:
        output: the file; if there is none, nothing is done.
        n_best: whether it has several translations of each line, each with the line's number; then those of the last
            line may not be all, and are cut off too.

    Raises:
        StorageError, DataError: it cannot be read or written, or is no output of such a job.
    """
    if not Path(output).exists():
        return 0
    cut_off_partial_line(output)
    if not n_best:
        return count_lines(output)
    last, of_last, num_lines = "", 0, 0
    for line in read_lines(output):
        number = line.partition(" ||| ")[0]
        num_lines += number != last
        of_last, last = (of_last + 1 if number == last else 1), number
    if last and not last.isdigit():
        hint = "without --resume it is overwritten"
        raise ConfigError(f"{output} has no line numbers", where="--resume", hint=hint)
    drop_last_lines(output, of_last)
    return max(0, num_lines - 1)
