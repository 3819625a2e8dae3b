"""Translates lines, in order, in three stages: segment, search, assemble.

`segments` splits lines into segments, an engine (such as `batched_search`) finds hypotheses of each segment, and
`assembly` makes the translations of the lines from them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from mtkit.config.sections import DecodingConfig
from mtkit.data.tokenizer import Tokenizers
from mtkit.translation.assembly import Assembler, Translation
from mtkit.translation.engine import Engine, Search
from mtkit.translation.options import DEFAULT_OPTIONS, TranslateOptions, reject_single_text
from mtkit.translation.placeholders import ProtectedLine, protect, restore_placeholders, unknown_spans
from mtkit.translation.reading import read_chunks
from mtkit.translation.segments import Request, Segment, SegmentedLine, Segmenter


class LineTranslator:
    """An engine with the tokenizers of its model.

    Args:
        engine: searches segments.
        tokenizers: the tokenizers of both sides.
        decoding: beam, penalties, limits.
        max_source_tokens: longer lines are split at sentence ends, longer sentences are cut (see `sentence_splitting`);
            their translations are joined.
        usual_src_tokens: lines of several sentences that are longer than this are translated sentence by sentence;
            None for `max_source_tokens`.
        tgt: code of the target language, if it is known: constraints depend on whether it has spaces between words.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizers: Tokenizers,
        decoding: DecodingConfig,
        max_source_tokens: int = 256,
        usual_src_tokens: int | None = None,
        tgt: str | None = None,
    ) -> None:
        self.engine, self.tokenizers, self.decoding = engine, tokenizers, decoding
        self.max_source_tokens, self.search_options = max_source_tokens, engine.options
        self.segmenter = Segmenter(
            tokenizers, decoding, self.search_options.suppressed, max_source_tokens, usual_src_tokens, tgt
        )
        self.assembler = Assembler(engine, tokenizers.tgt)

    def translate_one(self, line: str | Request, options: TranslateOptions = DEFAULT_OPTIONS) -> Translation:
        """Return the best translation of one line.

        Raises:
            DataError: If the line cannot be translated (see `translate_n_best`).
        """
        return next(self.translate([line], options))

    def translate(
        self, lines: Iterable[str | Request], options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Iterator[Translation]:
        """Yield the best translation of each line, in order. `options.read_ahead` lines are read ahead.

        Raises:
            DataError: If a line cannot be translated (see `translate_n_best`).
        """
        return (translations[0] for translations in self.translate_n_best(lines, options))

    def translate_n_best(
        self, lines: Iterable[str | Request], options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Iterator[list[Translation]]:
        """Yield the `n_best` translations of each line, best first; samples in the order they were drawn.

        Lines are counted from `options.first_line` in every call, so the same call gives the same samples.

        Raises:
            DataError: If a line cannot be translated, for example because its prefix or constraints cannot be met;
                after the translations of the lines before it. With `options.on_error` "skip" or "copy" only if the
                lines cannot be read further.
        """
        reject_single_text(lines, "lines")
        return self._translate_chunks(lines, options)

    def _translate_chunks(
        self, lines: Iterable[str | Request], options: TranslateOptions
    ) -> Iterator[list[Translation]]:
        """Translate the lines that are read ahead together, chunk by chunk.

        Further chunks are read while workers search the first, if their lines need not be waited for.
        """
        first = options.first_line
        chunks = read_chunks(lines, options.read_ahead, options.is_ready)
        searches: deque[tuple[list[SegmentedLine], Search]] = deque()
        fault: Exception | None = None
        while True:
            try:
                chunk = next(chunks, None)
            except Exception as error:  # after what was read before
                chunk, fault = None, error
            if chunk is not None:
                segmented = self.segmenter.segment_lines(list(map(Request.of, chunk)), first, options)
                segments = [segment for line in segmented for segment in line.segments]
                progress = _LineCounter(segmented, options.on_progress)
                search = self.engine.start_search(segments, progress, options.parallelism)
                searches.append((segmented, search))
                first += len(chunk)
            is_full = chunk is not None and len(chunk) == options.read_ahead
            while searches:
                if is_full and searches[0][1].wants_more() and options.is_ready(0.0):
                    break
                segmented, search = searches.popleft()
                yield from self.assembler.assemble(segmented, search.finish(), options)
            if chunk is None:
                break
        if fault is not None:
            raise fault

    def translate_protected(
        self, lines: Iterable[str | Request], options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Iterator[list[Translation]]:
        """Yield the same as `translate_n_best`, with numbers, URLs, tags and unknown words carried over.

        Placeholders are taken out of the lines and put back into their translations (see `placeholders`). Links are
        between the words of the original lines and of the restored translations. A prefix with placeholders stays as
        it is: those of the line that it has already are not put back, the others come after it.

        Raises:
            DataError: If a line cannot be translated (see `translate_n_best`).
        """
        waiting: deque[tuple[ProtectedLine, str]] = deque()

        def without_placeholders() -> Iterator[Request]:
            for request in map(Request.of, lines):
                text = request.text
                line = protect(text, unknown_spans(self.tokenizers, text), num_kept=len(self._tag_of(text)))
                waiting.append((line, request.prefix))
                links = request.links or bool(line.placeholders)  # links tell where the placeholders go
                yield replace(request, text=line.text, keep_numbers=True, links=links)

        for translations in self.translate_n_best(without_placeholders(), options):
            line, prefix = waiting.popleft()
            fault = translations[0].fault
            if fault is None:
                yield [restore_placeholders(line, translation, prefix) for translation in translations]
            else:
                yield [Translation.failed(line.original, fault, options.on_error)]

    def _tag_of(self, text: str) -> str:
        """Return the target-language tag that a line begins with, which is no markup; empty if there is none."""
        first = re.match(r"<[^>]*>", text)
        if first and self.tokenizers.src.is_single_piece(first[0]) and f"</{first[0][1:]}" not in text:
            return first[0]
        return ""


class _LineCounter:
    """Reports lines as done when their last segment has been searched; lines without segments at once.

    Args:
        lines: the lines.
        report: called with the number of further lines that are done.
    """

    def __init__(self, lines: Sequence[SegmentedLine], report: Callable[[int], None]) -> None:
        self.num_left = {line.number: len(line.segments) for line in lines}
        self.report = report
        if num_empty := sum(not line.segments for line in lines):
            report(num_empty)

    def __call__(self, searched: Sequence[Segment]) -> None:
        """Count segments that were searched."""
        num_done = 0
        for segment in searched:
            self.num_left[segment.line_number] -= 1
            num_done += self.num_left[segment.line_number] == 0
        if num_done:
            self.report(num_done)
