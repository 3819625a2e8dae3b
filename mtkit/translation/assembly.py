"""Hypotheses in, translations out: those of the parts of a line are joined, and aligned where that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mtkit.errors import DataError
from mtkit.search.state import Hypothesis
from mtkit.translation.alignment import Link, Pairs, SegmentAttention, align, word_pairs
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.options import OnError
from mtkit.translation.segments import Segment, place_of
from mtkit.translation.sentence_splitting import join_translations

Source = tuple[list[int], SegmentAttention | None]
"""For each piece of a hypothesis the source piece that it came from; and the attention, if it is kept."""


@dataclass(frozen=True)
class Translation:
    """A translation of a line."""

    text: str
    score: float
    """What hypotheses are ranked by; 0 for an empty line, the mean over the parts of a cut line."""
    links: Pairs = ()
    """Pairs of a word of the line and a word of the text, from 0, if they were asked for."""
    aligned: tuple[SegmentAttention, ...] = ()
    """Of the best translation, each part with its attention, if the translator keeps attention."""
    char_links: tuple[Link, ...] = ()
    """What `links` were read off: characters of the line and of the text."""
    fault: DataError | None = None
    """Why the line was not translated; the text is then empty, or the line itself."""

    @classmethod
    def none_of(cls, line: str, fault: DataError, on_error: OnError) -> Translation:
        """What stands for the translation of a line that has none. Raises: DataError: on_error is stop."""
        if on_error == "stop":
            raise fault
        return cls(line if on_error == "copy" else "", 0.0, fault=fault)


@dataclass(frozen=True)
class SearchedLine:
    """The parts of a line, and what was found for each.

    Attributes:
        hypotheses: of each part, best first; of a part that has no translation none.
        links: whether word links are wanted of its translations.
        text: the line.
        unread: why there are no parts, if something is wrong with the line.
    """

    parts: list[Segment]
    hypotheses: list[list[Hypothesis]]
    links: bool = False
    text: str = ""
    unread: DataError | None = None

    def num_aligned(self, keep_attention: bool) -> int:
        """Translations that are aligned: all if links are wanted; the best for its attention; none."""
        num_translations = min(map(len, self.hypotheses), default=0)  # as many as every part has
        return num_translations if self.links else min(num_translations, int(keep_attention))

    def fault(self) -> DataError | None:
        """Why the line has no translation, if a part of it has none."""
        if self.unread is not None:
            return self.unread
        for part, hypotheses in zip(self.parts, self.hypotheses, strict=True):
            if hypotheses:
                continue
            where = place_of(part.number)
            if part.constraints:
                hint = "a wider beam (decoding.beam_size)"
                return DataError("no translation meets all constraints", where=where, hint=hint)
            hint = "a milder length penalty or temperature"
            return DataError("no translation has a score that is a number", where=where, hint=hint)
        return None


class Assembler:
    """Makes translations of what was found.

    Args:
        ensemble: the models, the first of which aligns.
        batch_tokens: pieces of a batch that is aligned.
    """

    def __init__(self, ensemble: Ensemble, batch_tokens: int) -> None:
        self.ensemble, self.batch_tokens = ensemble, batch_tokens

    def join(self, lines: Sequence[SearchedLine], keep_attention: bool) -> Iterator[list[Translation]]:
        """The translations of each line, best first; of an empty line, and of one with a fault, one that is empty.

        Args:
            keep_attention: give the best ones their attention; that of all these lines is held at the same time.
        """
        aligned = iter(self._align(lines, keep_attention))
        for line in lines:
            fault = line.fault()
            if fault is not None or not line.parts:
                yield [Translation("", 0.0, fault=fault)]
                continue
            translations = []
            for rank, hypotheses in enumerate(zip(*line.hypotheses, strict=False)):
                of_rank = len(line.parts) if rank < line.num_aligned(keep_attention) else 0
                translations.append(self._joined(line, hypotheses, list(islice(aligned, of_rank))))
            yield translations

    def _joined(
        self, line: SearchedLine, hypotheses: Sequence[Hypothesis], sources: Sequence[Source]
    ) -> Translation:
        """One translation of hypotheses of the parts: best with best, second with second."""
        tgt = self.ensemble.tokenizers.tgt
        matched = list(zip(line.parts, hypotheses, strict=True))
        texts = [part.text(tgt, hypothesis.ids) for part, hypothesis in matched]
        text, starts = join_translations(texts, [part.boundary for part in line.parts])
        score = sum(hypothesis.score for hypothesis in hypotheses) / len(hypotheses)
        matrices = tuple(matrix for _, matrix in sources if matrix is not None)
        if not line.links:
            return Translation(text, score, aligned=matrices)
        links: list[Link] = []
        for (part, hypothesis), (places, _), start in zip(matched, sources, starts, strict=True):
            links += part.links(places, part.surfaces(tgt, hypothesis.ids), start)
        return Translation(text, score, word_pairs(links, line.text, text), matrices, tuple(links))

    def _align(self, lines: Sequence[SearchedLine], keep_attention: bool) -> list[Source]:
        """Of each line, of each rank, of each part where its pieces came from."""
        ranks, pairs = [], []
        for line in lines:
            for rank in range(line.num_aligned(keep_attention)):
                ranks += [rank] * len(line.parts)
                pairs += [
                    (part.ids, np.array(hypotheses[rank].ids, dtype=np.int32))
                    for part, hypotheses in zip(line.parts, line.hypotheses, strict=True)
                ]
        found: dict[int, Source] = {}
        for i, aligned in align(self.ensemble, pairs, self.batch_tokens):
            found[i] = aligned.best(), aligned if keep_attention and ranks[i] == 0 else None
        return [found[i] for i in range(len(pairs))]
