"""Makes translations of lines from the hypotheses of their segments, and aligns them if links are wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mtkit.data.alignments import WordLinks
from mtkit.data.batching import Ids
from mtkit.data.tokenizer import Tokenizer
from mtkit.errors import DataError
from mtkit.search.state import Hypothesis
from mtkit.translation.alignment import Link, SegmentAttention, word_links
from mtkit.translation.engine import Engine
from mtkit.translation.options import OnError, TranslateOptions
from mtkit.translation.segments import Segment, SegmentedLine, line_label
from mtkit.translation.sentence_splitting import join_translations

MAX_LINES_WITH_ATTENTION = 16
"""Lines whose attention is in memory at the same time: layers x target length x source length numbers for each."""

_Alignment = tuple[list[int], SegmentAttention | None]
"""Index of the source token of each token of a hypothesis, and the attention if it is kept."""


@dataclass(frozen=True)
class SegmentLogProbs:
    """Log-probabilities of the tokens of a segment's translation.

    Attributes:
        start: position of its first character in the translation of the line.
        lengths: number of characters that each token contributes to it.
        log_probs: natural log-probability of each token and of eos.
        num_src_tokens: tokens of the segment.
    """

    start: int
    lengths: tuple[int, ...]
    log_probs: tuple[float, ...]
    num_src_tokens: int


@dataclass(frozen=True)
class Translation:
    """A translation of a line.

    Attributes:
        text: the translation.
        score: what hypotheses are ranked by; the mean over the segments of a line, 0 for an empty line.
        links: index of a word of the line and of the word of the text that it is linked with, from 0, if links are
            wanted.
        aligned: attention of each segment, if it is kept; only the best translation of a line has it.
        char_links: the links between characters of the line and of the text that `links` were derived from.
        fault: the reason why the line was not translated; the text is then empty, or the line itself.
        log_probs: log-probabilities of each segment's tokens, if they are kept.
    """

    text: str
    score: float
    links: WordLinks = ()
    aligned: tuple[SegmentAttention, ...] = ()
    char_links: tuple[Link, ...] = ()
    fault: DataError | None = None
    log_probs: tuple[SegmentLogProbs, ...] = ()

    @classmethod
    def failed(cls, line: str, fault: DataError, on_error: OnError) -> Translation:
        """Return what takes the place of the translation of a line that has a fault.

        Raises:
            DataError: If `on_error` is "stop"; it is the fault.
        """
        if on_error == "stop":
            raise fault
        return cls(line if on_error == "copy" else "", 0.0, fault=fault)


class Assembler:
    """Makes the translations of lines from the hypotheses of their segments.

    Args:
        engine: aligns them.
        tgt: tokenizer of the translations.
    """

    def __init__(self, engine: Engine, tgt: Tokenizer) -> None:
        self.engine, self.tgt = engine, tgt

    def assemble(
        self, lines: Sequence[SegmentedLine], hyps: Sequence[list[Hypothesis]], options: TranslateOptions
    ) -> Iterator[list[Translation]]:
        """Yield the translations of each line, best first; for an empty line an empty one.

        Args:
            lines: the lines.
            hyps: hypotheses of each segment of all lines, best first.
            options: whether links and attention are wanted, and what is done about faults.

        Raises:
            DataError: If a line cannot be translated and `options.on_error` is "stop", after the lines before it.
        """
        rest = iter(hyps)
        of_lines = [list(islice(rest, len(line.segments))) for line in lines]
        size = MAX_LINES_WITH_ATTENTION if options.keep_attention else max(1, len(lines))
        for start in range(0, len(lines), size):
            group = slice(start, start + size)
            yield from self._assemble_group(lines[group], of_lines[group], options)

    def _assemble_group(
        self,
        lines: Sequence[SegmentedLine],
        hyps: Sequence[list[list[Hypothesis]]],
        options: TranslateOptions,
    ) -> Iterator[list[Translation]]:
        """Yield the translations of lines whose attention is in memory at the same time."""
        n_best = [list(zip(*of_segments, strict=False)) for of_segments in hyps]  # best with best, and so on
        alignments = self._align(lines, n_best, options)
        for line, ranked in zip(lines, n_best, strict=True):
            fault = line.fault
            if line.segments and not ranked:
                fault = _no_translation(line)
            if fault is not None:
                failed = Translation.failed(line.request.text, fault, options.on_error)
                options.on_fault(line.number, fault)
                yield [failed]
            elif not line.segments:
                yield [Translation("", 0.0)]
            else:
                yield [
                    self._join(line, of_rank, alignments[line.number, rank], options)
                    for rank, of_rank in enumerate(ranked)
                ]

    def _join(
        self,
        line: SegmentedLine,
        hyps: Sequence[Hypothesis],
        alignments: Sequence[_Alignment],
        options: TranslateOptions,
    ) -> Translation:
        """Return the translation that consists of these hypotheses, one of each segment."""
        tgt, segments = self.tgt, line.segments
        texts = [segment.decode(tgt, hyp.ids) for segment, hyp in zip(segments, hyps, strict=True)]
        text, starts = join_translations(texts, [segment.boundary for segment in segments])
        score = sum(hyp.score for hyp in hyps) / len(hyps)
        attention = tuple(matrix for _, matrix in alignments if matrix is not None)
        log_probs = self._log_probs(segments, hyps, starts) if options.keep_log_probs else ()
        if not _wants_links(line, options):
            return Translation(text, score, aligned=attention, log_probs=log_probs)
        links: list[Link] = []
        for segment, hyp, (sources, _), start in zip(segments, hyps, alignments, starts, strict=True):
            links += segment.char_links(sources, segment.token_texts(tgt, hyp.ids), start)
        words = word_links(links, line.request.text, text)
        return Translation(text, score, words, attention, tuple(links), log_probs=log_probs)

    def _log_probs(
        self, segments: Sequence[Segment], hyps: Sequence[Hypothesis], starts: Sequence[int]
    ) -> tuple[SegmentLogProbs, ...]:
        """Return the log-probabilities of the tokens of a translation, as far as the engine knows them."""
        return tuple(
            SegmentLogProbs(
                start,
                tuple(map(len, segment.token_texts(self.tgt, hyp.ids))),
                hyp.token_log_probs,
                len(segment.ids),
            )
            for segment, hyp, start in zip(segments, hyps, starts, strict=True)
            if hyp.token_log_probs
        )

    def _align(
        self,
        lines: Sequence[SegmentedLine],
        n_best: Sequence[list[tuple[Hypothesis, ...]]],
        options: TranslateOptions,
    ) -> defaultdict[tuple[int, int], list[_Alignment]]:
        """Align all translations of lines with links, and the best one of each line if attention is kept.

        Returns:
            For each line number and rank the alignments of the segments; for what is not aligned an empty list.
        """
        keys: list[tuple[int, int]] = []
        pairs: list[tuple[Ids, Ids]] = []
        for line, ranked in zip(lines, n_best, strict=True):
            number = len(ranked) if _wants_links(line, options) else int(options.keep_attention)
            for rank, hyps in enumerate(ranked[:number]):
                keys += [(line.number, rank)] * len(hyps)
                pairs += [
                    (segment.ids, np.array(hyp.ids, dtype=np.int32))
                    for segment, hyp in zip(line.segments, hyps, strict=True)
                ]
        found: list[_Alignment] = [([], None)] * len(pairs)
        for i, attention in self.engine.align(pairs, options.parallelism):
            is_kept = options.keep_attention and keys[i][1] == 0
            found[i] = attention.source_indices(), attention if is_kept else None
        alignments = defaultdict[tuple[int, int], list[_Alignment]](list)
        for key, alignment in zip(keys, found, strict=True):
            alignments[key].append(alignment)
        return alignments


def _wants_links(line: SegmentedLine, options: TranslateOptions) -> bool:
    return options.keep_links or line.request.links


def _no_translation(line: SegmentedLine) -> DataError:
    """Return the error for a line with a segment for which the search found no hypothesis."""
    what, hint = "no translation has a score that is a number", "a milder length penalty or temperature"
    if line.request.constraints:
        what, hint = "no translation meets all constraints", "a wider beam (decoding.beam_size)"
    return DataError(what, where=line_label(line.number), hint=hint)
