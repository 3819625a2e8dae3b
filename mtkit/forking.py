"""Processes that are forked to compute beside the main process: starting, ending, and what they cost.

A fork starts in milliseconds, with the memory that is there already; what neither side writes to stays shared. It is
safest while the main process has no other thread, which might hold a lock that no one in the child opens.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def can_fork() -> bool:
    """Return whether processes can be forked here, and end with this one: on Linux, from the main thread."""
    return sys.platform.startswith("linux") and threading.current_thread() is threading.main_thread()


@dataclass(frozen=True)
class Child:
    """A forked process, as the main process sees it.

    Attributes:
        number: its number, from 1.
        process: its process id.
        connection: for messages to it and from it.
    """

    number: int
    process: int
    connection: Connection

    def describe_end(self) -> str:
        """Wait for its end, and return how it ended: `worker 1, process 123, was killed by SIGKILL`."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"worker {self.number}, process {self.process}, {how}"

    def kill(self) -> None:
        """End the process, if it has not ended yet. It has nothing that would be lost."""
        with suppress(OSError):  # it has been waited for
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        self.connection.close()

    def private_bytes(self) -> int:
        """Return the memory that no other process shares with this one; 0 if the system does not say."""
        with suppress(OSError), open(f"/proc/{self.process}/smaps_rollup", encoding="ascii") as file:
            rows = [line.split() for line in file if line.startswith("Private_")]
            return sum(1024 * int(row[1]) for row in rows)
        return 0


def fork_child(number: int, serve: Callable[[Connection], None]) -> Child:
    """Fork a process that serves this one until it ends, and return it.

    It ignores the signals of a terminal, ends with this process, however that ends, and has no open file but the
    standard ones and its connection.

    Args:
        number: number of the process, from 1.
        serve: the whole life of the process; EOFError or OSError from its connection ends it.
    """
    ours, theirs = multiprocessing.Pipe()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 for a process with threads
        process = os.fork()
    if process == 0:
        code = 1
        try:
            _settle_in(theirs.fileno(), parent)
            serve(theirs)
            code = 0
        except (EOFError, OSError):  # the main process is gone
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    return Child(number, process, ours)


def _settle_in(connection: int, parent: int) -> None:
    """Make a forked process end with its parent, ignore signals, and keep one file open beside the standard ones.

    Args:
        connection: the descriptor of its connection.
        parent: process id of the parent.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != connection:
            with suppress(OSError):
                os.close(descriptor)
    gc.freeze()  # a collection would touch, and so copy, the pages of all objects
