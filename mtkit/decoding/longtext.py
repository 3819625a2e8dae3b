"""Where long text is taken apart: at sentence ends, and sentences that are still too long at clause ends or words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mtkit.data.tokenizer import WORD_START

PREFERRED_CUTS = ".!?;:,"
FULL_WIDTH_CUTS = "。！？；：，、"  # no space follows these
UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Inside the brackets of a regular expression: kana and Han characters, whose words no space divides."""

_ENGLISH = "mr mrs ms dr prof st vs etc e.g i.e cf no vol fig approx jr sr inc ltd co corp gen sen rep gov"
_GERMAN = "z.b bzw ca nr usw vgl hr fr bspw d.h u.a s.o s.u evtl ggf inkl str tel abs art bd"
ABBREVIATIONS = frozenset([*_ENGLISH.split(), *_GERMAN.split()])
"""Words before a full stop that ends no sentence, in lower case."""

_END = re.compile(
    r"""([.!?…]+["'”’»)\]]*)\s+(?=["'“„«(\[¿¡]*[^\W_a-z])   # an end, space, and no small letter after it
        |([。！？]+[」』”’）]*)""",
    re.VERBOSE,
)


def split_sentences(line: str) -> list[str]:
    """The sentences of a line, without the spaces between them. Nothing else is lost: joined, they are the line.

    A sentence ends with . ! ? or … (and closing quotes) before a space and anything but a small letter, or with their
    full-width forms. A full stop after a known abbreviation, a single letter or a number as in "2. Mai" ends none.
    """
    sentences, start = [], 0
    for match in _END.finditer(line):
        end = match.end(1) if match[1] else match.end(2)
        if match[1] == "." and _is_abbreviated(line[start : match.start()]):
            continue
        if line[start:end].strip():
            sentences.append(line[start:end].strip())
        start = end
    rest = line[start:].strip()
    return [*sentences, rest] if rest else sentences


def _is_abbreviated(before: str) -> bool:
    """Whether the full stop after this text belongs to its last word."""
    word = before.rsplit(maxsplit=1)[-1] if before.strip() else ""
    word = word.lstrip("\"'“„«([")
    return word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isalpha()) or word.isdigit()


def cut_place(pieces: Sequence[str]) -> int:
    """Where to cut: at the last clause that ends in the second half, else before the last word, else at the end."""
    places = range(len(pieces) // 2 + 1, len(pieces))
    words = [i for i in places if pieces[i].startswith(WORD_START)]
    clauses = [i for i in words if pieces[i - 1][-1] in PREFERRED_CUTS]
    clauses += [i for i in places if pieces[i - 1][-1] in FULL_WIDTH_CUTS]
    return max(clauses or words or [len(pieces)])
