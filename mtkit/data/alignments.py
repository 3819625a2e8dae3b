"""Word alignments of training pairs in the Pharaoh format, and the tokens that they link.

In: lines such as `0-0 1-2`, the numbers of a source word and of a target word, as fast_align, eflomal and
`mtkit score --alignment` write them. Out: pairs of tokens.

Words are what stands between white space in the raw text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import cast

from mtkit.data.segmentation import Span
from mtkit.errors import DataError
from mtkit.files import read_lines

WordLinks = tuple[tuple[int, int], ...]
"""Pairs of the index of a source word and of a target word. Words are separated by white space."""

_LINK = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")
VISIBLE = re.compile(r"[^\s\u00ad\u200b-\u200f\u2060\ufeff▁]")
"""Characters other than white space and those that normalization turns into white space or removes."""


class WordIndex:
    """Maps characters of a text to its words, which are separated by white space.

    Attributes:
        numbers: for each character the index of its word; for white space the index of the next word.
        count: number of words.
    """

    def __init__(self, text: str) -> None:
        self.text, self.numbers, number, inside = text, [], 0, False
        for character in text:
            number += inside and character.isspace()
            inside = not character.isspace()
            self.numbers.append(number)
        self.count = number + inside

    def words_in(self, span: Span) -> range:
        """Return the indices of the words that a span overlaps; the next word if it is white space or empty."""
        if not self.count:
            return range(0)
        start, end = span[1], span[0]
        if found := VISIBLE.search(self.text, *span):
            start = found.start()
            end = span[1] - cast(re.Match[str], VISIBLE.search(self.text[slice(*span)][::-1])).start()
        first = self.numbers[start] if start < len(self.text) else self.count
        last = self.numbers[end - 1] if start < end else first
        return range(min(first, self.count - 1), min(last, self.count - 1) + 1)


def read_alignments(path: Path) -> Iterator[WordLinks]:
    """Yield the links of each line of a file.

    Raises:
        DataError: If a line is not in the Pharaoh format (at file:line), or the file cannot be read.
    """
    for number, line in enumerate(read_lines(path), 1):
        matches = [_LINK.fullmatch(link) for link in line.split()]
        if None in matches:
            wrong = line.split()[matches.index(None)]
            hint = "write 0-2 if the first source word became the third target word, with spaces between such links"
            raise DataError(f"{wrong!r:.40} is not a link", where=f"{path}:{number}", hint=hint)
        yield tuple((int(match[1]), int(match[2])) for match in matches if match is not None)


def token_links(
    links: WordLinks, src: str, tgt: str, src_spans: Sequence[Span], tgt_spans: Sequence[Span]
) -> list[int]:
    """Return the tokens that are linked, as source, target, source, target, ..., by target and then source.

    Each token of a source word is linked with each token of a target word that the word is linked with.

    Args:
        links: numbers of words.
        src: the source.
        tgt: the target.
        src_spans: span of each source token, as of `Tokenizer.spans`.
        tgt_spans: span of each target token.

    Raises:
        ValueError: If a number is not that of a word.
    """
    src_tokens, tgt_tokens = _tokens_of_words(src, src_spans), _tokens_of_words(tgt, tgt_spans)
    for side, words, numbers in (
        ("source", src_tokens, [s for s, _ in links]),
        ("target", tgt_tokens, [t for _, t in links]),
    ):
        if numbers and max(numbers) >= len(words):
            raise ValueError(
                f"a link with {side} word {max(numbers)}, but the words are 0 to {len(words) - 1}"
            )
    found = {(t, s) for i, j in links for s, t in product(src_tokens[i], tgt_tokens[j])}
    return [index for t, s in sorted(found) for index in (s, t)]


def _tokens_of_words(text: str, spans: Sequence[Span]) -> list[list[int]]:
    """Return the numbers of the tokens that each word of a text overlaps."""
    words = WordIndex(text)
    tokens: list[list[int]] = [[] for _ in range(words.count)]
    for number, span in enumerate(spans):
        for word in words.words_in(span):
            tokens[word].append(number)
    return tokens
