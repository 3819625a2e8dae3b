"""SIGINT, SIGTERM and SIGHUP during training: finish the current operation, save, and exit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_EXIT_CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupted(BaseException):
    """A signal asked the run to stop. Not an error: only the trainer and the command line may catch it.

    Attributes:
        exit_code: exit code of the process.
        saved: whether training had started, so that there was something to save.
        stage: name of the stage of a pipeline that was running, if there was one.
    """

    def __init__(self, number: int, saved: bool = True, stage: str | None = None) -> None:
        super().__init__(number)
        self.exit_code = _EXIT_CODES[signal.Signals(number)]
        self.saved = saved
        self.stage = stage


class Signals:
    """Signal handlers that raise `Interrupted`, either at once or at the end of a `deferred` block.

    A second Ctrl-C raises KeyboardInterrupt immediately, even inside a deferred block.

    Attributes:
        pending: the first signal received, if any.
        is_distributed: whether other processes train too. Then a second Ctrl-C is ignored, because the launcher may
            forward the one that the terminal has already sent to every process.
        training_started: whether there is something to save; copied to `Interrupted.saved`.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self.is_distributed = False
        self.training_started = False
        self._num_deferred = 0

    @contextmanager
    def installed(self) -> Iterator[Signals]:
        """Handle SIGINT, SIGTERM and SIGHUP inside the block. Does nothing outside the main thread.

        A SIGHUP that is already ignored stays ignored, as `nohup` intends.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = set(_EXIT_CODES)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            numbers.remove(signal.SIGHUP)
        previous = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.pending is not None:
            if number == signal.SIGINT and not self.is_distributed:
                raise KeyboardInterrupt
            return
        self.pending = number
        if self._num_deferred == 0:
            self.raise_interrupted()

    def raise_interrupted(self) -> None:
        """Raise `Interrupted`, as SIGTERM if the signal went to another process of the run.

        Raises:
            Interrupted: Always.
        """
        raise Interrupted(self.pending or signal.SIGTERM, self.training_started)

    @contextmanager
    def deferred(self, *, raise_after: bool = True) -> Iterator[None]:
        """Defer a signal to the end of the block, whose changes must not be torn apart. Blocks may be nested.

        Args:
            raise_after: whether a pending signal raises at the end of the outermost block. False for a block that
                runs because a signal has already been raised.

        Raises:
            Interrupted: If a signal is pending at the end.
        """
        self._num_deferred += 1
        try:
            yield
        finally:
            self._num_deferred -= 1
        if raise_after and self.pending is not None and self._num_deferred == 0:
            self.raise_interrupted()
