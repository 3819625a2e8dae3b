"""Ctrl-C, SIGTERM and SIGHUP while training: what is underway is finished, the run is saved, the process leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_EXIT_CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupted(BaseException):
    """A signal asked the run to end. Not an error: nothing may catch it but the trainer and the command line.

    Attributes:
        exit_code: of the process.
        saved: whether training had begun, and so was saved.
    """

    def __init__(self, number: int, saved: bool = True) -> None:
        super().__init__(number)
        self.exit_code = _EXIT_CODES[signal.Signals(number)]
        self.saved = saved


class Signals:
    """While entered, a first signal raises `Interrupted`: at once, or at the end of a protected block.

    A second Ctrl-C leaves at once, wherever the process is.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self.depth = 0
        self.is_distributed = False
        """Of several processes: a launcher may pass on the same Ctrl-C that the terminal sent to all."""
        self.begun = False
        """Whether there is something to save: set when training begins."""

    @contextmanager
    def handled(self) -> Iterator[Signals]:
        """Take over SIGINT, SIGTERM and SIGHUP for the block; elsewhere than in the main thread they stay as they are.

        A SIGHUP that is ignored stays ignored: that is what `nohup` is for.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        taken = set(_EXIT_CODES)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            taken.remove(signal.SIGHUP)
        before = {number: signal.signal(number, self._receive) for number in taken}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.pending is not None and number == signal.SIGINT and not self.is_distributed:
            raise KeyboardInterrupt
        first = self.pending is None
        self.pending = number if first else self.pending
        if self.depth == 0 and first:
            raise Interrupted(number, self.begun)

    def leave(self) -> None:
        """Raise `Interrupted` now: this process, or another of the same run, was asked to end."""
        raise Interrupted(self.pending or signal.SIGTERM, self.begun)

    @contextmanager
    def protected(self) -> Iterator[None]:
        """A block that a first signal does not break: what it changes belongs together."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
        if self.pending is not None and self.depth == 0:
            raise Interrupted(self.pending, self.begun)

    @contextmanager
    def protected_to_the_end(self) -> Iterator[None]:
        """Like `protected`, for a block that runs because a signal arrived: it does not raise it again."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
