"""A stage in a process of its own, seen from the pipeline: start it, pass signals on, name how it ended.

The two talk through files. The pipeline writes the stage's record, and the process writes an outcome beside it: what
the function returned, the error that it raised, or the signal that stopped it. A process that ends without an outcome
has crashed. The standard input of the process is a pipe that nobody writes to: when the pipeline is gone, it ends, and
the process stops as if it were terminated.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtkit.errors import ConfigError, DataError, MtkitError, StorageError, TrainingError
from mtkit.files import storage_errors
from mtkit.training.signals import Interrupted, Signals
from mtkit.translation.options import Parallelism

_ERRORS = {each.__name__: each for each in (MtkitError, ConfigError, DataError, TrainingError, StorageError)}

_ROOM = 1 << 16
"""Bytes that are kept free for an outcome, so that a stage can tell that the disk is full."""

BROKEN_PIPE = {"broken_pipe": True}
"""Outcome of a process whose stdout was closed by its reader."""


def returned(result: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of a function that returned."""
    return {"result": result}


def raised(error: MtkitError) -> dict[str, Any]:
    """Return the outcome of a function that raised an error of the user's."""
    name = next(each.__name__ for each in type(error).__mro__ if each.__name__ in _ERRORS)
    return {"error": name, "what": error.what, "where": error.where, "hint": error.hint}


def stopped(number: int, saved: bool) -> dict[str, Any]:
    """Return the outcome of a function that a signal stopped."""
    return {"signal": number, "saved": saved}


def write_outcome(path: Path, outcome: dict[str, Any]) -> None:
    """Write an outcome over the spaces that keep its room.

    Raises:
        StorageError: If it cannot be written.
    """
    with storage_errors(path), open(path, "r+b") as file:
        file.write(json.dumps(outcome).encode())


def run_child(
    name: str,
    record: Path,
    outcome: Path,
    lock: int,
    *,
    fresh: bool,
    parallelism: Parallelism,
    signals: Signals,
) -> Any:
    """Run a stage in a process, and return what it returned.

    Args:
        name: name of the stage, for errors.
        record: its record.
        outcome: file for its outcome.
        lock: descriptor of the lock on the pipeline's folder, which the process holds too.
        fresh: see `Context`.
        parallelism: see `Context`.
        signals: the installed signal handlers of the pipeline.

    Raises:
        MtkitError: If the stage raised it, or its process crashed.
        Interrupted: If a signal stopped it.
        BrokenPipeError: If its output is no longer read.
    """
    with storage_errors(outcome):
        outcome.write_bytes(b" " * _ROOM)
    # -P: a file in the current folder must not take the place of a module, as it does not for `mtkit` either.
    command = [sys.executable, "-P", "-m", "mtkit.pipelines.worker", str(record), str(outcome)]
    command += [str(parallelism.num_workers), str(parallelism.num_threads or "")]
    process = None
    try:
        with signals.deferred():
            process = subprocess.Popen(
                [*command, *["fresh"] * fresh],
                stdin=subprocess.PIPE,
                pass_fds=[lock],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,  # Ctrl-C in a terminal reaches the pipeline alone, which passes every one on
            )
        process.wait()
    except Interrupted:
        if process is None:
            raise
        _pass_on(signals.pending or signal.SIGTERM, process, signals)
    finally:
        if process is not None and process.stdin is not None:
            process.stdin.close()
    return _result(name, process.returncode, _read(outcome), signals)


def _pass_on(number: int, process: subprocess.Popen[bytes], signals: Signals) -> None:
    """Pass a signal on to a process and wait for its end; a further Ctrl-C is passed on too."""
    process.send_signal(number)
    while process.returncode is None:
        try:
            with signals.deferred(raise_after=False):
                process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def _read(path: Path) -> dict[str, Any]:
    """Return an outcome; empty if the process wrote none, or was killed meanwhile."""
    with suppress(OSError, ValueError):
        return dict(json.loads(path.read_bytes()))
    return {}


def _result(name: str, code: int, outcome: dict[str, Any], signals: Signals) -> Any:
    """Return the result in an outcome, or raise what it says."""
    if "result" in outcome:
        return outcome["result"]
    if "error" in outcome:
        error = _ERRORS[outcome["error"]]
        raise error(outcome["what"], where=outcome["where"], hint=outcome["hint"])
    if "signal" in outcome:
        raise Interrupted(outcome["signal"], outcome["saved"], name)
    if outcome == BROKEN_PIPE:
        raise BrokenPipeError
    if signals.pending is not None:  # stopped before it could handle signals
        raise Interrupted(signals.pending, stage=name)
    if code < 0:
        killed = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        hint = "the same command goes on from there; if memory ran out, the system log says so"
        raise TrainingError(f"its process was killed by {killed}", where=f"stage {name}", hint=hint)
    what = f"its process crashed with exit code {code}"
    raise MtkitError(what, where=f"stage {name}", hint="its own message is above")
