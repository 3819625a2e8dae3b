"""Truecasing: lines in capitals are translated in their usual case, and the translations put into capitals.

A model has seen few words in capitals, and has to spell them letter by letter. Its vocabulary tells how a word is
usually written: of its forms, that one has the fewest tokens. (Lita et al. 2003 count the forms of words in a corpus
instead; a vocabulary was learned from one, and models of other toolkits have theirs too.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mtkit.data.perturbation import title
from mtkit.data.tokenizer import Tokenizer

_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*$""")


def is_in_capitals(text: str) -> bool:
    """Return whether a text has several letters, all of them capitals; a German ß may stand between them."""
    return text.replace("ß", "").isupper() and sum(map(str.isupper, text)) > 1


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
