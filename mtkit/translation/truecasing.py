"""Truecasing: lines in capitals or title case are translated in their usual case, and the translations put into theirs.

A model has seen few words in capitals, and has to spell them letter by letter; most Words That Begin With A Capital are
new to it too. Its vocabulary tells how a word is usually written: of its forms, that one has the fewest tokens. (Lita
et al. 2003 count the forms of words in a corpus instead; a vocabulary was learned from one, and models of other
toolkits have theirs too.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from unicodedata import category

from mtkit.data.perturbation import title, upper
from mtkit.data.tokenizer import Tokenizer

_WORD = re.compile(r"\S+")
_IN_ADDRESSES = re.compile(r"[@<>/\\]|\w[.:]\w")
"""What no word has that may change its case: addresses, markup, abbreviations."""
_LETTERS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_MIN_TITLE_WORDS = 3
"""Words of a title, at least, that begin with a capital."""
_MIN_LOWERED = 2
"""Words of a title, at least, that are usually in lower case, if it has words in lower case."""
_MANY_TOKENS = 3
"""Tokens of a word that the vocabulary does not know: its letters tell nothing."""
_SHORT_WORD = 3
"""Letters of the words that may be in lower case in a title, such as "of the"."""
_SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*$""")


def usual_case(text: str, tokenizer: Tokenizer) -> tuple[str, Callable[[str], str] | None]:
    """Return a line in its usual case, and what brings its translation into the case of the line.

    Returns:
        The line as it is, and None, unless it is in capitals or title case.
    """
    if is_in_capitals(text):
        usual = truecase(text, tokenizer)
        return (usual, upper) if usual != text else (text, None)
    if may_be_title(text):
        usual = _lower_title(text, tokenizer)
        return (usual, restore_title) if usual != text else (text, None)
    return text, None


def may_be_title(text: str) -> bool:
    """Return whether several words begin with a capital, all long ones do, and twice as many as do not.

    A text with letters that have no case, as Chinese and Arabic ones, is no title: its Latin words are names.
    """
    num_capitalized = num_small = 0
    for word in _WORD.findall(text):
        letters = _LETTERS.search(word)
        if letters is None or _IN_ADDRESSES.search(word):
            continue
        if _is_capitalized(letters[0]):
            num_capitalized += 1
        elif letters[0].islower():
            if len(letters[0]) > _SHORT_WORD:
                return False
            num_small += 1
    is_title = num_capitalized >= max(_MIN_TITLE_WORDS, 2 * num_small)
    return is_title and not _has_caseless_letters(text)


def _is_capitalized(letters: str) -> bool:
    """Return whether a word begins with its only capital."""
    return letters[0].isupper() and letters[1:] == letters[1:].lower()


def _lower_title(text: str, tokenizer: Tokenizer) -> str:
    """Return a title with those words in lower case that usually are, as long as before; as it is if it is none.

    A line is no title but a row of names, or German, unless half of the words that begin with a capital, but for the
    first one of a sentence, are known to be usual in lower case: with fewer tokens then, one or two, or with one that
    comes earlier in the vocabulary, which is that of more frequent ones. In a title, all words with as few tokens are
    in lower case.
    """
    spans, starts, has_small = list[tuple[int, int]](), True, False
    for word in _WORD.finditer(text):
        letters = _LETTERS.search(word[0])
        if letters is not None and not _IN_ADDRESSES.search(word[0]):
            if not starts and _is_capitalized(letters[0]) and len(word[0].lower()) == len(word[0]):
                spans.append(word.span())
            starts, has_small = False, has_small or letters[0].islower()
        starts = starts or _SENTENCE_END.search(word[0]) is not None
    words = [text[start:end] for start, end in spans]
    encoded = [ids.tolist() for ids in tokenizer.encode([*words, *map(str.lower, words)])]
    num_known, lowered = 0, list[tuple[int, int]]()
    for span, ids, lower in zip(spans, encoded, encoded[len(words) :], strict=False):
        is_earlier = len(lower) == len(ids) == 1 and lower < ids
        num_known += is_earlier or len(lower) < min(len(ids), _MANY_TOKENS)
        if is_earlier or len(lower) <= len(ids) - (span[1] - span[0] == 1):
            lowered.append(span)
    if num_known < max(_MIN_LOWERED if has_small else 1, len(spans) / 2):
        return text
    for start, end in lowered:
        text = text[:start] + text[start:end].lower() + text[end:]
    return text


def restore_title(text: str) -> str:
    """Return a text with a capital at the start of each word, but for addresses and markup. It is as long as before."""

    def restored(word: re.Match[str]) -> str:
        capitalized = title(word[0])
        return word[0] if _IN_ADDRESSES.search(word[0]) or len(capitalized) != len(word[0]) else capitalized

    return _WORD.sub(restored, text)


def is_in_capitals(text: str) -> bool:
    """Return whether a text has several letters, all of them capitals; a German ß may stand between them.

    A text with letters that have no case, as Chinese and Arabic ones, is not: its capitals are those of acronyms.
    """
    is_upper = text.replace("ß", "").isupper() and sum(map(str.isupper, text)) > 1
    return is_upper and not _has_caseless_letters(text)


def _has_caseless_letters(text: str) -> bool:
    """Return whether a text has letters without case, beside those of ordinal numbers, as in 1º."""
    return not text.isascii() and any(category(letter) == "Lo" and letter not in "ªº" for letter in text)


def truecase(text: str, tokenizer: Tokenizer) -> str:
    """Return a text in capitals in its usual case. It is as long as before.

    Where words in lower case have as few tokens, they are lower-case, but for the first one of a sentence. A single
    letter is in the case whose tokens come first in the vocabulary, which is that of the more frequent ones.
    """
    words, starts = _WORD.findall(text), True
    forms: list[Sequence[str]] = []
    for word in words:
        lower = word.lower()
        all_forms = (title(lower), word) if starts else (lower, title(lower), word)
        forms.append([form for form in all_forms if len(form) == len(word)] or [word])
        starts = _SENTENCE_END.search(word) is not None
    encoded = iter(tokenizer.encode([form for of_word in forms for form in of_word]))

    def usual(of_word: Sequence[str]) -> str:
        is_letter = sum(map(str.isalpha, of_word[0])) == 1
        costs = [(len(ids), int(sum(ids)) if is_letter else 0) for ids in (next(encoded) for _ in of_word)]
        return of_word[costs.index(min(costs))]

    usual_forms = iter([usual(of_word) for of_word in forms])
    return _WORD.sub(lambda _: next(usual_forms), text)
