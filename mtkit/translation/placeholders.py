"""Placeholders: markup, variables, URLs, addresses and unknown characters, which a translation must leave as they are.

They are taken out of a line before it is translated, and put back next to the translations of the words beside them,
by the alignment. Positions are in characters: of the line, of its text (the line without its placeholders), or of the
translation of the text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from unicodedata import category

import numpy as np

from mtkit.data.segmentation import Span
from mtkit.data.tokenizer import Tokenizers
from mtkit.languages import HANGUL, UNSPACED
from mtkit.translation.alignment import Link, word_links
from mtkit.translation.assembly import Translation
from mtkit.translation.numbers import find_numbers

# Time is linear in the length of a line: a match that finds no end is given up where the next of its kind begins.
_QUOTED = r"""(?:"[^"<]*"|'[^'<]*')"""
_MARKUP = "|".join([
    rf"""</?[A-Za-z](?:[^<>"']|{_QUOTED})*+>""",
    r"</?[A-Za-z][^<>]*>",
    r"<!--(?:(?!<!--).)*?-->",
    r"<!\[CDATA\[(?:(?!<!\[CDATA\[).)*?\]\]>",
    r"<[!?][A-Za-z][^<>]*>",
])  # fmt: skip
_VARIABLE = "|".join([
    r"\{\{[^{}]*\}\}|\{%[^{}]*%\}",  # {{ name }}, {% if %}
    r"[$#%]?\{[\w.\[\]-]*(?:![a-z])?(?::[^{}\s]*)?\}",  # {name}, {0:.2f}, ${x}, %{x}
    r"(?<![\d%])%(?:\d+\$|\(\w+\))?[-+#0]*+\d*+(?:\.\d+)?(?:hh?|ll?|[zjt])?[sdiufFxXeEgGc@](?![A-Za-z])|%%",  # %1$s
    r"%\(\w+\)[a-z]",
    r"&(?:[A-Za-z][A-Za-z0-9]*|#\d+|#[xX][0-9A-Fa-f]+);",
])  # fmt: skip
_URL = (
    r"(?:https?://|ftp://|file://|mailto:|www\.)(?=[\w\[])"
    rf"(?:[^\s<>\"“”„«»。！？，、；：（）「」『』《》〈〉【】〔〕،؛؟۔।॥{UNSPACED}{HANGUL}]|(?<=[/=_-])[{HANGUL}]+)+"
)
# Hangul after a letter is a particle, otherwise a name in a path.
_MAIL = r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"
_PROTECTED = re.compile(f"(?P<markup>{_MARKUP})|(?P<url>{_URL})|{_VARIABLE}|{_MAIL}", re.DOTALL)
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
_AFTER_WORDS = ".,;:!?…)]}»”’。，、；：！？،؛؟۔।"
"""Punctuation that directly follows a word, without a space."""


@dataclass(frozen=True)
class Placeholder:
    """A stretch of a line that was taken out.

    Attributes:
        text: the characters.
        span: where they stand in the line.
        start, end: for a tag of a pair the span of the text between the two; otherwise the position in the text, twice.
        opens: whether it belongs to what follows.
        closes: whether it belongs to what precedes; a placeholder that does neither stays before what follows.
        opener: for a closing tag the index of its opening tag among the placeholders of the line.
        glued_before, glued_after: whether it touches the character before and after it.
        in_word: whether it is a part of a word.
    """

    text: str
    span: Span
    start: int
    end: int
    opens: bool = False
    closes: bool = False
    opener: int | None = None
    glued_before: bool = False
    glued_after: bool = False
    in_word: bool = False

    @property
    def position(self) -> int:
        """Position in the text."""
        return self.end if self.opener is not None else self.start


@dataclass(frozen=True)
class ProtectedLine:
    """A line and its placeholders.

    Attributes:
        original: the line.
        text: the line without its placeholders, which is translated.
        placeholders: the placeholders in order.
        origins: for each character of the text its position in the line; -1 for a space that was added.
    """

    original: str
    text: str
    placeholders: tuple[Placeholder, ...] = ()
    origins: tuple[int, ...] = ()

    def restore(self, translation: str, links: Sequence[Link], prefix: str = "") -> tuple[str, list[Link]]:
        """Put the placeholders into the translation of the text.

        Args:
            translation: the translation of the text.
            links: its links with the text.
            prefix: what the translation had to begin with. If it has placeholders, nothing is put into it, and those
                of the line that it has are left out.

        Returns:
            The translation with the placeholders, and its links with the line.
        """
        if not self.placeholders:
            return translation, list(links)
        trimmed = [Link(_trim(self.text, link.src), _trim(translation, link.tgt)) for link in links]
        trimmed = sorted(link for link in trimmed if link.src[0] < link.src[1] and link.tgt[0] < link.tgt[1])
        locator = _Locator(self.text, translation, trimmed)
        positions = locator.locate(self.placeholders)
        missing = self._missing_in(prefix)
        if len(missing) < len(self.placeholders) or _bare_texts(prefix):
            # Tokenizers may change the spaces of a prefix.
            pattern = r"\s*".join(map(re.escape, "".join(prefix.split())))
            begins = re.match(rf"\s*{pattern}", translation)
            first = locator.word_ends[begins.end()] if begins else 0
            positions = [max(position, first) for position in positions]
        builder = _Builder(translation)
        order = sorted(missing, key=lambda i: (positions[i], self._opens_there(i, positions), i))
        for i in order:
            builder.insert(self.placeholders[i], positions[i])
        text, moved = builder.finish()
        found = [
            Link((self.origins[s], self.origins[end - 1] + 1), (moved[t], moved[last - 1] + 1))
            for (s, end), (t, last) in trimmed
        ]
        for i, start in zip(order, builder.starts, strict=True):
            first = self.placeholders[i].span[0]
            found += [
                Link((first + word.start(), first + word.end()), (start + word.start(), start + word.end()))
                for word in re.finditer(r"\S+", self.placeholders[i].text)
            ]
        return text, found

    def _missing_in(self, prefix: str) -> list[int]:
        """Return the indices of the placeholders that a prefix does not have, or not as often as the line."""
        left, missing = Counter(_bare_texts(prefix)), list[int]()
        for i, placeholder in enumerate(self.placeholders):
            texts = Counter(_bare_texts(placeholder.text))
            if not texts:  # unknown characters
                texts = Counter([placeholder.text])
                left.setdefault(placeholder.text, prefix.count(placeholder.text))
            if texts <= left:
                left.subtract(texts)
            else:
                missing.append(i)
        return missing

    def _opens_there(self, index: int, positions: Sequence[int]) -> bool:
        """Return whether a placeholder comes after those that close what precedes the same position."""
        placeholder = self.placeholders[index]
        if placeholder.opener is not None and positions[placeholder.opener] == positions[index]:
            return True
        return not placeholder.closes


class _Locator:
    """Finds the positions of placeholders in a translation.

    Args:
        text: the text without placeholders.
        translation: its translation.
        links: links between the two, sorted, without spaces at the ends of their spans.
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

    def locate(self, placeholders: Sequence[Placeholder]) -> list[int]:
        """Return the position of each placeholder: never inside a word, unless it was inside one."""
        positions: list[int] = []
        for placeholder in placeholders:
            first = int(np.searchsorted(self.src_ends, placeholder.start, side="right"))
            last = int(np.searchsorted(self.src_starts, placeholder.end, side="left"))
            if placeholder.in_word:
                position = self._in_word(placeholder.position)
            elif first < last and placeholder.opens:
                position = self.word_starts[self.tgt_starts[first:last].min()]
            elif first < last and placeholder.opener is not None:
                position = self.word_ends[self.tgt_ends[first:last].max()]
            elif placeholder.opener is not None:
                position = positions[placeholder.opener]
            elif placeholder.closes:
                position = self._after_previous(placeholder.position)
            else:
                position = self._before_next(placeholder.position)
            positions.append(position)
        return positions

    def _before_next(self, position: int) -> int:
        """Return where the translation of the next linked word begins."""
        first = int(np.searchsorted(self.src_ends, position, side="right"))
        if first == len(self.src_ends):
            return len(self.translation)
        last = int(np.searchsorted(self.src_starts, self.src_starts[first], side="right"))
        return self.word_starts[self.tgt_starts[first:last].min()]

    def _after_previous(self, position: int) -> int:
        """Return where the translation of the previous linked word ends."""
        last = int(np.searchsorted(self.src_starts, position, side="left"))
        if last == 0:
            return 0
        first = int(np.searchsorted(self.src_starts, self.src_starts[last - 1], side="left"))
        return self.word_ends[self.tgt_ends[first:last].max()]

    def _in_word(self, position: int) -> int:
        """Return the same position inside the word if it was copied, otherwise the end of its translation."""
        last = int(np.searchsorted(self.src_starts, position, side="left")) - 1
        if last >= 0 and self.src_ends[last] >= position:
            tgt_start, src_start = int(self.tgt_starts[last]), int(self.src_starts[last])
            copy = self.translation[tgt_start : self.tgt_ends[last]]
            if copy == self.text[src_start : self.src_ends[last]]:
                return tgt_start + position - src_start
        return self._after_previous(position)


class _Builder:
    """Inserts placeholders into a translation, from its beginning to its end.

    Attributes:
        copied: characters of the translation that were copied.
        moved: where each of them is now.
        starts: where each placeholder is, in the order of insertion.
        waiting: the placeholder that was inserted last, while nothing follows it.
    """

    def __init__(self, translation: str) -> None:
        self.translation, self.copied = translation, 0
        self.chunks: list[str] = []
        self.length = 0
        self.moved: list[int] = []
        self.starts: list[int] = []
        self.waiting: Placeholder | None = None

    def insert(self, placeholder: Placeholder, position: int) -> None:
        """Insert a placeholder at a position of the translation; positions must not decrease."""
        self._copy_until(position)
        is_divided = not placeholder.opens and not placeholder.glued_before
        last = self.chunks[-1][-1] if self.chunks else ""
        self._add_space(last, placeholder.text, is_divided, placeholder.in_word)
        self.starts.append(self.length)
        self._add(placeholder.text)
        self.waiting = placeholder

    def finish(self) -> tuple[str, list[int]]:
        """Return the text, and for each character of the translation its position in the text."""
        self._copy_until(len(self.translation))
        return "".join(self.chunks), self.moved

    def _copy_until(self, position: int) -> None:
        text = self.translation[self.copied : position]
        if not text:
            return
        if (placeholder := self.waiting) is not None:
            follows_space = self.translation[max(0, self.copied - 1) : self.copied].isspace()
            is_mark = text[0] in _AFTER_WORDS and not follows_space
            is_divided = not placeholder.glued_after and placeholder.opener is None and not is_mark
            self._add_space(placeholder.text, text, is_divided, placeholder.in_word)
        self.moved += range(self.length, self.length + len(text))
        self.copied, self.waiting = position, None
        self._add(text)

    def _add_space(self, left: str, right: str, is_divided: bool, in_word: bool) -> None:
        """Add a space between two texts if one divides them, or if they would merge into one word without it."""
        makes_one = (
            not in_word and left[-1:].isalnum() and right[0].isalnum() and _LETTER.search(left[-1] + right[0])
        )
        if left and not left[-1].isspace() and not right[0].isspace() and (is_divided or makes_one):
            self._add(" ")

    def _add(self, text: str) -> None:
        self.chunks.append(text)
        self.length += len(text)


def _trim(text: str, span: Span) -> Span:
    """Return the span without the spaces at its ends."""
    inner = text[slice(*span)]
    return span[1] - len(inner.lstrip()), span[0] + len(inner.rstrip())


@dataclass
class _ProtectedSpan:
    """A stretch of a line that becomes a placeholder: a variable, a tag, or several of them with no text between.

    Attributes:
        span: where it stands in the line.
        group: number of stretches of text before it.
        is_unknown: whether it consists of unknown characters only.
        opens: whether it is an opening tag whose closing tag is another protected span.
        opener: for a closing tag the index of its opening tag.
    """

    span: Span
    group: int
    is_unknown: bool
    opens: bool = False
    opener: int | None = None


def unknown_spans(tokenizers: Tokenizers, line: str) -> list[Span]:
    """Return the stretches of a line that no model copies reliably: byte pieces and unknown characters.

    Of those that only the target vocabulary lacks, only symbols count. Letters, digits and punctuation are translated,
    as Latin names are into Russian.
    """
    found = tokenizers.src.unknown_spans(line)
    if tokenizers.joint:
        return found
    of_target = tokenizers.tgt.unknown_spans(line)
    return sorted({*found, *(span for span in of_target if _is_symbol(line[slice(*span)]))})


def _is_symbol(text: str) -> bool:
    """Return whether a text has a symbol, and no letters or digits."""
    has_symbol = any(category(character)[0] not in "PZ" for character in text)
    return has_symbol and not any(map(str.isalnum, text))


def restore_placeholders(line: ProtectedLine, translation: Translation, prefix: str) -> Translation:
    """Return the translation of a line's text with the placeholders of the line; for the prefix see `restore`."""
    if not line.placeholders:
        return translation
    text, links = line.restore(translation.text, translation.char_links, prefix)
    return replace(
        translation, text=text, links=word_links(links, line.original, text), char_links=tuple(links),
        log_probs=(),  # of the tokens of another text
    )  # fmt: skip


def protect(line: str, unknown: Sequence[Span] = (), num_kept: int = 0) -> ProtectedLine:
    """Take the placeholders out of a line.

    Args:
        line: the line.
        unknown: stretches that become placeholders because the vocabulary cannot represent them.
        num_kept: characters at the start of the line that stay, as a tag of the model does that looks like markup.
    """
    spans = _protected_spans(line, [each for each in _single_spans(line, unknown) if each[0][0] >= num_kept])
    if not spans:
        return ProtectedLine(line, line)
    placeholders: list[Placeholder] = []
    origins: list[int] = []
    copied = last_position = 0
    for protected, following in zip(spans, [*spans[1:], None], strict=True):
        start, end = protected.span
        limit = len(line) if following is None else following.span[0]
        _append(line, origins, range(copied, start))
        last = next((line[i] for i in reversed(origins[-2:]) if i >= 0 and not line[i].isspace()), "")
        is_alone = protected.opener is None and not protected.opens
        if is_alone and (not last or last in _AFTER_WORDS):
            while end < limit and line[end] in _AFTER_WORDS:  # without it, these marks would follow no word
                end += 1
        copied = end
        before, after = (line[origins[-1]] if origins and origins[-1] >= 0 else ""), line[end : end + 1]
        glued_before = start > 0 and not line[start - 1].isspace()
        glued_after = bool(after) and not after.isspace()
        in_word = False
        if glued_before and glued_after and _LETTER.match(before) and _LETTER.match(after):
            in_word = protected.is_unknown
            if not in_word:
                origins.append(-1)
        elif before.isspace() and len(origins) > last_position and after and after in _AFTER_WORDS:
            origins.pop()
        is_closing = line.startswith("</", start) or (glued_before and not glued_after)
        before_closing = (
            following is not None and following.opener is not None and not line[end:limit].strip()
        )
        ends_text = len(origins) > last_position and (is_closing or before_closing)
        position = last_position = len(origins)
        pair = placeholders[protected.opener] if protected.opener is not None else None
        placeholders.append(
            Placeholder(
                line[start:end],
                (start, end),
                start=position if pair is None else pair.start,
                end=position,
                opens=protected.opens,
                closes=pair is not None or ends_text,
                opener=protected.opener,
                glued_before=glued_before,
                glued_after=glued_after,
                in_word=in_word,
            )
        )
    _append(line, origins, range(copied, len(line)))
    while origins and (origins[-1] < 0 or line[origins[-1]].isspace()):
        origins.pop()
    text = "".join(line[i] if i >= 0 else " " for i in origins)
    ends = {found.opener: found.end for found in placeholders if found.opener is not None}
    paired = (replace(found, end=ends.get(i, found.end)) for i, found in enumerate(placeholders))
    return ProtectedLine(line, text, tuple(paired), tuple(origins))


def _append(line: str, origins: list[int], positions: range) -> None:
    """Append characters of the line to the text, except spaces that follow a space."""
    for position in positions:
        after_space = not origins or origins[-1] < 0 or line[origins[-1]].isspace()
        if not (after_space and line[position].isspace()):
            origins.append(position)


def _protected_spans(line: str, single: Sequence[tuple[Span, bool]]) -> list[_ProtectedSpan]:
    """Return the stretches of a line that become placeholders, in order, from `_single_spans`.

    An element without text, such as `<p></p>`, becomes one placeholder, and so do neighbors with no text between them:
    their order is kept.
    """
    found, merged = _grouped_spans(line, single), list[_ProtectedSpan]()
    closers = _matching_tags([line[slice(*span.span)] for span in found])
    openers: dict[int, int] = {}  # index of a closing tag in `found`: index of its opening tag in `merged`
    done = 0  # how many of `found` are in `merged`
    for i, span in enumerate(found):
        if i < done:
            continue
        last = closers.get(i, i)
        if span.group == found[last].group:
            whole = (span.span[0], found[last].span[1])
            span = _ProtectedSpan(whole, span.group, span.is_unknown, opener=openers.get(i))
            done = last + 1
        else:
            span.opens, openers[last] = True, len(merged)
        before = merged[-1] if merged else None
        is_alone = not span.opens and span.opener is None
        if before and is_alone and not before.opens and before.opener is None and before.group == span.group:
            before.span = (before.span[0], span.span[1])
            before.is_unknown = before.is_unknown and span.is_unknown
        else:
            merged.append(span)
    return merged


def _matching_tags(texts: Sequence[str]) -> dict[int, int]:
    """Return the index of the closing tag for the index of each opening tag that has one."""
    pairs: dict[int, int] = {}
    open_tags: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        tag = _ELEMENT.match(text)
        if tag is None or text.endswith("/>"):
            continue
        if not tag[1]:
            open_tags[tag[2]].append(index)
        elif open_tags[tag[2]]:
            pairs[open_tags[tag[2]].pop()] = index
    return pairs


def _grouped_spans(line: str, single: Sequence[tuple[Span, bool]]) -> list[_ProtectedSpan]:
    """Return the spans with the number of stretches of text before each."""
    spans, group, last = list[_ProtectedSpan](), 0, 0
    for span, is_unknown in single:
        group += bool(line[last : span[0]].strip())
        spans.append(_ProtectedSpan(span, group, is_unknown))
        last = span[1]
    return spans


def _single_spans(line: str, unknown: Sequence[Span]) -> list[tuple[Span, bool]]:
    """Return markup, variables, URLs, addresses and unknown characters in order; True for those of the last kind.

    A number with unknown digits is taken as a whole. Overlapping spans become one.
    """
    numbers = find_numbers(line) if unknown else []
    starts = [start for start, _ in numbers]
    found = [(span, False) for span in _known_spans(line)]
    for start, end in unknown:
        number = numbers[bisect_right(starts, start) - 1] if starts and starts[0] <= start else (end, end)
        whole = (min(start, number[0]), max(end, number[1])) if number[1] > start else (start, end)
        found.append((whole, True))
    merged: list[tuple[Span, bool]] = []
    for span, is_unknown in sorted(found):
        if merged and span[0] < merged[-1][0][1]:
            (first, last), was_unknown = merged.pop()
            span, is_unknown = (first, max(last, span[1])), was_unknown and is_unknown
        merged.append((span, is_unknown))
    return merged


def _known_spans(line: str) -> list[Span]:
    """Return the spans of markup, variables, URLs and addresses; all but markup with quotes or brackets around them."""
    spans: list[Span] = []
    for match in _PROTECTED.finditer(line):
        start, end = match.span()
        if match["url"]:
            end = start + len(_without_final_marks(match["url"]))
        last = spans[-1][1] if spans else 0
        while not match["markup"] and start > last and _BRACKETS.get(line[start - 1]) == line[end : end + 1]:
            start, end = start - 1, end + 1
        spans.append((start, end))
    return spans


def _bare_texts(text: str) -> list[str]:
    """Return the markup, variables, URLs and addresses of a text, without quotes or brackets around them."""
    found = _PROTECTED.finditer(text)
    return [_without_final_marks(match[0]) if match["url"] else match[0] for match in found]


def _without_final_marks(url: str) -> str:
    """Return a URL without final punctuation of the sentence, such as a bracket that was not opened in the URL."""
    surplus = {")": url.count(")") - url.count("("), "]": url.count("]") - url.count("[")}
    end = len(url)
    while url[end - 1] in ".,;:!?'…" or surplus.get(url[end - 1], 0) > 0:
        end -= 1
        surplus[url[end]] = surplus.get(url[end], 0) - 1
    return url[:end]
