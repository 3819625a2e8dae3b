"""Truecasing: lines in capitals or title case are translated in their usual case, and the translations put into theirs.

A model has seen few words in capitals, and has to spell them letter by letter; so are most Words That Begin With A
Capital new to it. Its vocabulary tells how a word is
usually written: of its forms, that one has the fewest tokens. (Lita et al. 2003 count the forms of words in a corpus
instead; a vocabulary was learned from one, and models of other toolkits have theirs too.)
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence

from mtkit.data.perturbation import title, upper
from mtkit.data.tokenizer import Tokenizer

_WORD = re.compile(r"\S+")
_MIN_CAPITALS = 3
"""Words that begin with a capital, at least, in title case."""
_SHORT_WORD = 3
"""Letters of the words that titles may have in lower case, such as "of the"."""
_LETTERS = re.compile(r"(?<!\S)[^\w\s]*(\w)[\w’']*")
_SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*$""")


def usual_case(text: str, tokenizer: Tokenizer) -> tuple[str, Callable[[str], str] | None]:
    """Return a line in its usual case, and what brings its translation into the case of the line.

    Returns:
        The line as it is, and None, unless it is in capitals or title case. What looks like title case is so if half of
        its capitals are usually small letters; else it is a row of names, or German.
    """
    if is_in_capitals(text):
        usual = truecase(text, tokenizer)
        return (usual, upper) if usual != text else (text, None)
    num_capitals = count_title_words(text)
    if num_capitals:
        usual = truecase(text, tokenizer)
        if 2 * sum(map(operator.ne, text, usual)) >= num_capitals:
            return usual, title
    return text, None


def count_title_words(text: str) -> int:
    """Return how many words begin with a capital; 0 if it is no title, because a word of some length does not."""
    num_capitals = 0
    for word in _LETTERS.finditer(text):
        if word[1].isupper():
            num_capitals += 1
        elif len(word[0]) > _SHORT_WORD:
            return 0
    return num_capitals if num_capitals >= _MIN_CAPITALS else 0


def is_in_capitals(text: str) -> bool:
    """Return whether a text has several letters, all of them capitals; a German ß may stand between them."""
    return text.replace("ß", "").isupper() and sum(map(str.isupper, text)) > 1


def truecase(text: str, tokenizer: Tokenizer) -> str:
    """Return a text in capitals or title case in its usual case. It is as long as before.

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
