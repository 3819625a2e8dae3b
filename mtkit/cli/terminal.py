"""Streams of the process: output to stdout or a file, messages and progress on stderr."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from mtkit.cli.rules import name_options
from mtkit.errors import ConfigError, DataError, StorageError
from mtkit.files import COMPRESSED_SUFFIXES, LineReader, storage_errors
from mtkit.formatting import format_count

if TYPE_CHECKING:
    from rich.console import Console


_MAX_FAULTS = 10
"""Faults that are printed one by one; further ones are only counted."""


def escape_unencodable() -> None:
    """Let stdout and stderr print characters that their encoding lacks as escapes.

    Data goes through `open_output`, which writes UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def make_console(stream: TextIO | None) -> Console:
    """Return a console on a stream; a quiet one if the stream was closed before the process began."""
    from mtkit.training.display import PipeConsole

    return PipeConsole(stream)


def invocation() -> str:
    """Return how the user called mtkit, quoted for the shell."""
    called = sys.argv[0]
    if called.endswith(os.path.join("mtkit", "__main__.py")):
        return shlex.join([sys.orig_argv[0], "-m", "mtkit"])
    installed = shutil.which("mtkit")
    if os.path.basename(called) != "mtkit" or (installed and os.path.samefile(installed, called)):
        return "mtkit"
    return shlex.quote(called)


def flush_or_discard(stream: TextIO | None) -> None:
    """Flush a stream; if it cannot be written, discard its buffer, so that the interpreter does not fail at exit."""
    if stream is None:  # closed before the process began
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_stderr(text: str, end: str = "\n") -> None:
    """Print to stderr, if it is open; an error of writing does not matter."""
    if sys.stderr is not None:  # with file=None, print would write to stdout
        with suppress(OSError):
            print(text, end=end, file=sys.stderr, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is open and a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def prompt_for_lines(lines: LineReader) -> Iterator[str]:
    """Yield lines typed at a terminal, with a prompt on stderr before each."""
    print_stderr("Type a line to translate, Ctrl-D to end.")
    while True:
        if not lines.is_ready(0.0):  # of pasted lines only the first is waited for
            print_stderr("> ", end="")
        try:
            line = next(lines)
        except StopIteration:
            print_stderr("")  # so that further output starts on a line of its own
            return
        yield line


def open_stdout() -> TextIO:
    """Return stdout.

    Raises:
        StorageError: If it was closed before the process began.
    """
    if sys.stdout is None:
        raise StorageError("closed", where="stdout", hint="write to a file, or to /dev/null")
    return sys.stdout


@contextmanager
def open_output(path: str | None, append: bool = False) -> Iterator[TextIO]:
    """Open a file, or stdout if there is no path, to write UTF-8. Leaving the context flushes it.

    The stream is line-buffered: however the process ends, at most part of one line is lost or left.

    Raises:
        StorageError: If the file cannot be opened or written.
        BrokenPipeError: If the reader of a pipe has closed it.
    """
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
        if isinstance(error.__cause__, BrokenPipeError):  # not a fault of the disk
            raise BrokenPipeError from error  # without its errno, which typer would turn into an exit code
        raise


@contextmanager
def open_new_file(path: str) -> Iterator[TextIO]:
    """Create a text file.

    Raises:
        ConfigError: If the file exists.
        StorageError: If it cannot be written.
    """
    if os.path.lexists(path):
        raise ConfigError("the file already exists", where=path, hint="choose another with -o")
    with storage_errors(path), open(path, "x", encoding="utf-8", newline="\n") as file:
        yield cast(TextIO, file)


def print_stdout(text: str) -> None:
    """Write text to stdout as UTF-8; bytes of file names that are not UTF-8 stay what they are.

    Raises:
        StorageError: If stdout is closed or cannot be written.
        BrokenPipeError: If the reader of a pipe has closed it.
    """
    with open_output(None) as out:
        out.reconfigure(errors="surrogateescape")  # type: ignore[attr-defined]
        out.write(text)


def check_not_overwriting(output: str | None, others: Sequence[str], option: str = "--output") -> None:
    """Check that an output is none of the other files of a command, which it would overwrite.

    Raises:
        ConfigError: If it is; at the option.
    """
    for path in others if output is not None else ():
        path = "/dev/stdin" if path == "-" else path
        both_exist = os.path.isfile(path) and os.path.isfile(str(output))
        if os.path.abspath(path) == os.path.abspath(str(output)) or (
            both_exist and os.path.samefile(path, str(output))
        ):
            what = f"{output} is also another file of this command"
            raise ConfigError(what, where=option, hint="write to another file")


def check_not_stdin(config: str, option: str) -> None:
    """Check that a config is a file: a command that goes on where it stopped reads it again.

    Raises:
        ConfigError: If it is stdin; at the option.
    """
    if config == "-":
        what = "stdin is not read again when the command goes on"
        raise ConfigError(what, where=option, hint="name a file")


def check_stdin_once(inputs: Sequence[str]) -> None:
    """Check that at most one input of a command is stdin.

    Raises:
        ConfigError: If several are.
    """
    if inputs.count("-") > 1:
        raise ConfigError("stdin can be read once", where="-", hint="name a file for each other input")


def check_not_compressed(output: str | None, option: str = "--output") -> None:
    """Check that the name of an output, which is plain text, is not that of a compressed file.

    Raises:
        ConfigError: If it is; at the option.
    """
    path = Path(output or "")
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        what = f"{output} would be plain text, not {path.suffix}"
        raise ConfigError(what, where=option, hint=f"write to {path.with_suffix('')}, then compress it")


class FaultReport:
    """Report on stderr of the lines that could not be translated: the first ones one by one, at the end their number.

    Args:
        outcome: what became of these lines, such as "left empty".
        command: the running command, whose options the faults name.
    """

    def __init__(self, outcome: str, command: Any) -> None:
        self.outcome = outcome
        self.command = command
        self.count = 0
        self.first_numbers: list[int] = []

    def __call__(self, number: int, fault: DataError) -> None:
        """Report a line.

        Args:
            number: number of the line, from 0.
            fault: why it could not be translated.
        """
        self.count += 1
        if self.count <= _MAX_FAULTS:
            self.first_numbers.append(number + 1)
            print_stderr(f"{self.outcome}: {name_options(str(fault), self.command)}")

    def __enter__(self) -> FaultReport:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.count:
            numbers = ", ".join(f"{number:,}" for number in self.first_numbers)
            more = " …" if self.count > len(self.first_numbers) else ""
            lines, were = format_count(self.count, "line"), "was" if self.count == 1 else "were"
            print_stderr(f"{lines} {were} not translated but {self.outcome}: {numbers}{more}")
