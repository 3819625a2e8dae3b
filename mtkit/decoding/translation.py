"""What comes out: a translation of a line."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mtkit.decoding.alignment import Aligned, word_numbers


@dataclass(frozen=True)
class Translation:
    """A translation of a line."""

    text: str
    score: float
    """What hypotheses are ranked by; 0 for an empty line, the mean over the parts of a cut line."""
    aligned: tuple[Aligned, ...] = ()
    """Of each part of the line, if the translator keeps attention."""

    def with_text(self, text: str) -> Translation:
        """The same with another text."""
        return replace(self, text=text)

    def word_links(self) -> list[tuple[int, int]]:
        """Pairs of a source word and a target word of the line, from 0. Needs `aligned`."""
        links, first_src, first_tgt = [], 0, 0
        for part in self.aligned:
            links += [(first_src + s, first_tgt + t) for s, t in part.word_links()]
            first_src += max(word_numbers(part.src), default=-1) + 1
            first_tgt += max(word_numbers(part.tgt), default=-1) + 1
        return links
