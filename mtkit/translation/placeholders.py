"""What a translation must leave as it is: mark-up, placeholders, URLs, addresses, and what the model cannot spell.

All of that is taken out of the line and put back where the words beside it went, by the alignment. Places are counted
in characters, of the line, of the text that is translated (the line without what was taken out) and of its translation.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtkit.data.tokenizer import Span
from mtkit.translation.alignment import Link
from mtkit.translation.numbers import find_numbers
from mtkit.translation.sentence_splitting import UNSPACED

# Nothing here looks at a character more than a few times, however long a line is: what has no end is given up at the
# next beginning of its kind.
_QUOTED = r"""(?:"[^"<]*"|'[^'<]*')"""
_MARK_UP = "|".join([
    rf"""</?[A-Za-z](?:[^<>"']|{_QUOTED})*+>""",
    r"</?[A-Za-z][^<>]*>",
    r"<!--(?:(?!<!--).)*?-->",
    r"<!\[CDATA\[(?:(?!<!\[CDATA\[).)*?\]\]>",
    r"<[!?][A-Za-z][^<>]*>",
])  # fmt: skip
_PLACEHOLDER = "|".join([
    r"\{\{[^{}]*\}\}|\{%[^{}]*%\}",  # {{ name }}, {% if %}
    r"[$#%]?\{[\w.\[\]-]*(?:![a-z])?(?::[^{}\s]*)?\}",  # {name}, {0:.2f}, ${x}, %{x}
    r"(?<![\d%])%(?:\d+\$|\(\w+\))?[-+#0]*+\d*+(?:\.\d+)?(?:hh?|ll?|[zjt])?[sdiufFxXeEgGc@](?![A-Za-z])|%%",  # %1$s
    r"%\(\w+\)[a-z]",
    r"&(?:[A-Za-z][A-Za-z0-9]*|#\d+|#[xX][0-9A-Fa-f]+);",
])  # fmt: skip
_URL = rf"(?:https?://|ftp://|file://|mailto:|www\.)(?=[\w\[])[^\s<>\"“”„«»。！？，、；：（）「」{UNSPACED}]+"
_MAIL = r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"
_KEPT = re.compile(f"(?P<markup>{_MARK_UP})|(?P<url>{_URL})|{_PLACEHOLDER}|{_MAIL}", re.DOTALL)
_ELEMENT = re.compile(r"<(/?)([A-Za-z][\w:.-]*)")
_WORD = re.compile(rf"(?:[^\W{UNSPACED}]|(?<=\d)[.,:](?=\d))+")
_LETTER = re.compile(rf"[^\W{UNSPACED}]")

_BRACKETS = {
    '"': '"',
    "'": "'",
    "“": "”",
    "„": "“",
    "‘": "’",
    "«": "»",
    "(": ")",
    "[": "]",
    "<": ">",
    "`": "`",
}
_AFTER_WORDS = ".,;:!?…)]}»”’。，、；：！？"
"""Marks that no space divides from the word before them."""


@dataclass(frozen=True)
class Inset:
    """What was taken out of a line.

    Args:
        span: in the line.
        start, end: the characters of the text that it surrounds if it is one of a pair of tags; else its place.
        opens, closes: whether it goes with what is behind it, or before it; if neither, with what is behind it too.
        opener: of a closing tag, the number of the opening one.
        glue_before, glue_after: whether no space divided it from its neighbours.
        in_word: whether it is a part of a word.
    """

    text: str
    span: Span
    start: int
    end: int
    opens: bool = False
    closes: bool = False
    opener: int | None = None
    glue_before: bool = False
    glue_after: bool = False
    in_word: bool = False

    @property
    def at(self) -> int:
        """Its place in the text."""
        return self.end if self.opener is not None else self.start


@dataclass(frozen=True)
class Protected:
    """A line made ready.

    Attributes:
        text: what is to be translated.
        insets: what is put back, in the order of the line.
        origins: of each character of the text its place in the line, -1 for a space that was added.
    """

    text: str
    insets: tuple[Inset, ...] = ()
    origins: tuple[int, ...] = ()

    def restore(self, translation: str, links: Sequence[Link]) -> tuple[str, list[Link]]:
        """The translation with the insets back, and its links with the line.

        Args:
            links: between the text and the translation.
        """
        if not self.insets:
            return translation, list(links)
        trimmed = [Link(_trim(self.text, link.src), _trim(translation, link.tgt)) for link in links]
        trimmed = sorted(link for link in trimmed if link.src[0] < link.src[1] and link.tgt[0] < link.tgt[1])
        places = _Placer(self.text, translation, trimmed).places(self.insets)
        builder = _Builder(translation)
        order = sorted(range(len(self.insets)), key=lambda i: (places[i], self._opens_there(i, places), i))
        for i in order:
            builder.insert(self.insets[i], places[i])
        text, moved = builder.finish()
        found = [
            Link((self.origins[s], self.origins[end - 1] + 1), (moved[t], moved[last - 1] + 1))
            for (s, end), (t, last) in trimmed
        ]
        for i, start in zip(order, builder.starts, strict=True):
            first = self.insets[i].span[0]
            found += [
                Link((first + word.start(), first + word.end()), (start + word.start(), start + word.end()))
                for word in re.finditer(r"\S+", self.insets[i].text)
            ]
        return text, found

    def _opens_there(self, number: int, places: Sequence[int]) -> bool:
        """Whether an inset comes behind those that close what stands before its place."""
        inset = self.insets[number]
        return not inset.closes or (inset.opener is not None and places[inset.opener] == places[number])


class _Placer:
    """Finds where in a translation the insets of a text go.

    Args:
        links: sorted, of stretches that neither begin nor end with a space.
    """

    def __init__(self, text: str, translation: str, links: Sequence[Link]) -> None:
        self.text, self.translation = text, translation
        ends = np.array([[*link.src, *link.tgt] for link in links], dtype=np.int64).reshape(-1, 4)
        self.src_starts, self.src_ends, self.tgt_starts, self.tgt_ends = ends.T
        self.word_starts = list(range(len(translation) + 1))
        self.word_ends = list(self.word_starts)
        for word in _WORD.finditer(translation):
            for place in range(word.start() + 1, word.end()):
                self.word_starts[place], self.word_ends[place] = word.span()

    def places(self, insets: Sequence[Inset]) -> list[int]:
        """Before which character of the translation each goes, never within a word but where it was in one."""
        places: list[int] = []
        for inset in insets:
            first = int(np.searchsorted(self.src_ends, inset.start, side="right"))
            last = int(np.searchsorted(self.src_starts, inset.end, side="left"))
            if inset.in_word:
                place = self._in_word(inset.at)
            elif first < last and inset.opens:
                place = self.word_starts[self.tgt_starts[first:last].min()]
            elif first < last and inset.opener is not None:
                place = self.word_ends[self.tgt_ends[first:last].max()]
            elif inset.opener is not None:
                place = places[inset.opener]
            elif inset.closes:
                place = self._behind(inset.at)
            else:
                place = self._before(inset.at)
            places.append(place)
        return places

    def _before(self, at: int) -> int:
        """Before the word that the next linked one became."""
        first = int(np.searchsorted(self.src_ends, at, side="right"))
        if first == len(self.src_ends):
            return len(self.translation)
        last = int(np.searchsorted(self.src_starts, self.src_starts[first], side="right"))
        return self.word_starts[self.tgt_starts[first:last].min()]

    def _behind(self, at: int) -> int:
        """Behind the word that the linked one before became."""
        last = int(np.searchsorted(self.src_starts, at, side="left"))
        if last == 0:
            return 0
        first = int(np.searchsorted(self.src_starts, self.src_starts[last - 1], side="left"))
        return self.word_ends[self.tgt_ends[first:last].max()]

    def _in_word(self, at: int) -> int:
        """The same place within a word that was copied, else behind what it became."""
        last = int(np.searchsorted(self.src_starts, at, side="left")) - 1
        if last >= 0 and self.src_ends[last] >= at:
            tgt_start, src_start = int(self.tgt_starts[last]), int(self.src_starts[last])
            copy = self.translation[tgt_start : self.tgt_ends[last]]
            if copy == self.text[src_start : self.src_ends[last]]:
                return tgt_start + at - src_start
        return self._behind(at)


class _Builder:
    """Puts insets into a translation, from its beginning to its end."""

    def __init__(self, translation: str) -> None:
        self.translation, self.copied = translation, 0
        self.parts: list[str] = []
        self.length = 0
        self.moved: list[int] = []
        self.starts: list[int] = []  # of each inset, in the order they came
        self.waiting: Inset | None = None  # the inset that was added last, while nothing stands behind it

    def insert(self, inset: Inset, place: int) -> None:
        """Put one before a character of the translation that is not before those of the insets before it."""
        self._copy(place)
        self._space(self.last, inset.text, not inset.opens and not inset.glue_before, inset.in_word)
        self.starts.append(self.length)
        self._add(inset.text)
        self.waiting = inset

    def finish(self) -> tuple[str, list[int]]:
        """The text, and for each character of the translation where it is now."""
        self._copy(len(self.translation))
        return "".join(self.parts), self.moved

    @property
    def last(self) -> str:
        """The last character so far."""
        return self.parts[-1][-1] if self.parts else ""

    def _copy(self, place: int) -> None:
        text = self.translation[self.copied : place]
        if not text:
            return
        if (inset := self.waiting) is not None:
            is_mark = (
                text[0] in _AFTER_WORDS
                and not self.translation[max(0, self.copied - 1) : self.copied].isspace()
            )
            is_divided = not inset.glue_after and inset.opener is None and not is_mark
            self._space(inset.text, text, is_divided, inset.in_word)
        self.moved += range(self.length, self.length + len(text))
        self.copied, self.waiting = place, None
        self._add(text)

    def _space(self, left: str, right: str, is_divided: bool, in_word: bool) -> None:
        """Add a space if one divides them, or if they would become one word that they were not."""
        makes_one = (
            not in_word and left[-1:].isalnum() and right[0].isalnum() and _LETTER.search(left[-1] + right[0])
        )
        if left and not left[-1].isspace() and not right[0].isspace() and (is_divided or makes_one):
            self._add(" ")

    def _add(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)


def _trim(text: str, span: Span) -> Span:
    """A stretch of a text without the spaces at its ends."""
    inner = text[slice(*span)]
    return span[1] - len(inner.lstrip()), span[0] + len(inner.rstrip())


@dataclass
class _Unit:
    """What is taken out as one: a placeholder, a tag, or several of them with no text between.

    Args:
        span: in the line.
        group: how many stretches of text are before it.
        is_text: whether it is what the model cannot spell, and nothing else.
        opens: whether it is an opening tag, whose closing one is another unit.
        opener: of a closing tag, the number of the opening one.
    """

    span: Span
    group: int
    is_text: bool
    opens: bool = False
    opener: int | None = None


def protect(line: str, unknown_spans: Sequence[Span] = ()) -> Protected:
    """Take out of a line what must stay as it is, and what the model cannot spell."""
    units = _units(line, unknown_spans)
    if not units:
        return Protected(line)
    insets: list[Inset] = []
    origins: list[int] = []
    copied = last_place = 0
    for unit, following in zip(units, [*units[1:], None], strict=True):
        start, end = unit.span
        limit = len(line) if following is None else following.span[0]
        _append(line, origins, range(copied, start))
        last = next((line[i] for i in reversed(origins[-2:]) if i >= 0 and not line[i].isspace()), "")
        is_alone = unit.opener is None and not unit.opens
        if is_alone and (not last or last in _AFTER_WORDS):  # without it, marks would stand behind no word
            while end < limit and line[end] in _AFTER_WORDS:
                end += 1
        copied = end
        before, after = (line[origins[-1]] if origins and origins[-1] >= 0 else ""), line[end : end + 1]
        glue_before = start > 0 and not line[start - 1].isspace()
        glue_after = bool(after) and not after.isspace()
        in_word = False
        if glue_before and glue_after and _LETTER.match(before) and _LETTER.match(after):
            in_word = unit.is_text
            if not in_word:
                origins.append(-1)
        elif before.isspace() and len(origins) > last_place and after and after in _AFTER_WORDS:
            origins.pop()
        is_closing = line.startswith("</", start) or (glue_before and not glue_after)
        before_closing = (
            following is not None and following.opener is not None and not line[end:limit].strip()
        )
        ends_text = len(origins) > last_place and (is_closing or before_closing)
        place = last_place = len(origins)
        pair = insets[unit.opener] if unit.opener is not None else None
        insets.append(
            Inset(
                line[start:end],
                (start, end),
                start=place if pair is None else pair.start,
                end=place,
                opens=unit.opens,
                closes=pair is not None or ends_text,
                opener=unit.opener,
                glue_before=glue_before,
                glue_after=glue_after,
                in_word=in_word,
            )
        )
    _append(line, origins, range(copied, len(line)))
    while origins and (origins[-1] < 0 or line[origins[-1]].isspace()):
        origins.pop()
    text = "".join(line[i] if i >= 0 else " " for i in origins)
    ends = {inset.opener: inset.end for inset in insets if inset.opener is not None}
    paired = (replace(inset, end=ends.get(i, inset.end)) for i, inset in enumerate(insets))
    return Protected(text, tuple(paired), tuple(origins))


def _append(line: str, origins: list[int], places: range) -> None:
    """Further characters of a line, but no space behind another."""
    for place in places:
        is_first = not origins or origins[-1] < 0 or line[origins[-1]].isspace()
        if not (is_first and line[place].isspace()):
            origins.append(place)


def _units(line: str, unknown_spans: Sequence[Span]) -> list[_Unit]:
    """What is to be taken out of a line, in order.

    An element without text, as `<p></p>`, is one unit, and so are neighbours that surround none: they keep their order.
    """
    found, units = _grouped(line, _kept_spans(line, unknown_spans)), list[_Unit]()
    closers = _pairs([line[slice(*unit.span)] for unit in found])
    openers: dict[
        int, int
    ] = {}  # number of a closing tag among those found: number of its opening one among the units
    done = 0  # of those found, how many belong to units
    for i, unit in enumerate(found):
        if i < done:
            continue
        last = closers.get(i, i)
        if unit.group == found[last].group:
            unit = _Unit((unit.span[0], found[last].span[1]), unit.group, unit.is_text, opener=openers.get(i))
            done = last + 1
        else:
            unit.opens, openers[last] = True, len(units)
        before = units[-1] if units else None
        is_alone = not unit.opens and unit.opener is None
        if before and is_alone and not before.opens and before.opener is None and before.group == unit.group:
            before.span, before.is_text = (before.span[0], unit.span[1]), before.is_text and unit.is_text
        else:
            units.append(unit)
    return units


def _pairs(texts: Sequence[str]) -> dict[int, int]:
    """For opening tags, by number, their closing tags."""
    pairs: dict[int, int] = {}
    open_tags: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        tag = _ELEMENT.match(text)
        if tag is None or text.endswith("/>"):
            continue
        if not tag[1]:
            open_tags[tag[2]].append(number)
        elif open_tags[tag[2]]:
            pairs[open_tags[tag[2]].pop()] = number
    return pairs


def _grouped(line: str, kept: Sequence[tuple[Span, bool]]) -> list[_Unit]:
    """Each by itself, with the number of stretches of text before it."""
    units, group, last = list[_Unit](), 0, 0
    for span, is_text in kept:
        group += bool(line[last : span[0]].strip())
        units.append(_Unit(span, group, is_text))
        last = span[1]
    return units


def _kept_spans(line: str, unknown_spans: Sequence[Span]) -> list[tuple[Span, bool]]:
    """Placeholders and what cannot be spelled, in order: where, and whether it is the latter.

    A number with digits that cannot be spelled is taken as a whole.
    """
    numbers = find_numbers(line) if unknown_spans else []
    starts = [start for start, _ in numbers]
    found = [(span, False) for span in _placeholders(line)]
    for start, end in unknown_spans:
        number = numbers[bisect_right(starts, start) - 1] if starts and starts[0] <= start else (end, end)
        found.append(
            ((min(start, number[0]), max(end, number[1])) if number[1] > start else (start, end), True)
        )
    merged: list[tuple[Span, bool]] = []
    for span, is_text in sorted(found):
        if merged and span[0] < merged[-1][0][1]:
            (first, last), was_text = merged.pop()
            span, is_text = (first, max(last, span[1])), was_text and is_text
        merged.append((span, is_text))
    return merged


def _placeholders(line: str) -> list[Span]:
    """Where mark-up, placeholders, URLs and addresses stand; with the quotes or brackets around one of the latter."""
    spans: list[Span] = []
    for match in _KEPT.finditer(line):
        start, end = match.span()
        if match["url"]:
            end = start + len(_without_marks(match["url"]))
        last = spans[-1][1] if spans else 0
        while not match["markup"] and start > last and _BRACKETS.get(line[start - 1]) == line[end : end + 1]:
            start, end = start - 1, end + 1
        spans.append((start, end))
    return spans


def _without_marks(url: str) -> str:
    """A URL without the marks behind it that are the sentence's, such as a bracket that was not opened in it."""
    surplus = {")": url.count(")") - url.count("("), "]": url.count("]") - url.count("[")}
    end = len(url)
    while url[end - 1] in ".,;:!?'…" or surplus.get(url[end - 1], 0) > 0:
        end -= 1
        surplus[url[end]] = surplus.get(url[end], 0) - 1
    return url[:end]
