"""What is to be translated, and from it the parts that are searched: lines cut where they are long, with their demands.

A `Request` is text; a `Part` is pieces, with what a hypothesis of it must be like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mtkit.config import DecodingConfig
from mtkit.data.batching import Ids
from mtkit.data.tokenizer import WORD_START, Tokenizers
from mtkit.decoding.constraints import Constraint
from mtkit.decoding.longtext import UNSPACED, cut_place, split_sentences
from mtkit.errors import DataError
from mtkit.files import BadLine


@dataclass(frozen=True)
class Request:
    """A line to translate, and what its translation must be like.

    Args:
        text: the line.
        prefix: how the translation begins.
        constraints: words or phrases that must appear in it; of each tuple at least one.
        kept: texts of the line that must appear in it too, each in the translation of the part where it stands; where
            the search leaves one out, the part is searched again with all of them as constraints.
        links: whether its translations come with word links, whatever the translator does for others.
        fault: why there is nothing to translate, if the line or what goes with it could not be read.
    """

    text: str
    prefix: str = ""
    constraints: tuple[tuple[str, ...], ...] = ()
    kept: tuple[str, ...] = ()
    links: bool = False
    fault: DataError | None = None

    @classmethod
    def of(cls, line: str | Request) -> Request:
        """A line without demands, or what is a request already."""
        if not isinstance(line, str):
            return line
        return cls(line, fault=line.fault if isinstance(line, BadLine) else None)


@dataclass(frozen=True)
class Part:
    """Pieces that are translated as one: a line, or a part of a long one."""

    ids: Ids
    max_length: int  # of a hypothesis, eos included
    number: int  # of the line
    place: int = 0  # among the parts of the line
    prefix: tuple[int, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    kept: tuple[str, ...] = ()  # texts that become constraints if the search left them out

    @property
    def numbers(self) -> tuple[int, ...]:
        """What the random numbers of its samples depend on."""
        return (self.number, self.place) if self.place else (self.number,)


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
        for parts in self.parts_or_faults(requests, first, split):
            if isinstance(parts, DataError):
                raise parts
            yield parts

    def parts_or_faults(
        self, requests: Sequence[Request], first: int, split: bool = False
    ) -> Iterator[list[Part] | DataError]:
        """The same, with what `parts` would raise in the place of the line's parts."""
        texts = [request.text for request in requests]
        encoded = self.tokenizers.src.encode(texts)
        for number, (request, ids) in enumerate(zip(requests, encoded, strict=True), first):
            try:
                yield self._parts_of(request, ids, number, split)
            except DataError as fault:
                yield fault

    def single(self, request: Request, number: int, split: bool = False) -> Part | None:
        """The part of a line that must be one sentence, with its prefix alone; None of an empty line.

        Raises:
            DataError: it is not; its prefix is too long.
        """
        [parts] = self.parts([Request(request.text, fault=request.fault)], number, split)
        if not parts:
            return None
        if len(parts) > 1:
            raise self._several("alternatives", request.text, parts, split)
        return self._steer(parts[0], request.prefix, ())

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
        """Target pieces that do not lengthen the word or number before them: they begin a word, or with a mark.

        Words without spaces between them may begin at any of their characters. Commas and colons are not among the
        marks: 3 is another number than 3,500.
        """
        return self._beginning_with(f'{WORD_START}.;!?)]}}…"”»。！？；')

    @cached_property
    def word_ends(self) -> frozenset[int]:
        """Target pieces that end the word before them; commas and colons too, so that `Hund,` is no other word."""
        return self.followers | self._beginning_with(",:“，、：")

    def _beginning_with(self, characters: str) -> frozenset[int]:
        tgt, begins = self.tokenizers.tgt, re.compile(rf"[{re.escape(characters)}{UNSPACED}]")
        return frozenset(i for i in range(tgt.num_pieces) if begins.match(tgt.piece(i)))

    def _parts_of(self, request: Request, ids: Ids, number: int, split: bool) -> list[Part]:
        """The parts of one request, whose pieces these are. Raises: DataError."""
        if request.fault is not None:
            raise request.fault
        limit = self.decoding.max_length
        cut = self._cut_line(request.text, ids, split)
        parts = [Part(own, limit(len(own)), number, place) for place, own in enumerate(cut)]
        return self._demand(request, parts, number, split)

    def _demand(self, request: Request, parts: list[Part], number: int, split: bool) -> list[Part]:
        """The parts of a line with what is demanded of them. Raises: DataError: impossible."""
        if request.kept:
            texts = self.tokenizers.src.decode([part.ids for part in parts])
            parts = [
                replace(part, kept=tuple(kept for kept in request.kept if holds(text, kept)))
                for part, text in zip(parts, texts, strict=True)
            ]
        if not request.prefix and not request.constraints:
            return parts
        if not parts:
            hint = "leave theirs empty too"
            raise DataError("an empty line has no prefix or constraints", where=place_of(number), hint=hint)
        if len(parts) > 1:
            raise self._several("a prefix or constraints", request.text, parts, split)
        return [self._steer(parts[0], request.prefix, request.constraints)]

    def _several(self, what_it_has: str, text: str, parts: list[Part], split: bool) -> DataError:
        """Why a line that must be one part is several."""
        where, num_sentences = place_of(parts[0].number), len(split_sentences(text))
        if split and num_sentences > 1:
            what = f"a line with {what_it_has} must be one sentence, but this one has {num_sentences}"
            return DataError(what, where=where, hint="give one sentence a line, without --split-sentences")
        num_pieces, limit = sum(len(part.ids) for part in parts), self.max_source_pieces
        what = f"a line with {what_it_has} may have {limit:,} pieces, but this one has {num_pieces:,}"
        return DataError(what, where=where, hint="split the line")

    def _steer(self, part: Part, prefix: str, constraints: Sequence[Sequence[str]]) -> Part:
        """A part with a prefix and constraints. Raises: DataError: they cannot be met."""
        where = place_of(part.number)
        begun = tuple(self.tokenizers.tgt.encode([prefix])[0].tolist())
        wanted = tuple(self._constraint(words, where) for words in constraints)
        if self.decoding.sample and wanted:
            raise DataError("constraints need a search, not samples", where=where, hint="leave out --sample")
        if (needed := num_needed(begun, wanted)) > part.max_length:
            what = (
                f"its prefix and constraints have {needed:,} pieces, but at most {part.max_length:,} may come"
            )
            raise DataError(what, where=where, hint="raise --max-length-ratio")
        return replace(part, prefix=begun, constraints=wanted)

    def _constraint(self, words: Sequence[str], where: str) -> Constraint:
        """One of these phrases, as pieces. Raises: DataError: it cannot be written in pieces that may appear."""
        phrases = [tuple(ids.tolist()) for ids in self.tokenizers.tgt.encode(list(words))]
        possible = [phrase for phrase in phrases if phrase and not self.suppressed & set(phrase)]
        if not possible:
            reasons = dict.fromkeys(map(self._why_impossible, phrases))
            what = f"the constraint {' | '.join(words)!r} cannot be met: {', or '.join(reasons)}"
            raise DataError(what, where=where, hint="leave it out")
        return Constraint(tuple(possible))

    def _why_impossible(self, phrase: Sequence[int]) -> str:
        """Why a phrase cannot appear."""
        if not phrase:
            return "it has no pieces"
        if self.tokenizers.tgt.unk in phrase:
            return "the vocabulary lacks its characters"
        return "a piece of it is suppressed"

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


def place_of(number: int) -> str:
    """What messages call a line of this number, from 0."""
    return f"line {number + 1}"


def num_needed(prefix: Sequence[int], constraints: Sequence[Constraint]) -> int:
    """The fewest pieces of a hypothesis that begins so and meets these, eos included."""
    return len(prefix) + sum(constraint.num_pieces for constraint in constraints) + 1


def holds(text: str, kept: str) -> bool:
    """Whether a text holds another that is not a part of a longer word or number there."""
    within_word = rf"[^\W{UNSPACED}]"
    return re.search(rf"(?<!{within_word}){re.escape(kept)}(?!{within_word})", text) is not None
