"""A console that cannot end a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live


class Display:
    """Shows lines and a live view on a console, whatever becomes of the console.

    Characters that its encoding lacks are shown as escapes. If it fails (its reader went away, its disk is full, its
    terminal was closed), nothing more is shown.

    Args:
        console: where to show; of the command line, or a user's own.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live: Live | None = None

    @property
    def is_live(self) -> bool:
        """Whether the console is a terminal on which a view can be redrawn."""
        return self.console.is_interactive

    def spelled(self, text: str) -> str:
        r"""The text in characters that the console's encoding has, `\xe9` for those it lacks."""
        encoding = self.console.encoding
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def say(self, line: str) -> None:
        """Print a line that stays, above the live view if there is one."""
        with self._survived():
            self.console.print(self.spelled(line), markup=False, highlight=False, soft_wrap=True)

    def redraw(self, view: RenderableType) -> None:
        """Draw the live view, in place of the one before."""
        if self.console.quiet:  # rich would still take stdout and stderr over
            return
        with self._survived():
            if self.live is None:
                live = Live(console=self.console, auto_refresh=False, transient=True)
                live.start()
                self.live = live  # one that did not start cannot be stopped
            self.live.update(view, refresh=True)

    def stop_live(self) -> None:
        """Remove the live view."""
        live, self.live = self.live, None
        if live is not None:
            with self._survived():
                live.stop()

    @contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except (
            OSError,
            ValueError,
            SystemExit,
        ):  # ValueError: a closed file; SystemExit: rich, for a closed pipe
            self.console.quiet = True  # rich forgets what it still holds, too
            self.stop_live()
