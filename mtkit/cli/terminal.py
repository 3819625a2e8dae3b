"""What a command says and where it writes: stdout or a file, consoles, progress on stderr."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from mtkit.cli.rules import name_options
from mtkit.errors import ConfigError, DataError, StorageError
from mtkit.formatting import format_duration

if TYPE_CHECKING:
    from rich.console import Console

    from mtkit.files import LineReader


_MOST_FAULTS_TOLD = 10
"""Faults that are shown one by one; further ones are only counted."""


def spell_everything() -> None:
    """Show what an encoding lacks as escapes. `open_output`, for what is not only shown, writes UTF-8 instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def make_console(stream: TextIO | None) -> Console:
    """Where progress is shown; nowhere, if the stream was closed before the process began."""
    from rich.console import Console

    class PipeConsole(Console):
        """If the reader goes away, rich would leave without a word; here it is an error like any other."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipeConsole(file=stream, quiet=stream is None)


def own_command() -> str:
    """How mtkit was called, in words that the same shell understands again."""
    called = sys.argv[0]
    if called.endswith(os.path.join("mtkit", "__main__.py")):
        return shlex.join([sys.orig_argv[0], "-m", "mtkit"])
    installed = shutil.which("mtkit")
    if os.path.basename(called) != "mtkit" or (installed and os.path.samefile(installed, called)):
        return "mtkit"
    return shlex.quote(called)


def flush_or_drop(stream: TextIO | None) -> None:
    """Flush a stream. If nobody takes what it holds, that is dropped, so that the interpreter's end is silent too."""
    if stream is None:  # closed before the process began
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str, end: str = "\n") -> None:
    """Show something on stderr, if there is one. What nobody reads is no fault."""
    if sys.stderr is not None:  # print would take stdout in its place
        with suppress(OSError):
            print(text, end=end, file=sys.stderr, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody sits at the other end of a stream."""
    return stream is not None and not stream.closed and stream.isatty()


def prompted(lines: LineReader) -> Iterator[str]:
    """The lines that somebody types, each behind a prompt on stderr."""
    say("Type a line to translate, Ctrl-D to end.")
    while True:
        if not lines.is_ready(0.0):  # of several lines that were pasted, those behind the first are there
            say("> ", end="")
        try:
            line = next(lines)
        except StopIteration:
            say("")  # so that what comes next begins a line
            return
        yield line


def open_stdout() -> TextIO:
    """stdout. Raises: StorageError: it was closed before the process began."""
    if sys.stdout is None:
        raise StorageError("it is closed", where="stdout", hint="write to a file, or to /dev/null")
    return sys.stdout


@contextmanager
def open_output(path: str | None, append: bool = False) -> Iterator[TextIO]:
    """stdout, or a file; what was written is flushed whatever happens. Raises: StorageError, BrokenPipeError.

    Files are written line by line: whatever ends the process, no more than a part of a line is lost or left.
    """
    from mtkit.files import storage_errors

    try:
        with storage_errors(path or "stdout"):
            if path is None:
                stdout = open_stdout()
                stdout.reconfigure(encoding="utf-8", newline="\n", line_buffering=True)  # type: ignore[attr-defined]
                yield stdout
                stdout.flush()
            else:
                mode = "a" if append else "w"
                with open(path, mode, encoding="utf-8", newline="\n", buffering=1) as file:
                    yield cast(TextIO, file)
    except StorageError as error:
        if isinstance(error.__cause__, BrokenPipeError):  # the reader went away: no fault of the disk
            raise BrokenPipeError from error  # without its errno, of which typer would make an exit code of its own
        raise


@contextmanager
def open_new(path: str) -> Iterator[TextIO]:
    """A text file that is not there yet. Raises: ConfigError: it is; StorageError."""
    from mtkit.files import storage_errors

    if os.path.lexists(path):
        raise ConfigError("the file is there already", where=path, hint="choose another with -o")
    with storage_errors(path), open(path, "x", encoding="utf-8", newline="\n") as file:
        yield cast(TextIO, file)


def print_text(text: str) -> None:
    """Text to stdout. Raises: StorageError, BrokenPipeError."""
    with open_output(None) as out:
        out.write(text)


def refuse_overwriting(output: str | None, others: Sequence[str], option: str = "--output") -> None:
    """Check that an output is none of the other files, which it would empty. Raises: ConfigError: at the option."""
    for path in others if output is not None else ():
        both = os.path.isfile(path) and os.path.isfile(str(output))
        if os.path.abspath(path) == os.path.abspath(str(output)) or (
            both and os.path.samefile(path, str(output))
        ):
            what = f"{output} is another file of this command too"
            raise ConfigError(what, where=option, hint="write to another file")


def refuse_compressed(output: str | None, option: str = "--output") -> None:
    """Check that the name of a text file does not promise a compressed one. Raises: ConfigError: at the option."""
    from mtkit.files import COMPRESSED_SUFFIXES

    path = Path(output or "")
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        what = f"{output} would be plain text, not {path.suffix}"
        raise ConfigError(what, where=option, hint=f"write to {path.with_suffix('')}, then compress it")


class FaultReport:
    """Says on stderr which lines could not be translated and why: the first ones at once, how many at the end.

    Args:
        done: what was done about them.
        command: the command that reports, whose options the faults name.
    """

    def __init__(self, done: str, command: Any) -> None:
        self.done = done
        self.command = command
        self.count = 0
        self.first_numbers: list[int] = []

    def __call__(self, number: int, fault: DataError) -> None:
        """One more. Args: number: of the line, from 0."""
        self.count += 1
        if self.count <= _MOST_FAULTS_TOLD:
            self.first_numbers.append(number + 1)
            say(f"{self.done}: {name_options(str(fault), self.command)}")

    def __enter__(self) -> FaultReport:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.count:
            numbers = ", ".join(f"{number:,}" for number in self.first_numbers)
            more = " …" if self.count > len(self.first_numbers) else ""
            what = "1 line was" if self.count == 1 else f"{self.count:,} lines were"
            say(f"{what} not translated but {self.done}: {numbers}{more}")


class Ticker:
    """Says on stderr, every few seconds, how many lines were translated, how fast, and when all will be.

    Args:
        total: how many there are, if that is known.
    """

    def __init__(self, total: int | None = None) -> None:
        self.start = self.said = time.monotonic()
        self.total, self.done = total, 0

    def __call__(self, num_lines: int) -> None:
        """Count so many more lines."""
        self.done += num_lines
        now = time.monotonic()
        if now - self.said > 3:
            speed = self.done / (now - self.start)
            of_all = f" of {self.total:,}" if self.total else ""
            left = f", time left {format_duration((self.total - self.done) / speed)}" if self.total else ""
            say(f"{self.done:,}{of_all} lines, {speed:,.0f} lines/s{left}")
            self.said = now
