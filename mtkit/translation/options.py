"""Options of one translation call, and the keys of `DecodingConfig` that can be replaced when a model is loaded."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, TypeVar, get_args

from mtkit.config.choices import PRECISIONS, Metric
from mtkit.errors import ConfigError, DataError
from mtkit.formatting import format_duration
from mtkit.translation.reading import always_ready

T = TypeVar("T")

LINES_AT_ONCE = 4096
"""Lines that are read before the first batch is made. They are sorted by length and finished together."""

_PROGRESS_SECONDS = 5.0
"""Least time between two lines of progress."""

OnError = Literal["stop", "skip", "copy"]
"""What happens to a line that cannot be translated."""
ON_ERROR: tuple[OnError, ...] = get_args(OnError)


def _warn_of_loss(message: str) -> None:
    """Warn that a worker has ended."""
    warnings.warn(message, RuntimeWarning, stacklevel=2)


@dataclass(frozen=True)
class Parallelism:
    """Number of batches that are computed at the same time on a CPU, and of threads for each.

    Several workers are processes, which share the weights; they start when there is enough for them to do. On systems
    without fork, in a process that has other threads, and for models of other engines, they are threads.

    Attributes:
        num_workers: workers; "auto" is as many as there are threads that PyTorch may use, divided by `num_threads`.
        num_threads: threads of each worker; by default, workers share those that PyTorch may use evenly.
        on_loss: called with a message for each worker that was killed. What it did is done again by another.
        beside_threads: whether workers are processes even if this process has other threads, because it is known that
            these do not hold a lock when one is started. That is also assumed if a number is given.
    """

    num_workers: int | Literal["auto"] = "auto"
    num_threads: int | None = None
    on_loss: Callable[[str], None] = _warn_of_loss
    beside_threads: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: If one is less than 1.
        """
        for name in ("num_workers", "num_threads"):
            value = getattr(self, name)
            if value not in ("auto", None) and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{value!r} is not a number from 1", where=name, hint="leave it out")


PARALLEL = Parallelism()
"""Workers, as many as PyTorch may use threads."""
SERIAL = Parallelism(num_workers=1)
"""One batch after the other."""


def _ignore_fault(number: int, fault: DataError) -> None:
    """Ignore the fault: `Translation.fault` holds it too."""


def ignore_progress(num_lines: int) -> None:
    """Ignore progress."""


class LineProgress:
    """Says every few seconds how many lines are done, how fast, and the time left.

    Args:
        say: prints a line.
        total: number of lines, if it is known.
        done: lines that were done before.
        task: what is done with them, if it is not clear.
    """

    def __init__(
        self, say: Callable[[str], None], total: int | None = None, done: int = 0, task: str = ""
    ) -> None:
        self._say, self._total, self._done, self._before = say, total, done, done
        self._task = f"{task}: " if task else ""
        self._start = self._reported = time.monotonic()

    def __call__(self, num_lines: int) -> None:
        """Count lines that were done since the last call."""
        self._done += num_lines
        now = time.monotonic()
        if now - self._reported > _PROGRESS_SECONDS:
            self._reported = now
            speed = (self._done - self._before) / (now - self._start)
            of_total, left = "", ""
            if self._total is not None:
                of_total = f" of {self._total:,}"
                left = f", time left {format_duration((self._total - self._done) / max(speed, 1e-9))}"
            self._say(f"{self._task}{self._done:,}{of_total} lines, {speed:,.0f} lines/s{left}")

    def over(self, lines: Iterable[T]) -> Iterator[T]:
        """Yield lines and count them, in hundreds."""
        for number, line in enumerate(lines, 1):
            yield line
            if number % 100 == 0:
                self(100)


@dataclass(frozen=True)
class TranslateOptions:
    """Options of one call: how lines are read and split, and what their translations come with.

    Attributes:
        split_sentences: whether lines are split at sentence ends: all of them (True), only those that the model cannot
            hold (False), or those that are longer than almost all lines of the training data (None), because the model
            would leave sentences of them out.
        max_line_tokens: longer lines are not translated (see `on_error`); None for no limit. The time that a line
            takes is proportional to its length, so this bounds it.
        keep_links: whether all translations get word links; otherwise only those whose `Request` asks for them.
        keep_attention: whether the best translation of each line gets its attention.
        keep_log_probs: whether translations get the log-probabilities of their tokens (see `confidence`); samples, and
            those of exported models, have none.
        read_ahead: lines that are read and translated together; several times as many are read if there is enough input
            to keep all workers busy.
        is_ready: called after each line with a number of seconds; returns whether the next line, or the end, can be
            read within that time. If not, the lines read so far are translated.
        first_line: number of the first line, from 0; messages and samples depend on it.
        on_error: what happens to a line that cannot be translated: "stop" raises its fault, "skip" gives an empty
            translation, "copy" gives the line itself.
        on_fault: called with the number of such a line, from 0, and its fault, unless the fault is raised.
        on_progress: called after each batch with the number of further lines that are translated.
        parallelism: workers and threads on a CPU.
    """

    split_sentences: bool | None = None
    max_line_tokens: int | None = None
    keep_links: bool = False
    keep_attention: bool = False
    keep_log_probs: bool = False
    read_ahead: int = LINES_AT_ONCE
    is_ready: Callable[[float], bool] = always_ready
    first_line: int = 0
    on_error: OnError = "stop"
    on_fault: Callable[[int, DataError], None] = _ignore_fault
    on_progress: Callable[[int], None] = ignore_progress
    parallelism: Parallelism = PARALLEL

    def __post_init__(self) -> None:
        """Check `read_ahead` and `on_error`.

        Raises:
            ConfigError: If lines could not be read, or there is no such action.
        """
        if self.read_ahead < 1:
            raise ConfigError(
                f"{self.read_ahead} is not a number from 1", where="read_ahead", hint="leave it out"
            )
        if self.on_error not in ON_ERROR:
            raise ConfigError(f"unknown action {self.on_error!r}", where="on_error", hint=", ".join(ON_ERROR))


DEFAULT_OPTIONS = TranslateOptions()


class DecodingOverrides(TypedDict, total=False):
    """Keys of `DecodingConfig` (see there) that replace those of the run."""

    beam_size: int
    length_penalty: float
    penalty_kind: Literal["gnmt", "simple"]
    coverage_penalty: float
    n_best: int
    stop: Literal["finished", "unbeaten", "all_unbeaten", "certain"]
    max_length_ratio: float
    max_length_extra: int
    min_pieces: int
    no_repeat_ngram: int
    avoid_loops: bool
    suppress: Sequence[str]
    renormalize: bool
    groups: int
    diversity: float
    sample: bool
    temperature: float
    top_k: int
    top_p: float
    epsilon: float
    sample_seed: int
    mbr: Metric | None
    mbr_candidates: int
    shortlist: bool
    truecase: bool
    batch_tokens: int


def check_precision(name: str, where: str = "precision") -> None:
    """Check that a precision exists.

    Raises:
        ConfigError: If it does not; at `where`.
    """
    if name not in PRECISIONS:
        hint = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        raise ConfigError(f"unknown precision {name!r}", where=where, hint=hint)


def reject_single_text(lines: object, name: str) -> None:
    """Check that lines are not a single text, whose characters would be taken for lines.

    Raises:
        TypeError: If they are.
    """
    if isinstance(lines, str | bytes):
        raise TypeError(f"{name} must be a list of lines, not a single text: write [text]")
