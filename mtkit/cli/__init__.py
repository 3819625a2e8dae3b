"""The command line: parse, call, print. torch is imported by what needs it, so that `--help` is quick.

`commands` lists the commands, a module of its own holds each, `process` runs them.
"""

from __future__ import annotations

from mtkit.cli.commands import app
from mtkit.cli.process import main, run

__all__ = ["app", "main", "run"]
