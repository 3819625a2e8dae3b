"""The process of a stage: `python -m mtkit.pipelines.worker RECORD OUTCOME WORKERS THREADS [fresh]`. See `child`.

It ends normally whatever becomes of the stage, of which the outcome tells; a bug in mtkit ends it with a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

from mtkit.errors import MtkitError
from mtkit.pipelines.child import BROKEN_PIPE, raised, returned, stopped, write_outcome
from mtkit.pipelines.records import Record, as_json
from mtkit.pipelines.stages import Context
from mtkit.training.display import PipeConsole
from mtkit.training.signals import Interrupted, Signals
from mtkit.translation.options import Parallelism


def main(arguments: list[str]) -> None:
    """Run a stage and write its outcome."""
    record, outcome = Path(arguments[0]), Path(arguments[1])
    threading.Thread(target=_stop_with_pipeline, daemon=True).start()
    write_outcome(outcome, _run(record, _parallelism(*arguments[2:4]), fresh="fresh" in arguments[4:]))


def _stop_with_pipeline() -> None:
    """Terminate this process once the pipeline, which holds the other end of stdin, is gone."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _parallelism(workers: str, threads: str) -> Parallelism:
    """Return the parallelism that the command line names. The thread that waits for the end of stdin holds no lock."""
    return Parallelism(
        "auto" if workers == "auto" else int(workers),
        int(threads) if threads else None,
        lambda message: print(message, file=sys.stderr, flush=True),
        beside_threads=True,
    )


def _run(path: Path, parallelism: Parallelism, *, fresh: bool) -> dict[str, Any]:
    """Run the function of a record and return its outcome."""
    try:
        record = Record.read(path)
        assert record is not None
        with Signals().installed() as signals:
            with signals.deferred():  # a signal during the import of torch would be lost
                module, _, name = record.work.partition(":")
                work = getattr(import_module(module), name)
            console = PipeConsole(sys.stdout)
            result = as_json(work(record.settings, Context(console, fresh, parallelism)))
            if sys.stdout is not None:
                sys.stdout.flush()
            return returned(result)
    except MtkitError as error:
        return raised(error)
    except Interrupted as error:
        return stopped(error.exit_code - 128, error.saved)
    except KeyboardInterrupt:
        return stopped(signal.SIGINT, saved=False)
    except BrokenPipeError:
        return BROKEN_PIPE


if __name__ == "__main__":
    main(sys.argv[1:])
