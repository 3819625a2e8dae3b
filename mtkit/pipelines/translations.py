"""Pairs of lines and their machine translations, in constant memory, resumable, and the same bytes either way.

Lines are translated in pieces of a fixed number, so that a job that was stopped makes the same batches as one that was
not. Noise and samples depend on the number of the line, not on what was translated with it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

from mtkit.formatting import format_duration
from mtkit.pipelines.noise import Noise
from mtkit.pipelines.resumable_file import ResumableFile
from mtkit.pipelines.translation_filter import KEPT, TranslationFilter
from mtkit.translation.line_translator import LineTranslator
from mtkit.translation.options import PARALLEL, Parallelism, TranslateOptions
from mtkit.translation.segments import Request

PIECE = 2048
"""Lines that are translated and written together; a job that is stopped loses at most these."""
_PROGRESS_SECONDS = 10.0

Side = Literal["src", "tgt"]
"""The side of a pair that the machine wrote."""


def write_pairs(
    output: ResumableFile,
    requests: Iterator[Request],
    translator: LineTranslator,
    translation_filter: TranslationFilter,
    machine_side: Side,
    noise: Noise | None = None,
    on_progress: Callable[[int], None] = lambda num_lines: None,
    parallelism: Parallelism = PARALLEL,
) -> None:
    """Translate lines and write them with their translations as source, tab, target; go on where a job was stopped.

    Lines that cannot be translated, and translations that the filter leaves out, are counted in `output.counts`.

    Args:
        output: the file, whose lines that are done are skipped.
        requests: all lines of the input, from the first.
        translator: translates them.
        translation_filter: chooses the pairs to keep.
        machine_side: side of the translation in a pair.
        noise: noise on the translations, after the filter.
        on_progress: called with the number of further lines that are translated.
        parallelism: see `TranslateOptions`.

    Raises:
        DataError: If the input cannot be read; what was translated before is kept.
        StorageError: If the output cannot be written.
    """
    for _ in islice(requests, output.num_lines):
        pass
    read: deque[Request] = deque()

    def noted() -> Iterator[Request]:
        for request in requests:
            read.append(request)
            yield request

    options = TranslateOptions(
        read_ahead=PIECE,
        first_line=output.num_lines,
        on_error="skip",
        on_progress=on_progress,
        parallelism=parallelism,
    )
    translations = translator.translate(noted(), options)
    while found := list(islice(translations, PIECE)):
        first = output.num_lines
        piece = [read.popleft() for _ in found]
        lines, texts = [request.text for request in piece], [translation.text for translation in found]
        reasons = translation_filter.reasons(lines, texts)
        counts: Counter[str] = Counter()
        written = []
        for number, (line, translation, reason) in enumerate(zip(lines, found, reasons, strict=True), first):
            reason = "not translated" if translation.fault is not None else reason
            counts[reason] += 1
            if reason == KEPT:
                text = noise.apply(translation.text, number) if noise is not None else translation.text
                src, tgt = (text, line) if machine_side == "src" else (line, text)
                written.append(f"{as_cell(src)}\t{as_cell(tgt)}\n")
        output.append("".join(written), len(piece), counts)
    output.finish()


def as_cell(text: str) -> str:
    """Return a text as a cell of tab-separated lines, which have no quoting."""
    return text.replace("\t", " ").replace("\r", " ").strip()


class LineProgress:
    """Says every few seconds how many lines are translated, how fast, and the time left.

    Args:
        say: prints a line.
        total: number of lines, if it is known.
        done: lines that were translated before.
    """

    def __init__(self, say: Callable[[str], None], total: int | None = None, done: int = 0) -> None:
        self._say, self._total, self._done, self._before = say, total, done, done
        self._start = self._reported = time.monotonic()

    def __call__(self, num_lines: int) -> None:
        """Count lines that were translated since the last call."""
        self._done += num_lines
        now = time.monotonic()
        if now - self._reported > _PROGRESS_SECONDS:
            self._reported = now
            speed = (self._done - self._before) / (now - self._start)
            of_total, left = "", ""
            if self._total is not None:
                of_total = f" of {self._total:,}"
                left = f", time left {format_duration((self._total - self._done) / max(speed, 1e-9))}"
            self._say(f"{self._done:,}{of_total} lines, {speed:,.0f} lines/s{left}")
