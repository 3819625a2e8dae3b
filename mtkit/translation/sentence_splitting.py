"""Splits long lines at sentence ends, and sentences that are still too long at clauses or words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal

from mtkit.data.segmentation import Span
from mtkit.languages import HAN_AND_KANA, UNSPACED

_PREFERRED_BREAKS = ".!?;:,،؛"
_FULL_WIDTH_BREAKS = "。｡！？；：，、"  # These are not followed by a space.

Boundary = Literal["sentence", "words", "word"]
"""Place where a line is split: between two sentences, between two words, or inside a word."""

_ENGLISH = "mr mrs ms dr prof st vs etc e.g i.e cf no vol fig approx jr sr inc ltd co corp gen sen rep gov"
_GERMAN = "z.b bzw ca nr usw vgl hr fr bspw d.h u.a s.o s.u evtl ggf inkl str tel abs art bd"
_ABBREVIATIONS = frozenset([*_ENGLISH.split(), *_GERMAN.split()])
"""Words, in lower case, after which a full stop does not end a sentence."""

_LONGEST_WORD = 32
"""Characters before a full stop that are searched for an abbreviation or the number of a day; none is longer."""
_CLOSERS = "\"'”’»)\\]」』）"
_OTHER_ENDS = "。｡！？؟۔।॥။።፧։܀-܂។៕᠃"
"""Marks with no other use: of CJK, Arabic, Urdu, Hindi, Burmese, Amharic, Armenian, Syriac, Khmer, Mongolian."""
_END = re.compile(
    rf"""(?<![.!?…])([.!?…]++[{_CLOSERS}]*+)\s++(?=["'“„«(\[¿¡]*+(?P<next>[^\W_]))  # a mark, a space, a letter or digit
        |([{_OTHER_ENDS}][.!?…{_OTHER_ENDS}]*+[{_CLOSERS}]*+)""",
    re.VERBOSE,
)
_LETTER = re.compile(r"[^\W\d_]")
_HAN_OR_KANA, _UNSPACED = re.compile(f"[{HAN_AND_KANA}]"), re.compile(f"[{UNSPACED}]")


def split_sentences(line: str) -> list[str]:
    """Return the sentences of a line, without the spaces between them; nothing else is lost.

    A sentence ends with . ! ? or … (and closing quotes) before a space that no lower-case letter follows, or with a
    mark that has no other use, such as those of Chinese, Arabic and Hindi. A full stop after a known abbreviation, a
    single letter or a number, as in "2. Mai", does not end a sentence.
    """
    return [line[start:end] for start, end in sentence_spans(line)]


def sentence_spans(line: str) -> list[Span]:
    """Return the spans of the sentences of a line, without the spaces between them, in linear time."""
    spans, start = [], 0
    for match in chain(_END.finditer(line), [None]):
        end = len(line) if match is None else match.end(1 if match[1] else 0)
        if match is not None and match[1]:
            # Unlike `islower`, this is false for Georgian, whose sentences begin with no capital.
            if match["next"] != match["next"].title():
                continue
            before = line[max(start, match.start() - _LONGEST_WORD) : match.start()]
            if match[1] == "." and _is_abbreviated(before):
                continue
        text = line[start:end]
        if text.strip():
            spans.append((end - len(text.lstrip()), start + len(text.rstrip())))
        start = end
    return spans


def _is_abbreviated(before: str) -> bool:
    """Return whether a full stop after this text belongs to its last word."""
    word = before.rsplit(maxsplit=1)[-1] if before.strip() else ""
    word = word.lstrip("\"'“„«([")
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isalpha()) or word.isdigit()


def split_point(pieces: Sequence[str], before: Sequence[str], begins_word: Callable[[str, str], bool]) -> int:
    """Return how many pieces come before the cut of a sentence that is too long.

    The cut is after the last clause that ends in the second half, otherwise before the last word that begins there,
    otherwise at the end.

    Args:
        pieces: the pieces of the sentence.
        before: the last character of the text before each piece, other than a space. Pieces are normalized, and do not
            tell whether a comma was a Chinese one.
        begins_word: see `Tokenizer.begins_word`.
    """
    positions = range(len(pieces) // 2 + 1, len(pieces))
    words = [i for i in positions if begins_word(pieces[i], pieces[i - 1])]
    clauses = [i for i in words if before[i] in _PREFERRED_BREAKS]
    clauses += [i for i in positions if before[i] in _FULL_WIDTH_BREAKS]
    return max(clauses or words or [len(pieces)])


def boundary_at(text: str, position: int) -> Boundary:
    """Return the kind of boundary before a character inside a sentence."""
    before, after = text[position - 1 : position], text[position : position + 1]
    spaced = before.isspace() or after.isspace()
    unspaced = _UNSPACED.search(before + after) or before in _FULL_WIDTH_BREAKS
    return "words" if spaced or unspaced else "word"


def join_translations(texts: Sequence[str], boundaries: Sequence[Boundary]) -> tuple[str, list[int]]:
    """Join the translations of the segments of a line.

    Args:
        texts: translation of each segment.
        boundaries: boundary between each segment and the one before it.

    Returns:
        The joined text, and the position in it where each translation begins.
    """
    joined, starts, length, last = list[str](), list[int](), 0, ""
    for text, boundary in zip(texts, boundaries, strict=True):
        space = separator(last, text, boundary)
        joined += [space, text]
        starts.append(length + len(space))
        length, last = starts[-1] + len(text), text or last
    return "".join(joined), starts


def separator(left: str, right: str, boundary: Boundary) -> str:
    """Return what separates the translations of two segments: a space, or nothing.

    The letters on both sides tell the target language: Chinese and Japanese are written without spaces; Thai, Lao,
    Burmese and Khmer without spaces inside a sentence.
    """
    if not left or not right or boundary == "word" or left[-1] in _FULL_WIDTH_BREAKS + "」』":
        return ""
    script = _HAN_OR_KANA if boundary == "sentence" else _UNSPACED
    last, first = _LETTER.search(left[::-1]), _LETTER.search(right)
    return "" if last and first and script.match(last[0]) and script.match(first[0]) else " "
