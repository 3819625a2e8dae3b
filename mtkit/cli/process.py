"""The process: runs a command, makes one line and an exit code of whatever ends it. Only here the process is ended.

Exit codes: 0 ok, 1 a bug, 2 usage or config, 3 data, 4 training failed, 5 disk or checkpoint,
129 hung up after saving, 130 interrupted, 141 the reader of our output went away, 143 terminated after saving.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any

import typer

from mtkit.cli.commands import app
from mtkit.cli.rules import name_options
from mtkit.cli.terminal import flush_or_drop, say, spell_everything
from mtkit.errors import ConfigError, MtkitError, StorageError
from mtkit.torchrun import is_main_process

# Newer typers carry their own click: this is the one in use.
_UsageError: Any = typer.BadParameter.__bases__[0]

_EXPECTED_CODES = (129, 130, 143)
"""Of ends that were asked for: of several processes one says so."""

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    _occupy_closed_descriptors()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def _occupy_closed_descriptors() -> None:
    """Keep 0, 1 and 2 from files that are opened later: what a library says there would be written into them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def run(arguments: list[str]) -> int:
    """Run a command; every error becomes one line and an exit code."""
    spell_everything()
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(_with_help(arguments), prog_name="mtkit", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        if code == 130:  # what some versions of typer make of a Ctrl-C
            return fail("interrupted", 130, debug)
        return code if isinstance(code, int) else 0
    except MtkitError as error:
        return fail(f"error: {name_options(str(error), _find_command(arguments))}", error.exit_code, debug)
    except typer.Abort:
        return fail("interrupted", 130, debug)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "mtkit"
        usage = ConfigError(error.format_message().rstrip("."), hint=f"{command} --help")
        return fail(f"error: {usage}", usage.exit_code, debug)
    except BrokenPipeError:
        return fail("stdout: the reader went away; what it read is complete lines", 141, debug)
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        full = StorageError(os.strerror(error.errno).lower(), where="stdout", hint="free some space")
        return fail(f"error: {full}", full.exit_code, debug)
    except KeyboardInterrupt:
        return fail("interrupted", 130, debug)
    except BaseException as error:
        if (code := getattr(error, "exit_code", None)) in _EXPECTED_CODES:  # training's Interrupted
            if getattr(error, "saved", False):
                return fail("stopped after saving: run the same command again to go on", code, debug)
            return fail("stopped before training began: run the same command again", code, debug)
        raise


def _with_help(arguments: list[str]) -> list[str]:
    """The arguments; where they name mtkit, or a group of commands, and nothing more, they ask for its help."""
    group: typer.Typer | None = app
    for argument in arguments:
        groups = {} if group is None else {info.name: info.typer_instance for info in group.registered_groups}
        group = groups.get(argument)
    return arguments if group is None else [*arguments, "--help"]


def _find_command(arguments: list[str]) -> Any:
    """Return the command that the arguments call, or the innermost group that they name."""
    command: Any = typer.main.get_command(app)
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument, command)
    return command


def fail(message: str, code: int, debug: bool) -> int:
    """One line on stderr, and the traceback if asked for."""
    if debug:
        traceback.print_exc()
    if code not in _EXPECTED_CODES or is_main_process():
        say(message)
    flush_or_drop(sys.stdout)
    return code
