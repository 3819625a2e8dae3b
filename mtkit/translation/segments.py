"""What is to be translated, and from it the parts that are searched: lines cut where they are long, with their demands.

A `Request` is text; a `Segment` is pieces, with what a hypothesis of it must be like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mtkit.config.sections import DecodingConfig
from mtkit.data.batching import Ids
from mtkit.data.tokenizer import WORD_START, Span, Tokenizer, Tokenizers
from mtkit.errors import DataError
from mtkit.files import BadLine
from mtkit.search.constraints import Constraint
from mtkit.translation.alignment import Link
from mtkit.translation.numbers import number_variants, required_numbers
from mtkit.translation.options import DEFAULT_OPTIONS, TranslateOptions
from mtkit.translation.sentence_splitting import UNSPACED, Boundary, boundary_at, sentence_spans, split_point


@dataclass(frozen=True)
class Request:
    """A line to translate, and what its translation must be like.

    Args:
        text: the line.
        prefix: how the translation begins.
        constraints: words or phrases that must appear in it; of each tuple at least one.
        keep_numbers: whether the numbers of the line must appear in it too, in any way of writing them, each in the
            translation of the part where it stands; where the search leaves one out, the part is searched again with
            all of them as constraints.
        links: whether its translations come with word links, whatever the translator does for others.
        fault: why there is nothing to translate, if the line or what goes with it could not be read.
        tag: pieces before the text that are no part of it, such as `<2de>` for a model that was trained with target
            languages: before each part of a long line.
    """

    text: str
    prefix: str = ""
    constraints: tuple[tuple[str, ...], ...] = ()
    keep_numbers: bool = False
    links: bool = False
    fault: DataError | None = None
    tag: str = ""

    @classmethod
    def of(cls, line: str | Request) -> Request:
        """A line without demands, or what is a request already. Raises: TypeError: it is neither."""
        if isinstance(line, Request):
            return line
        if not isinstance(line, str):
            raise TypeError(f"a line is a str or a Request, not {type(line).__name__}")
        return cls(line, fault=line.fault if isinstance(line, BadLine) else None)


@dataclass(frozen=True)
class Segment:
    """Pieces that are translated as one: a line, or a part of a long one."""

    ids: Ids  # those of the tag, then those of the text
    max_length: int  # of a hypothesis, eos included
    number: int  # of the line
    place: int = 0  # among the parts of the line
    prefix: tuple[int, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    numbers_kept: tuple[str, ...] = ()  # numbers that become constraints if the search left them out
    num_tag: int = 0  # ids that are the tag's
    boundary: Boundary = "sentence"  # with the part before
    # The characters of the line that the ids of the text stand for, if links are wanted:
    spans: tuple[Span, ...] = ()
    # Pieces of the prefix that the vocabulary lacks, place and text:
    unknown: tuple[tuple[int, str], ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """What the random numbers of its samples depend on."""
        return (self.number, self.place) if self.place else (self.number,)

    def surfaces(self, tgt: Tokenizer, ids: Sequence[int]) -> list[str]:
        """The text of each id of a hypothesis; what of the prefix the vocabulary lacks is as it was given."""
        surfaces = tgt.token_texts(ids)
        for place, text in self.unknown:
            surfaces[place] = text
        return surfaces

    def text(self, tgt: Tokenizer, ids: Sequence[int]) -> str:
        """The text of a hypothesis: its `surfaces`, which take longer to find, as one."""
        return "".join(self.surfaces(tgt, ids)) if self.unknown else tgt.decode([ids])[0]

    def links(self, sources: Sequence[int], surfaces: Sequence[str], first: int) -> list[Link]:
        """The links of the line's characters with those of a translation.

        Args:
            sources: for each piece of a hypothesis the one of `ids` that it came from; the tag and eos are no text.
            surfaces: text of each piece.
            first: where in the translation of the line it begins.
        """
        links = []
        for source, surface in zip(sources, surfaces, strict=True):
            if 0 <= source - self.num_tag < len(self.spans):
                links.append(Link(self.spans[source - self.num_tag], (first, first + len(surface))))
            first += len(surface)
        return links


@dataclass(frozen=True)
class _TextSpan:
    """A stretch of a line that is translated as one."""

    text: str
    ids: Ids
    boundary: Boundary = "sentence"  # with the one before
    spans: tuple[Span, ...] = ()  # of each id, in the line; if they are wanted or were needed


class Segmenter:
    """Makes parts of requests.

    Args:
        tokenizers: of both sides.
        decoding: limits, and whether there is a search that constraints could steer.
        suppressed: target pieces that never appear.
        max_source_tokens: longer lines are split at sentence ends, longer sentences are cut (see `sentence_splitting`).
        usual_src_tokens: lines that are longer than this are split at sentence ends if nothing else is asked for.
    """

    def __init__(
        self,
        tokenizers: Tokenizers,
        decoding: DecodingConfig,
        suppressed: Sequence[int],
        max_source_tokens: int,
        usual_src_tokens: int | None = None,
    ) -> None:
        self.tokenizers, self.decoding = tokenizers, decoding
        self.suppressed = frozenset(suppressed)
        self.max_source_tokens, self.usual_src_tokens = max_source_tokens, usual_src_tokens

    def parts(
        self, requests: Sequence[Request], first: int, options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Iterator[list[Segment]]:
        """The parts of each request; none of an empty line.

        Args:
            first: number of the first line, from 0.
            options: which lines are split, how long they may be, and whether links of all of them are wanted.

        Raises:
            DataError: a line that is too long, or a prefix or constraints that cannot be met; at the line's number.
        """
        for parts in self.parts_or_faults(requests, first, options):
            if isinstance(parts, DataError):
                raise parts
            yield parts

    def parts_or_faults(
        self, requests: Sequence[Request], first: int, options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Iterator[list[Segment] | DataError]:
        """The same, with what `parts` would raise in the place of the line's parts."""
        texts = [request.text for request in requests]
        encoded = self.tokenizers.src.encode(texts)
        for number, (request, ids) in enumerate(zip(requests, encoded, strict=True), first):
            try:
                yield self._parts_of(request, ids, number, options)
            except DataError as fault:
                yield fault

    def tag_ids(self, tag: str) -> Ids:
        """The pieces of a tag, as they stand before a text."""
        return self.tokenizers.src.encode([tag])[0]

    def single(
        self, request: Request, number: int, options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Segment | None:
        """The part of a line that must be one sentence, with its prefix alone; None of an empty line.

        Raises:
            DataError: it is not; its prefix is too long.
        """
        alone = replace(request, prefix="", constraints=(), keep_numbers=False, links=False)
        whole = options if options.split_sentences else replace(options, split_sentences=False)
        [parts] = self.parts([alone], number, whole)
        if not parts:
            return None
        if len(parts) > 1:
            raise self._several("alternatives", request.text, parts, options.split_sentences)
        return self._steer(parts[0], request.prefix, ())

    def keeping(self, part: Segment) -> Segment:
        """A part with its numbers as further constraints, as far as they can be written."""
        constraints = part.constraints
        for number in part.numbers_kept:
            encoded = self.tokenizers.tgt.encode(number_variants(number))
            phrases = [tuple(ids.tolist()) for ids in encoded if not self.suppressed & set(ids.tolist())]
            if phrases:
                constraints = (*constraints, Constraint(tuple(phrases), self.followers))
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

    def _parts_of(self, request: Request, ids: Ids, number: int, options: TranslateOptions) -> list[Segment]:
        """The parts of one request, whose text's pieces these are. Raises: DataError."""
        if request.fault is not None:
            raise request.fault
        longest = options.max_line_tokens
        if longest is not None and len(ids) > longest:
            what = f"{len(ids):,} tokens, but a line may have {longest:,}"
            raise DataError(what, where=place_of(number), hint="split the line, or raise `max_line_tokens`")
        tag, limit = self.tag_ids(request.tag), self.decoding.max_length
        most = max(1, self.max_source_tokens - len(tag))
        split = options.split_sentences
        unsplit = self._longest_unsplit(request, split, most)
        segments = list(self._segments(request.text, ids, unsplit, most, options.keep_links or request.links))
        parts = [
            Segment(
                np.concatenate([tag, segment.ids]),
                limit(len(segment.ids)),
                number,
                place,
                numbers_kept=required_numbers(segment.text) if request.keep_numbers else (),
                num_tag=len(tag),
                boundary=segment.boundary,
                spans=segment.spans,
            )
            for place, segment in enumerate(segments)
        ]
        return self._demand(request, parts, number, split)

    def _longest_unsplit(self, request: Request, split: bool | None, most: int) -> int:
        """How many pieces a line may have and still not be split at sentence ends."""
        if split:
            return 0
        must_be_one = request.prefix or request.constraints
        if split is False or must_be_one or self.usual_src_tokens is None:
            return most
        return min(most, self.usual_src_tokens)

    def _demand(
        self, request: Request, parts: list[Segment], number: int, split: bool | None
    ) -> list[Segment]:
        """The parts of a line with what is demanded of them. Raises: DataError: impossible."""
        if not request.prefix and not request.constraints:
            return parts
        if not parts:
            hint = "leave theirs empty too"
            raise DataError("an empty line has no prefix or constraints", where=place_of(number), hint=hint)
        if len(parts) > 1:
            raise self._several("a prefix or constraints", request.text, parts, split)
        return [self._steer(parts[0], request.prefix, request.constraints)]

    def _several(self, what_it_has: str, text: str, parts: list[Segment], split: bool | None) -> DataError:
        """Why a line that must be one part is several."""
        where, num_sentences = place_of(parts[0].number), len(sentence_spans(text))
        if split and num_sentences > 1:
            what = f"a line with {what_it_has} must be one sentence, but this one has {num_sentences}"
            return DataError(what, where=where, hint="give one sentence a line, without `split_sentences`")
        num_tag = parts[0].num_tag
        num_pieces, limit = sum(len(part.ids) - num_tag for part in parts), self.max_source_tokens - num_tag
        what = f"a line with {what_it_has} may have {limit:,} pieces, but this one has {num_pieces:,}"
        return DataError(what, where=where, hint="split the line")

    def _steer(self, part: Segment, prefix: str, constraints: Sequence[Sequence[str]]) -> Segment:
        """A part with a prefix and constraints. Raises: DataError: they cannot be met."""
        where = place_of(part.number)
        tgt = self.tokenizers.tgt
        begun = tuple(tgt.encode([prefix])[0].tolist())
        spans = tgt.spans(prefix) if tgt.unk in begun else []
        unknown = tuple((i, prefix[slice(*span)]) for i, span in enumerate(spans) if begun[i] == tgt.unk)
        wanted = tuple(self._constraint(words, where) for words in constraints)
        if self.decoding.sample and wanted:
            raise DataError("constraints need a search, not samples", where=where, hint="leave out `sample`")
        if (needed := num_needed(begun, wanted)) > part.max_length:
            what = (
                f"its prefix and constraints have {needed:,} pieces, but at most {part.max_length:,} may come"
            )
            raise DataError(what, where=where, hint="raise decoding.max_length_ratio")
        return replace(part, prefix=begun, constraints=wanted, unknown=unknown)

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

    def _segments(
        self, line: str, ids: Ids, unsplit: int, most: int, wants_spans: bool
    ) -> Iterator[_TextSpan]:
        """The segments of a line: itself, or its sentences, and of too long ones their parts; none of an empty line.

        Args:
            unsplit: pieces of a line that is not split at sentence ends.
            most: pieces of a segment.
        """
        if len(ids) <= unsplit:
            places = [(0, len(line))]
            encoded = [ids]
        else:
            places = sentence_spans(line)
            encoded = self.tokenizers.src.encode([line[start:end] for start, end in places])
        for (start, end), own in zip(places, encoded, strict=True):
            yield from self._cut(line[start:end], start, own, most, wants_spans)

    def _cut(self, text: str, first: int, ids: Ids, most: int, wants_spans: bool) -> Iterator[_TextSpan]:
        """Segments of at most `most` pieces; none of an empty sentence. Args: first: where in the line it begins."""
        src = self.tokenizers.src
        if len(ids) <= most and not wants_spans:
            if len(ids):
                yield _TextSpan(text, ids)
            return
        spans, pieces = src.spans(text), src.pieces(text)
        in_line = [(first + start, first + end) for start, end in spans]
        start = 0
        boundary: Boundary = "sentence"
        while start < len(ids):
            is_last = len(ids) - start <= most
            end = len(ids) if is_last else start + split_point(pieces[start : start + most])
            stop = len(text) if is_last else spans[end][0]
            yield _TextSpan(text[spans[start][0] : stop], ids[start:end], boundary, tuple(in_line[start:end]))
            start, boundary = end, boundary_at(text, stop)


def place_of(number: int) -> str:
    """What messages call a line of this number, from 0."""
    return f"line {number + 1}"


def num_needed(prefix: Sequence[int], constraints: Sequence[Constraint]) -> int:
    """The fewest pieces of a hypothesis that begins so and meets these, eos included."""
    return len(prefix) + sum(constraint.num_tokens for constraint in constraints) + 1
