"""Entry point of the process: it runs a command and turns every error into one line and an exit code.

Only this module ends the process.

Exit codes: 0 ok, 1 a bug, 2 usage or config, 3 data, 4 training failed, 5 disk or checkpoint,
129 hung up after saving, 130 interrupted, 141 the reader of stdout closed the pipe, 143 terminated after saving.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
import traceback
from contextlib import suppress
from ctypes import CDLL
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import typer

from mtkit.cli.command_table import COMMANDS, GROUPS
from mtkit.cli.commands import make_app
from mtkit.cli.rules import name_options
from mtkit.cli.terminal import escape_unencodable, flush_or_discard, print_stderr
from mtkit.errors import ConfigError, MtkitError, StorageError
from mtkit.torchrun import is_main_process

# Newer versions of typer bundle their own click; this finds the class in either.
_UsageError: Any = typer.BadParameter.__bases__[0]

_STOP_CODES = (129, 130, 143)
"""Exit codes of a process that was told to stop; only the main process reports them."""

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GC_THRESHOLD = 50_000
"""New objects after which Python searches the young ones for garbage: 700 by default, with which it would search all
objects of PyTorch again and again while it is imported, for 0.3 s in all."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    _reserve_standard_descriptors()
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(command.loads_torch and command.name == _first_word(arguments) for command in COMMANDS):
        gc.set_threshold(_GC_THRESHOLD)
        _load_torch_library()
    sys.exit(run(arguments))


def _load_torch_library() -> None:
    """Begin to load PyTorch's largest library in a thread, while this one imports what it needs before.

    It takes a seventh of the time of `import torch`, and does not hold the interpreter's lock. With CUDA, PyTorch loads
    other libraries first.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return
    library = Path(spec.origin).with_name("lib") / "libtorch_cpu.so"
    if library.exists() and not library.with_name("libtorch_cuda.so").exists():
        Thread(target=_load, args=(library,), daemon=True).start()


def _load(library: Path) -> None:
    """Load a library; if it cannot be loaded, `import torch` will say so."""
    with suppress(OSError):
        CDLL(str(library))


def _reserve_standard_descriptors() -> None:
    """Open closed descriptors among 0, 1 and 2, lest a file opened later gets one and a library prints into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; an error is printed in one line."""
    escape_unencodable()
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app = make_app(_first_word(arguments))
        code = app(_add_help(arguments), prog_name="mtkit", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        if code == 130:  # some versions of typer return this for Ctrl-C
            return _fail("interrupted", 130, debug)
        return code if isinstance(code, int) else 0
    except MtkitError as error:
        return _fail(f"error: {name_options(str(error), _find_command(arguments))}", error.exit_code, debug)
    except typer.Abort:
        return _fail("interrupted", 130, debug)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "mtkit"
        hint = f"{command} --help"
        what = error.format_message().rstrip(".")
        if key := re.match(r"No such option:? '?--(\w+\.\w+)", what):
            hint = f"a key of the config is set without dashes: {key[1]}=VALUE; {hint}"
        usage = ConfigError(what, hint=hint)
        return _fail(f"error: {usage}", usage.exit_code, debug)
    except BrokenPipeError:
        return _fail("stdout: the reader closed the pipe; the lines it read are complete", 141, debug)
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        full = StorageError(os.strerror(error.errno).lower(), where="stdout", hint="free some space")
        return _fail(f"error: {full}", full.exit_code, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except BaseException as error:
        if (code := getattr(error, "exit_code", None)) in _STOP_CODES:  # Interrupted, raised by training
            again = "run the same command again"
            again += ", without --fresh," if "--fresh" in arguments else ""
            if stage := getattr(error, "stage", None):
                return _fail(f"stopped in stage {stage}: {again} to go on", code, debug)
            if getattr(error, "saved", False):
                return _fail(f"stopped after saving: {again} to resume", code, debug)
            return _fail("stopped before training began: run the same command again", code, debug)
        raise


def _first_word(arguments: list[str]) -> str | None:
    """Return the command or group that is called, or None if there is none of this name."""
    names = {known.name for known in (*COMMANDS, *GROUPS)}
    return arguments[0] if arguments and arguments[0] in names else None


def _add_help(arguments: list[str]) -> list[str]:
    """Return the arguments, with --help added if they name no more than a group of commands."""
    groups = [[], *([group.name] for group in GROUPS)]
    return [*arguments, "--help"] if arguments in groups else arguments


def _find_command(arguments: list[str]) -> Any:
    """Return the command that the arguments name, or the innermost group."""
    command: Any = typer.main.get_command(make_app(_first_word(arguments)))
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument, command)
    return command


def _fail(message: str, code: int, debug: bool) -> int:
    """Print a message, and the traceback if wanted, and return the exit code."""
    if debug:
        traceback.print_exc()
    if code not in _STOP_CODES or is_main_process():
        print_stderr(message)
    flush_or_discard(sys.stdout)
    return code
