"""What a translation must leave as it is: mark-up tags, URLs, addresses, numbers, and words the model cannot spell.

Numbers stay in the sentence; where the translation lacks one, the search begins again and may not end before they have
appeared (lexical constraints). Tags, URLs, addresses, and words with characters that the vocabulary lacks, are taken
out and put back where the words beside them went, by the alignment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

_QUOTED = r"""(?:"[^"]*"|'[^']*')"""
_ELEMENT = rf"""</?[A-Za-z](?:[^<>"']|{_QUOTED})*>|</?[A-Za-z][^<>]*>"""
_MARK = rf"{_ELEMENT}|\{{\{{[^{{}}]*\}}\}}|\{{[A-Za-z0-9_]*\}}|%\([A-Za-z0-9_]+\)[sdf]|&[a-z]+;"
_ADDRESS = r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?)\]']|[\w.+-]+@[\w-]+\.[\w.-]*\w"
_TAG = f"{_MARK}|{_ADDRESS}"
_NUMBER = r"\d(?:[\d.,:/\u00a0-]*\d)?"
_TAGS = re.compile(_TAG)
_KEPT = re.compile(f"{_ADDRESS}|{_NUMBER}")


Links = Sequence[tuple[int, int]]
"""Pairs of a source word and a target word, from 0."""


@dataclass(frozen=True)
class Inset:
    """What was taken out of a line.

    Args:
        text: the tag or word.
        words: of the line, those that it is or is a part of.
        start, end: the words it surrounds if it is one of a pair of tags; else both number the word after it.
        closes: whether it stands behind the word before it, not before the next.
        glue_before, glue_after: whether no space divided it from its neighbours.
    """

    text: str
    words: range
    start: int
    end: int
    closes: bool
    glue_before: bool
    glue_after: bool

    def place(self, links: Links, num_words: int) -> int:
        """Before which word of the translation it goes, or behind which (counted from 1) if it closes."""
        inside = [t for s, t in links if self.start <= s < self.end]
        if inside:
            return max(inside) + 1 if self.closes else min(inside)
        if self.closes:
            nearest = max((s for s, _ in links if s < self.end), default=None)
            return max((t + 1 for s, t in links if s == nearest), default=0)
        nearest = min((s for s, _ in links if s >= self.start), default=None)
        return min((t for s, t in links if s == nearest), default=num_words)


@dataclass(frozen=True)
class Protected:
    """A line made ready.

    Attributes:
        text: what is to be translated.
        kept: texts that must appear in the translation.
        insets: what is put back.
        words: of each word of `text`, which word of the line it is or is a part of.
    """

    text: str
    kept: tuple[str, ...]
    insets: tuple[Inset, ...]
    words: tuple[int, ...] = ()

    def restore(self, translation: str, links: Links) -> tuple[str, Links]:
        """The translation with the insets back, and its links with the line.

        Args:
            links: between the words of `text` and those of the translation.
        """
        if not self.insets:
            return translation, links
        words = translation.split()
        builder = TextBuilder()
        closing: list[list[Inset]] = [[] for _ in range(len(words) + 1)]
        opening: list[list[Inset]] = [[] for _ in range(len(words) + 1)]
        for inset in self.insets:
            (closing if inset.closes else opening)[inset.place(links, len(words))].append(inset)
        for inset in closing[0]:
            builder.add(inset.text, inset, glued=inset.glue_before)
        for number, before in enumerate(opening):
            builder.end_word()
            glued = False
            for inset in before:
                builder.add(inset.text, inset, glued)
                glued = inset.glue_after
            if number < len(words):
                builder.add(words[number], number, glued)
                for inset in closing[number + 1]:
                    builder.add(inset.text, inset, glued=inset.glue_before)
        return builder.text, self._links(links, builder)

    def _links(self, links: Links, restored: TextBuilder) -> Links:
        """Links with the words of the line and of the restored translation; insets are linked with themselves."""
        numbers = word_of_each_character(restored.text)
        words: dict[int, int] = {}
        pairs: set[tuple[int, int]] = set()
        for start, end, item in restored.places:
            if isinstance(item, Inset):
                pairs.update(zip(item.words, range(numbers[start], numbers[end - 1] + 1), strict=False))
            else:
                words[item] = numbers[start]
        pairs.update((self.words[s], words[t]) for s, t in links if s < len(self.words) and t in words)
        return sorted(pairs)


class TextBuilder:
    """Puts a text together and remembers where each item of it stands."""

    def __init__(self) -> None:
        self.text, self.is_new_word = "", True
        self.places: list[tuple[int, int, Inset | int]] = []  # start, end, item

    def end_word(self) -> None:
        """What comes next is glued to nothing."""
        self.is_new_word = True

    def add(self, text: str, item: Inset | int, glued: bool) -> None:
        """One more, behind a space if it is not glued to what is there; two words never become one."""
        makes_one = self.text[-1:].isalnum() and text[:1].isalnum()
        if self.text and (self.is_new_word or not glued or makes_one):
            self.text += " "
        self.places.append((len(self.text), len(self.text) + len(text), item))
        self.text, self.is_new_word = self.text + text, False


def word_of_each_character(text: str) -> list[int]:
    """How many words begin before or at each character, less one: of a character of a word the word's number."""
    numbers, number, inside = [], -1, False
    for character in text:
        number += not inside and not character.isspace()
        inside = not character.isspace()
        numbers.append(number)
    return numbers


def protect(line: str, can_spell: Callable[[str], bool]) -> Protected:
    """Divide a line. Args: can_spell: whether the vocabularies have all characters of a word."""
    insets: list[Inset] = []
    text, place = "", 0
    in_line = word_of_each_character(line)
    origins: list[int] = []  # of each character of the text, its word of the line
    for match in re.finditer(rf"{_TAG}|[^\s<>]+", line):
        token = match.group()
        if not _TAGS.fullmatch(token) and can_spell(token):
            continue
        text += line[place : match.start()]
        origins += in_line[place : match.start()]
        place = match.end()
        glue_before = bool(text) and not line[match.start() - 1].isspace()
        glue_after = place < len(line) and not line[place].isspace()
        closes = token.startswith("</") or (glue_before and not glue_after)
        number = len(text.split())
        words = range(in_line[match.start()], in_line[place - 1] + 1)
        insets.append(Inset(token, words, number, number, closes, glue_before, glue_after))
        if glue_before and glue_after:
            text += " "
            origins.append(0)
    text += line[place:]
    origins += in_line[place:]
    if not insets:
        return Protected(line, tuple(_KEPT.findall(line)), ())
    own = tuple(origins[match.start()] for match in re.finditer(r"\S+", text))
    text = " ".join(text.split())
    return Protected(text, tuple(_KEPT.findall(text)), tuple(pair_tags(insets)), own)


def pair_tags(insets: Sequence[Inset]) -> list[Inset]:
    """The same, opening and closing tags of a name each knowing the words between them."""
    paired = list(insets)
    open_tags: list[int] = []
    for number, inset in enumerate(insets):
        name = re.match(r"</?([A-Za-z][\w:-]*)", inset.text)
        if name is None or inset.text.endswith("/>"):
            continue
        if not inset.text.startswith("</"):
            open_tags.append(number)
            continue
        for place in reversed(open_tags):
            if re.match(rf"<{re.escape(name[1])}\b", insets[place].text):
                paired[place] = replace(paired[place], end=inset.start)
                paired[number] = replace(paired[number], start=insets[place].start)
                open_tags.remove(place)
                break
    return paired
