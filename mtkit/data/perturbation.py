"""Perturbations of a line of text: capitals, title case, no final punctuation, typos, random words.

Training augments pairs with them, and `mtkit evaluate --robustness` perturbs test sets. All are pure functions; where
there is chance, only `random()` of the generator is called, whose numbers are the same in every version of Python.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

_FINAL_PUNCTUATION = (
    ".．。｡।॥۔။።։"  # full stops: Latin, wide, Chinese, narrow, Devanagari, Urdu, Burmese, Ethiopic, Armenian
    "។៕།༎᠃܀܁܂"  # Khmer, Tibetan, Mongolian, Syriac
    "…!！՜"
    "?？؟\u037e՞፧"  # U+037E is the question mark of Greek
    ",，､、،၊՝:：፥;；؛፤"
)
"""Characters of which one or several may end a sentence."""

_TYPO_SHARE = 0.1
_MIN_TYPO_LETTERS = 3
"""A shorter word would be another word, or none."""
_AROUND_WORDS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»„“”‚‘’‹›–—¿¡" + _FINAL_PUNCTUATION
"""Characters around a word that do not belong to it."""
_WORD = re.compile(r"[^\s，。、！？；：（）「」『』《》…]+")
_FIRST_LETTER = re.compile(r"(?<!\S)[^\w\s]*\w")

_GEORGIAN = {ord(chr(code).upper()): code for code in range(0x10D0, 0x1100) if chr(code).isalpha()}
"""Small Georgian letters by their capitals."""

_KEYBOARDS = (
    ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    ("йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю"),
    ("ςερτυθιοπ", "ασδφγηξκλ", "ζχψωβνμ"),
    ("ضصثقفغعهخحجد", "شسيبلاتنمكط", "ئءؤرىةوزظ"),
    ("קראטוןםפ", "שדגכעיחלךף", "זסבהנמצתץ"),
)
"""Letters of keyboards, row by row; a row begins about half a key to the right of the one above it."""

_ALPHABETS = (
    ("az",), ("àö", "øÿ"), ("αω",), ("ая",), ("աֆ",), ("את",), ("غي",), ("अह",), ("กฮ",), ("აჰ",), ("ぁん",), ("ァン",),
    ("一鿋",), ("가힣",), ("😀🙏",),
)  # fmt: skip
"""First and last characters of the ranges of which random words are made, and emoji."""


def has_case(text: str) -> bool:
    """Return whether most letters of a text have an upper and a lower case."""
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(letter.lower() != upper(letter) for letter in letters) > len(letters)


def upper(text: str) -> str:
    """Return the text in capitals. Georgian stays: its capitals are in Unicode, but nobody types them."""
    return text.upper().translate(_GEORGIAN)


def title(text: str) -> str:
    """Return the text with a capital at the start of each word, after quotes and brackets; other letters stay."""
    return _FIRST_LETTER.sub(lambda found: found[0][:-1] + found[0][-1].title(), text)


def ends_in_punctuation(text: str) -> bool:
    """Return whether a sentence ends in punctuation, and has more than that."""
    return without_final_punctuation(text) != text


def without_final_punctuation(text: str) -> str:
    """Return the text without the punctuation that ends it; text that has nothing else stays as it is."""
    return text.rstrip(f" {_FINAL_PUNCTUATION}") or text if text[-1:] in _FINAL_PUNCTUATION else text


def add_typos(text: str, rng: random.Random, share: float = _TYPO_SHARE) -> str:
    """Return the text with typing mistakes: letters swapped, left out, doubled, or hit on the next key.

    Only words of at least three letters and marks, without digits and symbols inside, get one. In scripts without
    spaces between words, one is what stands between spaces and punctuation marks.

    Args:
        text: a line.
        rng: generator of which only `random()` is called.
        share: probability that such a word gets a typo; at least one of them does.
    """
    words = [(found.start(), found[0]) for found in _WORD.finditer(text)]
    stems = [
        (start + len(word) - len(word.lstrip(_AROUND_WORDS)), word.strip(_AROUND_WORDS))
        for start, word in words
    ]
    chosen = [(start, stem) for start, stem in stems if len(stem) >= _MIN_TYPO_LETTERS and _is_spelled(stem)]
    if not chosen:
        return text
    certain = _index(rng, len(chosen))
    for number, (start, stem) in reversed(list(enumerate(chosen))):
        if rng.random() < share or number == certain:
            text = text[:start] + mistype(stem, rng) + text[start + len(stem) :]
    return text


def _is_spelled(word: str) -> bool:
    """Return whether a word has only letters and marks, such as the vowels of Devanagari and Thai."""
    return all(letter.isalpha() or unicodedata.category(letter).startswith("M") for letter in word)


def mistype(word: str, rng: random.Random) -> str:
    """Return a word with one typing mistake.

    Args:
        word: at least two letters.
        rng: generator of which only `random()` is called.
    """
    swapped = [
        word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        for place, (one, other) in enumerate(pairwise(word))
        if one != other
    ]
    missing = [word[:place] + word[place + 1 :] for place in range(len(word))]
    doubled = [word[:place] + letter + word[place:] for place, letter in enumerate(word)]
    replaced = [
        word[:place] + (near.upper() if letter.isupper() else near) + word[place + 1 :]
        for place, letter in enumerate(word)
        for near in NEIGHBOR_KEYS.get(letter.lower(), "")
    ]
    kinds = [kind for kind in (swapped, missing, doubled, replaced) if kind]
    kind = kinds[_index(rng, len(kinds))]
    return kind[_index(rng, len(kind))]


def random_words(rng: random.Random, max_words: int = 6) -> list[str]:
    """Return words of two to five random characters of one alphabet, or of emoji.

    Args:
        rng: generator of which only `random()` is called.
        max_words: the maximum number of words.
    """
    alphabet = ALPHABETS[_index(rng, len(ALPHABETS))]
    return [
        "".join(alphabet[_index(rng, len(alphabet))] for _ in range(2 + _index(rng, 4)))
        for _ in range(1 + _index(rng, max_words))
    ]


def _index(rng: random.Random, number: int) -> int:
    """Return a random integer from 0 and below `number`."""
    return int(rng.random() * number)


def _neighbor_keys() -> dict[str, str]:
    """Return the letters on the keys around each letter."""
    neighbors = dict[str, str]()
    for rows in _KEYBOARDS:
        places = {
            letter: (column + 0.5 * row, row)
            for row, keys in enumerate(rows)
            for column, letter in enumerate(keys)
        }
        for letter, (x, y) in places.items():
            near = [other for other, (x2, y2) in places.items() if 0 < (x - x2) ** 2 + (y - y2) ** 2 <= 1.25]
            neighbors[letter] = "".join(near)
    return neighbors


def _characters(ranges: Sequence[str]) -> str:
    """Return the letters, and the symbols, in ranges of characters."""
    characters = (chr(code) for ends in ranges for code in range(ord(ends[0]), ord(ends[-1]) + 1))
    return "".join(
        letter for letter in characters if letter.isalpha() or unicodedata.category(letter) == "So"
    )


NEIGHBOR_KEYS = _neighbor_keys()
"""Letters on the keys around each lower-case letter; letters of other keyboards are not there."""
ALPHABETS = tuple(map(_characters, _ALPHABETS))
"""Characters that random words are made of, one string for each script."""
