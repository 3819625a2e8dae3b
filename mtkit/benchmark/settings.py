"""The fastest setting of a system: workers, threads and batches, found in a short round before it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mtkit.formatting import format_count

_MIN_LINES = 256
"""Lines of the round that looks for the best setting: a batch of the largest size for each of two workers."""
_LINES_PER_CORE = 64
_BATCH_SIZES = (16, 32, 64, 128)
_FIRST_BATCH_SIZE = 32


@dataclass(frozen=True)
class Setting:
    """Workers, threads and batches of a system.

    Attributes:
        num_workers: batches that are translated at the same time.
        num_threads: threads of each worker.
        batch_size: sentences of a batch, or tokens; None where the system chooses.
        batch_type: what `batch_size` counts.
    """

    num_workers: int
    num_threads: int
    batch_size: int | None = None
    batch_type: str = "sentences"

    def __str__(self) -> str:
        """Return it as people say it: `2 workers x 1 thread, batches of 32 sentences`."""
        workers = format_count(self.num_workers, "worker")
        text = f"{workers} x {format_count(self.num_threads, 'thread')}"
        return (
            text if self.batch_size is None else f"{text}, batches of {self.batch_size:,} {self.batch_type}"
        )


@dataclass(frozen=True)
class Output:
    """Translations by one system."""

    hyps: list[str]
    num_over_limit: int = 0
    """Lines with a translation longer than mtkit allows (see `Speed`)."""


class System(Protocol):
    """A system in one setting, which translates from text to text."""

    def translate(self, lines: Sequence[str]) -> Output:
        """Translate lines."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Candidate:
    """A system whose best setting is to be found.

    Attributes:
        name: its name, such as `CTranslate2 int8`.
        make: makes it in a setting.
        token_batches: sizes of batches that are counted in tokens, if it has such batches.
    """

    name: str
    make: Callable[[Setting], System]
    token_batches: tuple[int, ...] = ()


def layouts(num_cores: int) -> Iterator[tuple[int, int]]:
    """Yield numbers of workers, and of threads of each, that use all cores: 1 x 4, 2 x 2 and 4 x 1 for four cores."""
    for num_workers in range(1, num_cores + 1):
        if num_cores % num_workers == 0:
            yield num_workers, num_cores // num_workers


def fastest_setting(candidate: Candidate, lines: Sequence[str], num_cores: int) -> Setting:
    """Return the setting in which a system translates some of the lines fastest.

    The workers are chosen first, with batches of medium size, then the batches.

    Args:
        candidate: the system.
        lines: lines of the benchmark.
        num_cores: cores to use.
    """
    number = max(_MIN_LINES, _LINES_PER_CORE * num_cores)
    sample = lines[:: max(1, len(lines) // number)][:number]
    first = [Setting(*layout, _FIRST_BATCH_SIZE) for layout in layouts(num_cores)]
    seconds = {setting: _seconds(candidate, setting, sample) for setting in first}
    best = min(seconds, key=seconds.__getitem__)
    more = [replace(best, batch_size=size) for size in _BATCH_SIZES if size != _FIRST_BATCH_SIZE]
    more += [replace(best, batch_size=size, batch_type="tokens") for size in candidate.token_batches]
    seconds |= {setting: _seconds(candidate, setting, sample) for setting in more}
    return min(seconds, key=seconds.__getitem__)


def _seconds(candidate: Candidate, setting: Setting, lines: Sequence[str]) -> float:
    """Return the time in which a system translates lines, after it has translated them once."""
    system = candidate.make(setting)
    try:
        system.translate(lines)
        start = time.perf_counter()
        system.translate(lines)
        return time.perf_counter() - start
    finally:
        system.close()
