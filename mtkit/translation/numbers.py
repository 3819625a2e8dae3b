"""Finds numbers in a text, and checks whether a translation has them in the notation of its own language."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import permutations

from mtkit.languages import HANGUL, UNSPACED

_SPELLED_OUT = frozenset(map(str, range(13)))
"""Numbers that are often spelled out, so that nobody can tell whether a translation has them."""

_GROUPING = ".,'’٬\u00a0\u2009\u202f "
_SEPARATOR = rf"[{_GROUPING}:/٫-]"
_IN_WORD = rf"[^\W{UNSPACED}{HANGUL}]"
_NUMBER = re.compile(
    rf"(?<!{_IN_WORD})(?:\d{{1,3}}(?:[\u00a0\u2009\u202f ]\d{{3}})+(?!\d)|\d(?:[\d.,'’٬٫:/-]*\d)?)(?!{_IN_WORD})"
)
_DATE = re.compile(r"\d{1,4}([/.-])\d{1,2}\1\d{1,4}")


def find_numbers(text: str) -> list[tuple[int, int]]:
    """Return the spans of the numbers that are not part of a word."""
    return [match.span() for match in _NUMBER.finditer(text)]


def required_numbers(text: str) -> tuple[str, ...]:
    """Return the different numbers of a text that its translation must have as digits, in order."""
    found = dict.fromkeys(text[start:end] for start, end in find_numbers(text))
    return tuple(number for number in found if _in_ascii(number) not in _SPELLED_OUT)


def has_number(text: str, number: str) -> bool:
    """Return whether a text has a number, with any separators: 3,5 is 3.5; 1.000, 1 000 and 1000 are 1,000.

    Day, month and year of a date may be in any order, with or without leading zeros.
    """
    return _pattern(number).search(_in_ascii(text)) is not None


def last_span(text: str, number: str) -> tuple[int, int] | None:
    """Return where a text has a number for the last time, in any notation that `has_number` accepts, or None."""
    spans = [match.span() for match in _pattern(number).finditer(_in_ascii(text))]
    return spans[-1] if spans else None


def number_variants(number: str) -> tuple[str, ...]:
    """Return the number in ASCII digits, with the separators of other languages too, then as it is."""
    given, number = number, _in_ascii(number)
    ways = [number, number.translate(str.maketrans(".,", ",.")), number.replace("/", ".")]
    if all(len(group) == 3 for group in re.findall(r"\d+", number)[1:]):
        ways.append(re.sub(r"\D", "", number))
    return tuple(dict.fromkeys([*ways, given]))


@lru_cache(maxsize=1024)
def _pattern(number: str) -> re.Pattern[str]:
    """Return a pattern that matches the number in all notations."""
    groups = re.findall(r"\d+", _in_ascii(number))
    if _DATE.fullmatch(number):
        orders = permutations([f"0*{int(group)}" for group in groups])
        ways = "|".join(sorted(map(_SEPARATOR.join, orders)))
    else:
        merged = groups[:1]
        for group in groups[1:]:  # three digits after a separator are mostly thousands
            if len(group) == 3:
                merged[-1] += group
            else:
                merged.append(group)
        ways = _SEPARATOR.join(group if len(group) < 4 else f"[{_GROUPING}]?".join(group) for group in merged)
    return re.compile(rf"(?<!{_IN_WORD})(?<!\d[.,])(?:{ways})(?![.,]?\d)(?!{_IN_WORD})")


def _in_ascii(text: str) -> str:
    """Return the text with ASCII digits."""
    return text if text.isascii() else re.sub(r"\d", lambda digit: str(int(digit[0])), text)
