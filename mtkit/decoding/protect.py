"""What a translation must leave as it is: mark-up tags, URLs, addresses, numbers, and words the model cannot spell.

Numbers stay in the sentence; where the translation lacks one, the search begins again and may not end before they have
appeared (lexical constraints). Tags, URLs, addresses, and words with characters that the vocabulary lacks, are taken
out and put back where the words beside them went, by the alignment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

_MARK = r"</?[A-Za-z][^<>]*>|\{\{[^{}]*\}\}|\{[A-Za-z0-9_]*\}|%\([A-Za-z0-9_]+\)[sdf]|&[a-z]+;"
_ADDRESS = r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?)\]']|[\w.+-]+@[\w-]+\.[\w.-]*\w"
_TAG = f"{_MARK}|{_ADDRESS}"
_NUMBER = r"\d(?:[\d.,:/\u00a0-]*\d)?"
_TAGS = re.compile(_TAG)
_KEPT = re.compile(f"{_ADDRESS}|{_NUMBER}")


@dataclass(frozen=True)
class Inset:
    """What was taken out of a line.

    Args:
        text: the tag or word.
        start, end: the words it surrounds if it is one of a pair of tags; else both number the word after it.
        closes: whether it stands behind the word before it, not before the next.
        glue_before, glue_after: whether no space divided it from its neighbours.
    """

    text: str
    start: int
    end: int
    closes: bool
    glue_before: bool
    glue_after: bool

    def place(self, links: Sequence[tuple[int, int]], num_words: int) -> int:
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
    """A line made ready: what is to be translated, what must appear, what is put back."""

    text: str
    kept: tuple[str, ...]
    insets: tuple[Inset, ...]

    def restore(self, translation: str, links: Sequence[tuple[int, int]]) -> str:
        """The translation with the insets back. Args: links: pairs of source word and target word, from 0."""
        if not self.insets:
            return translation
        words = translation.split()
        before: list[str] = [""] * (len(words) + 1)
        behind: list[str] = [""] * (len(words) + 1)
        for inset in self.insets:
            place = inset.place(links, len(words))
            if inset.closes:
                behind[place] += inset.text if inset.glue_before else f" {inset.text}"
            else:
                before[place] += inset.text if inset.glue_after else f"{inset.text} "
        marked = [f"{b}{word}{a}" for b, word, a in zip(before, words, behind[1:], strict=False)]
        return " ".join(filter(None, (part.strip() for part in (behind[0], *marked, before[-1]))))


def protect(line: str, can_spell: Callable[[str], bool]) -> Protected:
    """Divide a line. Args: can_spell: whether the vocabularies have all characters of a word."""
    insets: list[Inset] = []
    text, place = "", 0
    for match in re.finditer(rf"{_TAG}|[^\s<>]+", line):
        token = match.group()
        if not _TAGS.fullmatch(token) and can_spell(token):
            continue
        text += line[place : match.start()]
        place = match.end()
        glue_before = bool(text) and not line[match.start() - 1].isspace()
        glue_after = place < len(line) and not line[place].isspace()
        closes = token.startswith("</") or (glue_before and not glue_after)
        number = len(text.split())
        insets.append(Inset(token, number, number, closes, glue_before, glue_after))
        text += " " if glue_before and glue_after else ""
    text += line[place:]
    if not insets:
        return Protected(line, tuple(_KEPT.findall(line)), ())
    text = " ".join(text.split())
    return Protected(text, tuple(_KEPT.findall(text)), tuple(pair_tags(insets)))


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
