"""Options of one translation call, and the keys of `DecodingConfig` that can be replaced when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from mtkit.config.choices import PRECISIONS, Metric
from mtkit.errors import ConfigError, DataError
from mtkit.translation.reading import always_ready

LINES_AT_ONCE = 4096
"""Lines read before the first batch is made: they are sorted by length, and their translations come out together."""

MAX_WORKERS = 4
"""Batches that are searched at the same time on a CPU: the small operations of one fill the pauses of the others."""

OnError = Literal["stop", "skip", "copy"]
"""What is done about a line that cannot be translated."""
ON_ERROR: tuple[OnError, ...] = get_args(OnError)


def _ignore_fault(number: int, fault: DataError) -> None:
    """Do nothing: `Translation.fault` has it too."""


def ignore_progress(num_lines: int) -> None:
    """Do not report progress."""


@dataclass(frozen=True)
class TranslateOptions:
    """How the lines of one call are read, and what comes with their translations.

    Args:
        split_sentences: whether every line is split at sentence ends, or none that the model can hold; None: those that
            are longer than almost all that the model was trained on, for it would leave sentences out.
        max_line_tokens: a longer line is not translated (see `on_error`); None: any length. The time that a line takes
            is proportional to its length, so this bounds it.
        keep_links: give every translation its word links; without it only requests that want them have them.
        keep_attention: give the best translation of each line its attention.
        read_ahead: lines read before they are translated together.
        is_ready: asked after each line whether the next one, or the end, can be read within so many seconds; if not,
            the lines read so far are translated.
        first_line: number of the first line, from 0: messages and the random numbers of samples go by it.
        on_error: what a line that cannot be translated does: `stop` raises its fault, `skip` leaves its translation
            empty, `copy` gives the line itself.
        on_fault: told the number of such a line, from 0, and what is wrong with it, unless that is raised.
        on_progress: told after each batch how many more lines are translated.
        num_workers: batches that may be searched at the same time on a CPU.
    """

    split_sentences: bool | None = None
    max_line_tokens: int | None = None
    keep_links: bool = False
    keep_attention: bool = False
    read_ahead: int = LINES_AT_ONCE
    is_ready: Callable[[float], bool] = always_ready
    first_line: int = 0
    on_error: OnError = "stop"
    on_fault: Callable[[int, DataError], None] = _ignore_fault
    on_progress: Callable[[int], None] = ignore_progress
    num_workers: int = MAX_WORKERS


DEFAULT_OPTIONS = TranslateOptions()


class DecodingOverrides(TypedDict, total=False):
    """Keys of `DecodingConfig`, where they are described: those that are given replace the run's own."""

    beam_size: int
    length_penalty: float
    penalty_kind: Literal["gnmt", "simple"]
    coverage_penalty: float
    n_best: int
    stop: Literal["finished", "unbeaten", "certain"]
    max_length_ratio: float
    max_length_extra: int
    min_pieces: int
    no_repeat_ngram: int
    suppress: Sequence[str]
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
    batch_tokens: int


def check_precision(name: str, where: str = "precision") -> None:
    """Check that a model can translate in it. Raises: ConfigError: at `where`."""
    if name not in PRECISIONS:
        hint = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        raise ConfigError(f"{name!r} is no precision", where=where, hint=hint)


def refuse_text(lines: object, name: str) -> None:
    """Check that lines are not one text, whose letters would be taken for lines. Raises: TypeError."""
    if isinstance(lines, str | bytes):
        raise TypeError(f"{name} is one text, not lines of text: put it in a list, [text]")
