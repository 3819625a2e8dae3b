"""Inject disk faults into the calls that write files: a crash or an error at any of them."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CALLS = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
"""Functions of `os` that change a disk; the built-in `open` and its files' `write` come on top."""

Action = Callable[[str, int, str], None]
"""Called before each disk call with its name, its number from 1 and the path; may raise or end the process."""


class FaultyFile(io.BufferedWriter):
    """A file being written. A fault leaves half of the data."""

    def __init__(self, path: str, mode: str, hit: Callable[[str, str], None]) -> None:
        super().__init__(io.FileIO(path, mode))
        self.path, self.hit = path, hit

    def write(self, data: Any) -> int:
        try:
            self.hit("write", self.path)
        except BaseException:
            super().write(data[: len(data) // 2])
            self.flush()
            raise
        return super().write(data)


@contextlib.contextmanager
def at_each_call(action: Action) -> Iterator[list[tuple[str, str]]]:
    """Run `action` before every call that changes the disk within the block. Yields the list of calls."""
    calls: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in CALLS}
    real_open = builtins.open

    def hit(name: str, path: str) -> None:
        calls.append((name, path))
        action(name, len(calls), path)

    def counted(name: str) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
            hit(name, str(path))
            return real[name](target, *arguments, **options)

        return call

    def open_counted(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not isinstance(path, str | Path) or not set(mode) & set("wax"):
            return real_open(path, mode, *arguments, **options)
        hit("create", str(path))
        file = FaultyFile(str(path), mode.replace("b", ""), hit)
        return file if "b" in mode else io.TextIOWrapper(file, encoding=options.get("encoding"), newline="\n")

    for name in CALLS:
        setattr(os, name, counted(name))
    builtins.open = open_counted
    try:
        yield calls
    finally:
        builtins.open = real_open
        for name, function in real.items():
            setattr(os, name, function)


def dies_at(number: int) -> Action:
    """Return an action that ends the process at the call of this number, like a kill or a power failure."""

    def action(name: str, count: int, path: str) -> None:
        if count == number:
            os._exit(9)

    return action


def raises(error: Callable[[], BaseException], first: int, last: float) -> Action:
    """Return an action that makes the calls from `first` to `last` fail."""

    def action(name: str, count: int, path: str) -> None:
        if first <= count <= last:
            raise error()

    return action


def in_a_child(work: Callable[[], None]) -> int:
    """Run a function in a forked process and return its exit code: 0 if it returned, 1 if it raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
