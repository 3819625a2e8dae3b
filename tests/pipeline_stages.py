"""Stages for the tests of pipelines: their functions are imported by the processes of the stages."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from mtkit.errors import DataError
from mtkit.pipelines import Context, Settings


def copy(settings: Settings, context: Context) -> dict[str, Any]:
    """Copy a file, with a suffix; count how often that was asked for."""
    with open(settings["log"], "a", encoding="utf-8") as log:
        log.write(f"{settings['to']} {context.fresh}\n")
    text = Path(settings["from"]).read_text(encoding="utf-8")
    Path(settings["to"]).write_text(text + settings["suffix"], encoding="utf-8")
    return {"length": len(text)}


def copy_unless_forbidden(settings: Settings, context: Context) -> dict[str, Any]:
    """Copy a file, unless another one is there."""
    if Path(settings["forbidden"]).exists():
        raise DataError("it is forbidden", where=settings["forbidden"], hint="remove it")
    return copy(settings, context)


def count_calls(settings: Settings, context: Context) -> None:
    """Write how often this was asked for."""
    copy(settings, context)
    Path(settings["to"]).write_bytes(Path(settings["log"]).read_bytes())


def die(settings: Settings, context: Context) -> None:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash(settings: Settings, context: Context) -> None:
    """Have a bug."""
    raise ZeroDivisionError


def wait(settings: Settings, context: Context) -> None:
    """Say that it waits, and wait for a signal."""
    Path(settings["waits"]).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(60)
