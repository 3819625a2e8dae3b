"""Consoles: one that reports a closed pipe, and a display whose failures cannot stop a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live

from mtkit.formatting import escape

DRAWING_SHARE = 0.005
"""Most of the time that drawing a view takes, apart from views that must be drawn."""


class PipeConsole(Console):
    """Console that raises when the reader closes the pipe, where rich would end the process silently.

    Args:
        stream: stream to print to; None, if it was closed before the process began, for a quiet console.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(file=stream, quiet=stream is None)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Display:
    """Prints lines and a live view to a console, and survives its failures.

    Characters that its encoding cannot represent are escaped. Once it fails (a closed pipe, a full disk, a closed
    terminal), nothing more is printed.

    Args:
        console: console to print to: the command line's, or the caller's own.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._next_drawing = 0.0

    @property
    def is_live(self) -> bool:
        """Return whether the console is a terminal on which a view can be redrawn."""
        return self.console.is_interactive

    def say(self, line: str) -> None:
        """Print a line above the live view, where it stays."""
        with self._failures_ignored():
            self.console.print(
                escape(line, self.console.encoding), markup=False, highlight=False, soft_wrap=True
            )

    @property
    def is_due(self) -> bool:
        """Return whether a view can be drawn again without taking more than `DRAWING_SHARE` of the time."""
        return self.is_live and not self.console.quiet and time.monotonic() >= self._next_drawing

    def redraw(self, view: RenderableType) -> None:
        """Draw the live view in place of the previous one."""
        if self.console.quiet:  # rich would still redirect stdout and stderr
            return
        start = time.monotonic()
        with self._failures_ignored():
            if self._live is None:
                live = Live(console=self.console, auto_refresh=False, transient=True)
                live.start()
                self._live = live  # set only now: a view that failed to start cannot be stopped
            self._live.update(view, refresh=True)
        end = time.monotonic()
        self._next_drawing = end + (end - start) / DRAWING_SHARE

    def stop_live(self) -> None:
        """Remove the live view."""
        live, self._live = self._live, None
        if live is not None:
            with self._failures_ignored():
                live.stop()

    @contextmanager
    def _failures_ignored(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, SystemExit):
            # ValueError is a closed file; SystemExit is what rich raises for a closed pipe.
            self.console.quiet = True  # makes rich drop its buffer as well
            self.stop_live()
