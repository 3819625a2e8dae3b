"""Pairs of lines and their machine translations, in constant memory, resumable, and the same bytes either way.

Lines are translated in chunks of a fixed number, so that a job that was stopped makes the same batches as one that was
not. Noise and samples depend on the number of the line, not on what was translated with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, tee
from typing import Literal

from mtkit.data.readers import as_cell
from mtkit.pipelines.noise import Noise
from mtkit.pipelines.resumable_file import ResumableFile
from mtkit.pipelines.translation_filter import KEPT, TranslationFilter
from mtkit.translation.line_translator import LineTranslator
from mtkit.translation.options import PARALLEL, Parallelism, TranslateOptions
from mtkit.translation.segments import Request

CHUNK_LINES = 2048
"""Lines of a chunk, which are translated and written together; a job that is stopped loses at most these."""

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
    given, read = tee(islice(requests, output.num_lines, None))
    options = TranslateOptions(
        read_ahead=CHUNK_LINES,
        first_line=output.num_lines,
        on_error="skip",
        on_progress=on_progress,
        parallelism=parallelism,
    )
    translations = translator.translate(given, options)
    while found := list(islice(translations, CHUNK_LINES)):
        first = output.num_lines
        lines = [request.text for request in islice(read, len(found))]
        texts = [translation.text for translation in found]
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
        output.append("".join(written), len(found), counts)
    output.finish()
