"""Turns lines into segments: a `Request` is text, a `Segment` is token ids with the rules for its hypotheses.

Long lines become several segments (see `sentence_splitting`). Prefixes and constraints are checked and encoded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from mtkit.config.sections import DecodingConfig
from mtkit.data.batching import Ids
from mtkit.data.segmentation import Span
from mtkit.data.tokenizer import Tokenizer, Tokenizers
from mtkit.errors import DataError
from mtkit.files import BadLine
from mtkit.languages import is_unspaced
from mtkit.search.constraints import Constraint
from mtkit.translation.alignment import Link
from mtkit.translation.numbers import required_numbers
from mtkit.translation.options import DEFAULT_OPTIONS, TranslateOptions
from mtkit.translation.sentence_splitting import Boundary, boundary_at, sentence_spans, split_point
from mtkit.translation.truecasing import usual_case
from mtkit.translation.word_boundaries import BEGINS_UNSPACED, encode_inside


def describe_tags(tags: Sequence[str]) -> str:
    """Return a hint that names the tags of a model, or the first of them."""
    more = f" and {len(tags) - 5} more" if len(tags) > 6 else ""
    return f"its tags are {', '.join(tags[:5] if more else tags)}{more}"


@dataclass(frozen=True)
class Request:
    """A line to translate, with the requirements for its translation.

    Attributes:
        text: the line.
        prefix: text that the translation begins with.
        constraints: words or phrases that must appear in the translation; at least one of each tuple.
        keep_numbers: whether the numbers of the line must appear in the translation, in any notation, each in the
            translation of the segment that contains it; where the search leaves one out, the segment is searched again
            with all of its numbers as constraints.
        links: whether the translations get word links even if `TranslateOptions.keep_links` is off.
        fault: the reason why there is nothing to translate, if the line or a file beside it could not be read.
        tag: text whose tokens precede every segment of the line, such as `<2de>` for a model that was trained with
            target-language tags.
        keep_case: whether a line in capitals or title case is taken as it is (see `truecasing`), as one with a prefix
            or constraints.
    """

    text: str
    prefix: str = ""
    constraints: tuple[tuple[str, ...], ...] = ()
    keep_numbers: bool = False
    links: bool = False
    fault: DataError | None = None
    tag: str = ""
    keep_case: bool = False

    @classmethod
    def of(cls, line: str | Request) -> Request:
        """Return a request for a line; a request is returned as it is.

        Raises:
            TypeError: If the line is neither a str nor a Request.
        """
        if isinstance(line, Request):
            return line
        if not isinstance(line, str):
            raise TypeError(f"a line is a str or a Request, not {type(line).__name__}")
        return cls(line, fault=line.fault if isinstance(line, BadLine) else None)


@dataclass(frozen=True)
class Segment:
    """Token ids that are searched as one: a line, or a part of a long one.

    Attributes:
        ids: source tokens, those of the tag first.
        max_length: tokens that a hypothesis may have, eos included.
        line_number: number of the line, from 0.
        index: position among the segments of the line.
        prefix: target tokens that every hypothesis begins with.
        unknown_in_prefix: position and text of the tokens of the prefix that the vocabulary lacks.
        constraints: constraints on the hypotheses.
        required_numbers: numbers that become constraints if the best hypothesis lacks one of them.
        no_repeat_ngram: no n-gram of this many tokens appears twice in a hypothesis; 0 leaves it to `decoding`.
        num_tag_tokens: number of `ids` that belong to the tag.
        boundary: what separates the segment from the one before it.
        spans: characters of the line that each token after the tag stands for, if links are wanted.
        keep_log_probs: whether hypotheses keep the log-probability of each token.
        restore_case: brings the texts of hypotheses into the case of the line; None leaves them.
    """

    ids: Ids
    max_length: int
    line_number: int
    index: int = 0
    prefix: tuple[int, ...] = ()
    unknown_in_prefix: tuple[tuple[int, str], ...] = ()
    constraints: tuple[Constraint, ...] = ()
    required_numbers: tuple[str, ...] = ()
    no_repeat_ngram: int = 0
    num_tag_tokens: int = 0
    boundary: Boundary = "sentence"
    spans: tuple[Span, ...] = ()
    keep_log_probs: bool = False
    restore_case: Callable[[str], str] | None = None

    @property
    def min_length(self) -> int:
        """Fewest tokens of a hypothesis that has the prefix and meets the constraints, eos included."""
        return len(self.prefix) + sum(constraint.num_tokens for constraint in self.constraints) + 1

    @property
    def sample_key(self) -> tuple[int, ...]:
        """Numbers that, together with the seed, determine the samples of this segment."""
        return (self.line_number, self.index) if self.index else (self.line_number,)

    def decode(self, tgt: Tokenizer, ids: Sequence[int]) -> str:
        """Return the text of a hypothesis: the same as its joined `token_texts`, but faster."""
        if self.unknown_in_prefix:
            return "".join(self.token_texts(tgt, ids))
        text = tgt.decode([ids])[0]
        return text if self.restore_case is None else self.restore_case(text)

    def token_texts(self, tgt: Tokenizer, ids: Sequence[int]) -> list[str]:
        """Return the text of each token of a hypothesis; unknown tokens of the prefix appear as they were given."""
        texts = tgt.token_texts(ids)
        for position, text in self.unknown_in_prefix:
            texts[position] = text
        if self.restore_case is None:
            return texts
        whole = "".join(texts)
        restored = self.restore_case(whole)
        if len(restored) != len(whole):  # as that of ß does in capitals
            return list(map(self.restore_case, texts))
        ends = [0, *accumulate(map(len, texts))]
        return [restored[start:end] for start, end in pairwise(ends)]

    def char_links(self, sources: Sequence[int], token_texts: Sequence[str], start: int) -> list[Link]:
        """Return the links between characters of the line and characters of its translation.

        Args:
            sources: for each token of a hypothesis the index in `ids` of its source token; those that come from the
                tag or from eos have no link.
            token_texts: text of each token of the hypothesis.
            start: position of the hypothesis in the translation of the line.
        """
        links = []
        for source, text in zip(sources, token_texts, strict=True):
            if 0 <= source - self.num_tag_tokens < len(self.spans):
                links.append(Link(self.spans[source - self.num_tag_tokens], (start, start + len(text))))
            start += len(text)
        return links


@dataclass(frozen=True)
class SegmentedLine:
    """A line and its segments.

    Attributes:
        request: the line.
        number: number of the line, from 0.
        segments: its segments in order; none for an empty line.
        fault: the reason why the line has no segments, if it cannot be translated.
    """

    request: Request
    number: int
    segments: list[Segment]
    fault: DataError | None = None


@dataclass(frozen=True)
class _TextSpan:
    """A stretch of a line that becomes a segment.

    Attributes:
        boundary: what separates it from the stretch before it.
        spans: characters of the line that each token stands for; empty if they were neither wanted nor needed.
    """

    text: str
    ids: Ids
    boundary: Boundary = "sentence"
    spans: tuple[Span, ...] = ()


class Segmenter:
    """Splits lines into segments.

    Args:
        tokenizers: the tokenizers of both sides.
        decoding: limits of length, and whether translations are sampled, which rules out constraints.
        suppressed: target tokens that never appear.
        max_source_tokens: longer lines are split at sentence ends, longer sentences are cut (see `sentence_splitting`).
        usual_src_tokens: longer lines are split at sentence ends unless the options say otherwise.
        tgt: code of the target language, if it is known.
    """

    def __init__(
        self,
        tokenizers: Tokenizers,
        decoding: DecodingConfig,
        suppressed: Sequence[int],
        max_source_tokens: int,
        usual_src_tokens: int | None = None,
        tgt: str | None = None,
    ) -> None:
        self.tokenizers, self.decoding, self.is_unspaced = tokenizers, decoding, is_unspaced(tgt)
        self.suppressed = frozenset(suppressed)
        self.max_source_tokens, self.usual_src_tokens = max_source_tokens, usual_src_tokens

    def segment_lines(
        self, requests: Sequence[Request], first: int = 0, options: TranslateOptions = DEFAULT_OPTIONS
    ) -> list[SegmentedLine]:
        """Split lines into segments; with `options.on_error` "stop" only up to the first line that has a fault.

        Args:
            requests: the lines.
            first: number of the first line, from 0.
            options: which lines are split, how long they may be, and whether links are wanted.
        """
        lines: list[SegmentedLine] = []
        usual = list(map(self._usual_case, requests))
        encoded = self.tokenizers.src.encode([text for text, _ in usual])
        for number, (request, (text, restore), ids) in enumerate(
            zip(requests, usual, encoded, strict=True), first
        ):
            try:
                segments = self._segment_line(request, text, ids, number, options)
                if restore is not None:
                    segments = [replace(segment, restore_case=restore) for segment in segments]
                lines.append(SegmentedLine(request, number, segments))
            except DataError as fault:
                lines.append(SegmentedLine(request, number, [], fault))
                if options.on_error == "stop":
                    break
        return lines

    def _usual_case(self, request: Request) -> tuple[str, Callable[[str], str] | None]:
        """Return the text of a line in its usual case, and what brings its translation into that of the line."""
        if not self.decoding.truecase or request.keep_case or request.prefix or request.constraints:
            return request.text, None
        tag = self.tokenizers.src.leading_tag(request.text)
        usual, restore = usual_case(request.text[len(tag) :], self.tokenizers.src)
        return tag + usual, restore

    def single_segment(
        self, request: Request, number: int, options: TranslateOptions = DEFAULT_OPTIONS
    ) -> Segment | None:
        """Return a line, with its prefix but without its constraints, as one segment; None for an empty line.

        Args:
            request: the line.
            number: number of the line, from 0.
            options: how long the line may be, and whether it is split; by default only if the model cannot hold it.

        Raises:
            DataError: If the line would be several segments, or is too long, or its prefix is.
        """
        plain = replace(request, prefix="", constraints=(), keep_numbers=False, links=False)
        unsplit = options if options.split_sentences else replace(options, split_sentences=False)
        [ids] = self.tokenizers.src.encode([request.text])
        segments = self._segment_line(plain, request.text, ids, number, unsplit)
        if not segments:
            return None
        if len(segments) > 1:
            raise self._too_many_segments("alternatives", request.text, segments, options.split_sentences)
        return self._steer(segments[0], request.prefix, ())

    def _segment_line(
        self, request: Request, text: str, ids: Ids, number: int, options: TranslateOptions
    ) -> list[Segment]:
        """Return the segments of a line.

        Args:
            request: the line.
            text: its text in its usual case.
            ids: tokens of the text.
            number: number of the line, from 0.
            options: how long the line may be, whether it is split, and whether links are wanted.

        Raises:
            DataError: If the line cannot be translated as requested.
        """
        if request.fault is not None:
            raise request.fault
        where, longest = line_label(number), options.max_line_tokens
        if longest is not None and len(ids) > longest:
            what = f"{len(ids):,} tokens, but a line may have {longest:,}"
            raise DataError(what, where=where, hint="split the line, or raise `max_line_tokens`")
        src = self.tokenizers.src
        own_tag = src.leading_tag(text)
        if src.tags and own_tag and own_tag not in src.tags:
            what = f"the model does not know the tag {own_tag!r:.40}"
            raise DataError(what, where=where, hint=describe_tags(src.tags))
        # a tag in the line is repeated before later segments
        tag, repeated = src.encode([request.tag, own_tag])
        max_tokens = max(1, self.max_source_tokens - len(tag) - len(repeated))
        steered = bool(request.prefix or request.constraints)  # such a line must be a single segment
        max_unsplit = max_tokens
        if options.split_sentences:
            max_unsplit = 0
        elif options.split_sentences is None and not steered and self.usual_src_tokens is not None:
            max_unsplit = min(max_tokens, self.usual_src_tokens)
        stretches = self._split(text, ids, max_unsplit, max_tokens, options.keep_links or request.links)
        segments = [
            Segment(
                np.concatenate([tag, *([repeated] if index else []), stretch.ids]),
                self.decoding.max_length(len(stretch.ids)),
                number,
                index,
                required_numbers=required_numbers(stretch.text) if request.keep_numbers else (),
                num_tag_tokens=len(tag) + (len(repeated) if index else 0),
                boundary=stretch.boundary,
                spans=stretch.spans,
                keep_log_probs=options.keep_log_probs,
            )
            for index, stretch in enumerate(stretches)
        ]
        if not steered:
            return segments
        if not segments:
            what = "an empty line cannot have a prefix or constraints"
            raise DataError(what, where=where, hint="leave theirs empty too")
        if len(segments) > 1:
            raise self._too_many_segments(
                "a prefix or constraints", request.text, segments, options.split_sentences
            )
        return [self._steer(segments[0], request.prefix, request.constraints)]

    def _split(
        self, line: str, ids: Ids, max_unsplit: int, max_tokens: int, wants_spans: bool
    ) -> Iterator[_TextSpan]:
        """Yield the line itself, or its sentences, cut where they are too long; nothing for an empty line.

        Args:
            line: the line.
            ids: its tokens.
            max_unsplit: a line with more tokens is split at sentence ends.
            max_tokens: a line or sentence with more tokens is cut.
            wants_spans: whether the spans of the tokens are wanted.
        """
        src, places, encoded = self.tokenizers.src, [(0, len(line))], [ids]
        if len(ids) > max_unsplit:
            places = sentence_spans(line)
            encoded = src.encode([line[start:end] for start, end in places])
        for (first, last), own in zip(places, encoded, strict=True):
            text = line[first:last]
            if len(own) <= max_tokens and not wants_spans:
                if len(own):
                    yield _TextSpan(text, own)
                continue
            spans, pieces = src.spans(text), src.pieces(text)
            before = [text[max(0, begin - 2) : begin].rstrip()[-1:] or " " for begin, _ in spans]
            in_line = [(first + start, first + end) for start, end in spans]
            start = 0
            boundary: Boundary = "sentence"
            while start < len(own):
                is_last = len(own) - start <= max_tokens
                part = slice(start, start + max_tokens)
                end = (
                    len(own) if is_last else start + split_point(pieces[part], before[part], src.begins_word)
                )
                stop = len(text) if is_last else spans[end][0]
                yield _TextSpan(
                    text[spans[start][0] : stop], own[start:end], boundary, tuple(in_line[start:end])
                )
                start, boundary = end, boundary_at(text, stop)

    def _steer(self, segment: Segment, prefix: str, constraints: Sequence[Sequence[str]]) -> Segment:
        """Return the segment with a prefix and constraints.

        Raises:
            DataError: If they cannot be met.
        """
        where, tgt = line_label(segment.line_number), self.tokenizers.tgt
        ids = tuple(tgt.encode([prefix])[0].tolist())
        spans = tgt.spans(prefix) if tgt.unk in ids else []
        unknown = tuple((i, prefix[slice(*span)]) for i, span in enumerate(spans) if ids[i] == tgt.unk)
        encoded = tuple(self._constraint(phrases, where) for phrases in constraints)
        if self.decoding.sample and encoded:
            what = "constraints need a search, but translations are sampled"
            raise DataError(what, where=where, hint="leave out `sample`")
        steered = replace(segment, prefix=ids, constraints=encoded, unknown_in_prefix=unknown)
        if steered.min_length > segment.max_length:
            what = (
                f"its prefix and constraints need {steered.min_length:,} tokens, "
                f"but its translation may have {segment.max_length:,}"
            )
            raise DataError(what, where=where, hint="raise decoding.max_length_ratio")
        return steered

    def _constraint(self, phrases: Sequence[str], where: str) -> Constraint:
        """Return the constraint that one of these phrases appears.

        Raises:
            DataError: If none of them can be written with tokens that may appear.
        """
        tgt = self.tokenizers.tgt
        encoded = [tuple(ids.tolist()) for ids in tgt.encode(list(phrases))]
        inside = [phrase for phrase in phrases if self.is_unspaced or BEGINS_UNSPACED.match(phrase)]
        encoded += encode_inside(tgt, inside)
        possible = [ids for ids in encoded if ids and not self.suppressed & set(ids)]
        if not possible:
            reasons = dict.fromkeys(map(self._why_impossible, encoded))
            what = f"the constraint {' | '.join(phrases)!r} cannot be met: {', or '.join(reasons)}"
            raise DataError(what, where=where, hint="leave it out")
        return Constraint(tuple(possible))

    def _why_impossible(self, phrase: Sequence[int]) -> str:
        """Return the reason why a phrase cannot appear."""
        if not phrase:
            return "it has no tokens"
        if self.tokenizers.tgt.unk in phrase:
            return "the vocabulary lacks its characters"
        return "one of its tokens is suppressed"

    def _too_many_segments(
        self, what_it_has: str, text: str, segments: list[Segment], split: bool | None
    ) -> DataError:
        """Return the error for a line that is several segments but must be one."""
        where, num_sentences = line_label(segments[0].line_number), len(sentence_spans(text))
        if split and num_sentences > 1:
            what = f"a line with {what_it_has} must be one sentence, but this one has {num_sentences}"
            return DataError(what, where=where, hint="give one sentence a line, without `split_sentences`")
        num_tag = segments[0].num_tag_tokens
        num_tokens = sum(len(segment.ids) - num_tag for segment in segments)
        limit = self.max_source_tokens - num_tag
        what = f"a line with {what_it_has} may have {limit:,} tokens, but this one has {num_tokens:,}"
        return DataError(what, where=where, hint="split the line")


def line_label(number: int) -> str:
    """Return what messages call the line of this number, which counts from 0."""
    return f"line {number + 1}"
