"""The application of the command line: all commands, or the one that is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from mtkit.cli.command_table import COMMANDS, GROUPS, Command


def _print_version(value: bool) -> None:
    """Print the version and exit, if --version is given."""
    if value:
        from mtkit import __version__

        typer.echo(f"mtkit {__version__}")
        raise typer.Exit


def _main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option(help="Add the traceback to error messages.")] = False,
) -> None:
    """Define the options of `mtkit` itself."""


def make_app(name: str | None = None) -> typer.Typer:
    """Return the application, which imports the modules of its commands.

    Args:
        name: the command or group that it has alone, so that others need not be imported; by default it has all.
    """
    app = typer.Typer(
        name="mtkit",
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        help="Train your own machine-translation system: from sentence pairs to a scored translator.",
        epilog="Example: `mtkit train configs/quickstart.yaml`",
        callback=_main_options,
    )
    _add_commands(app, [command for command in COMMANDS if name in (None, command.name)])
    for group in GROUPS:
        if name in (None, group.name):
            own = typer.Typer(help=group.help, epilog=f"Example: `{group.example}`")
            app.add_typer(own, name=group.name)
            _add_commands(own, group.commands)
    return app


def _add_commands(app: typer.Typer, commands: Sequence[Command]) -> None:
    """Import the functions of commands and add them."""
    for command in commands:
        app.command(command.name, epilog=command.epilog)(command.load())
