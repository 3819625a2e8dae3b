"""What is to be translated, and from it the parts that are searched: lines cut where they are long, with their demands.

A `Request` is text; a `Part` is pieces, with what a hypothesis of it must be like.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mtkit.config import DecodingConfig
from mtkit.data.batching import Ids
from mtkit.data.tokenizer import Tokenizers
from mtkit.decoding.constraints import Constraint
from mtkit.decoding.longtext import WORD_START, cut_place, split_sentences
from mtkit.errors import DataError


@dataclass(frozen=True)
class Request:
    """A line to translate, and what its translation must be like.

    Args:
        text: the line.
        prefix: how the translation begins.
        constraints: words or phrases that must appear in it; of each tuple at least one.
        kept: texts of the line that must appear in it too, each in the translation of the part where it stands; where
            the search leaves one out, the part is searched again with all of them as constraints.
    """

    text: str
    prefix: str = ""
    constraints: tuple[tuple[str, ...], ...] = ()
    kept: tuple[str, ...] = ()

    @classmethod
    def of(cls, line: str | Request) -> Request:
        """A line without demands, or what is a request already."""
        return cls(line) if isinstance(line, str) else line


@dataclass(frozen=True)
class Part:
    """Pieces that are translated as one: a line, or a part of a long one."""

    ids: Ids
    max_length: int  # of a hypothesis, eos included
    number: int  # of the line, for the random numbers of samples
    prefix: tuple[int, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    kept: tuple[str, ...] = ()  # texts that become constraints if the search left them out


class Cutter:
    """Makes parts of requests.

    Args:
        tokenizers: of both sides.
        decoding: limits, and whether there is a search that constraints could steer.
        suppressed: target pieces that never appear.
        max_source_pieces: longer lines are split at sentence ends, longer sentences are cut (see `longtext`).
    """

    def __init__(
        self,
        tokenizers: Tokenizers,
        decoding: DecodingConfig,
        suppressed: Sequence[int],
        max_source_pieces: int,
    ) -> None:
        self.tokenizers, self.decoding = tokenizers, decoding
        self.suppressed = frozenset(suppressed)
        self.max_source_pieces = max_source_pieces

    def parts(self, requests: Sequence[Request], first: int, split: bool = False) -> Iterator[list[Part]]:
        """The parts of each request; none of an empty line.

        Args:
            first: number of the first line, from 0.
            split: every line at its sentence ends, not only the long ones.

        Raises:
            DataError: a prefix or constraints that cannot be met; at the line's number.
        """
        texts = [request.text for request in requests]
        encoded = self.tokenizers.src.encode(texts)
        for number, (request, ids) in enumerate(zip(requests, encoded, strict=True), first):
            yield self._demand(request, self._cut_line(request.text, ids, split), number)

    def single(self, request: Request, number: int, split: bool = False) -> Part | None:
        """The part of a line that must be one sentence, with its prefix alone; None of an empty line.

        Raises:
            DataError: it is not; its prefix is too long.
        """
        [parts] = self.parts([Request(request.text)], number, split)
        if len(parts) > 1:
            what = "a line with alternatives must be one sentence"
            raise DataError(what, where=f"line {number + 1}", hint="split the line")
        if not parts:
            return None
        [part] = self._demand(replace(request, constraints=(), kept=()), [parts[0].ids], number)
        return part

    def keeping(self, part: Part) -> Part:
        """A part with its kept texts as further constraints, as far as they can be written."""
        phrases = [tuple(ids.tolist()) for ids in self.tokenizers.tgt.encode(part.kept)]
        kept = [
            Constraint((phrase,), self.followers)
            for phrase in phrases
            if phrase and not self.suppressed & set(phrase)
        ]
        constraints = (*part.constraints, *kept)
        needed = num_needed(part.prefix, constraints)
        return replace(part, constraints=constraints, max_length=max(part.max_length, 2 * needed))

    @cached_property
    def followers(self) -> frozenset[int]:
        """Target pieces that do not lengthen the word before them: they begin a word, or with a punctuation mark."""
        tgt = self.tokenizers.tgt
        return frozenset(i for i in range(tgt.num_pieces) if tgt.piece(i)[0] in f'{WORD_START}.;!?)]}}…"”»')

    def _demand(self, request: Request, line_parts: list[Ids], number: int) -> list[Part]:
        """The parts of a line with its prefix (on the first) and its constraints. Raises: DataError: impossible."""
        limits = [self.decoding.max_length(len(ids)) for ids in line_parts]
        parts = [Part(ids, limit, number) for ids, limit in zip(line_parts, limits, strict=True)]
        where = f"line {number + 1}"
        if request.kept:
            texts = self.tokenizers.src.decode(line_parts)
            parts = [
                replace(part, kept=tuple(kept for kept in request.kept if kept in text))
                for part, text in zip(parts, texts, strict=True)
            ]
        if not request.prefix and not request.constraints:
            return parts
        if len(parts) != 1:
            what = "a line with a prefix or constraints must be one sentence that is not empty"
            raise DataError(what, where=where, hint="give one sentence a line, without --split-sentences")
        (part,) = parts
        prefix = tuple(self.tokenizers.tgt.encode([request.prefix])[0].tolist())
        constraints = tuple(self._constraint(words, where) for words in request.constraints)
        needed = num_needed(prefix, constraints)
        if self.decoding.sample and constraints:
            raise DataError("constraints need a search, not samples", where=where, hint="leave out --sample")
        if needed > part.max_length:
            what = (
                f"its prefix and constraints have {needed:,} pieces, but at most {part.max_length:,} may come"
            )
            raise DataError(what, where=where, hint="raise --max-length-ratio")
        return [replace(part, prefix=prefix, constraints=constraints)]

    def _constraint(self, words: Sequence[str], where: str) -> Constraint:
        """One of these phrases, as pieces. Raises: DataError: it cannot be written in pieces that may appear."""
        phrases = [tuple(ids.tolist()) for ids in self.tokenizers.tgt.encode(list(words))]
        possible = [phrase for phrase in phrases if phrase and not self.suppressed & set(phrase)]
        if not possible:
            what = f"the constraint {' | '.join(words)!r} cannot be met: the vocabulary lacks its characters"
            raise DataError(what, where=where, hint="leave it out")
        return Constraint(tuple(possible))

    def _cut_line(self, line: str, ids: Ids, split: bool) -> list[Ids]:
        """The parts of a line: itself, or its sentences, and of too long ones their parts; none for an empty line."""
        if len(ids) <= self.max_source_pieces and not split:
            return [ids] if len(ids) else []
        sentences = split_sentences(line)
        return [
            part
            for text, own in zip(sentences, self.tokenizers.src.encode(sentences), strict=True)
            for part in self._cut(text, own)
        ]

    def _cut(self, sentence: str, ids: Ids) -> list[Ids]:
        """Parts of at most `max_source_pieces`; none for an empty sentence."""
        limit = self.max_source_pieces
        if len(ids) <= limit:
            return [ids] if len(ids) else []
        pieces, parts, start = self.tokenizers.src.pieces(sentence), [], 0
        while len(ids) - start > limit:
            end = start + cut_place(pieces[start : start + limit])
            parts.append(ids[start:end])
            start = end
        return [*parts, ids[start:]]


def num_needed(prefix: Sequence[int], constraints: Sequence[Constraint]) -> int:
    """The fewest pieces of a hypothesis that begins so and meets these, eos included."""
    return len(prefix) + sum(constraint.num_pieces for constraint in constraints) + 1
