"""Command line: parse, call, print. A command imports torch only when it needs it, so that `--help` is quick.

`command_table` lists the commands, each of which has its own module, and `process` runs them.
"""

from __future__ import annotations

from mtkit.cli.commands import make_app
from mtkit.cli.process import main, run

__all__ = ["main", "make_app", "run"]
