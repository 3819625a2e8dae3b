"""Target tokens that may follow a complete word or number, and those of a phrase that follows text without a space."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mtkit.data.tokenizer import Tokenizer
from mtkit.languages import HANGUL, UNSPACED

_MARKS = '.;!?)]}…"”»。！？；'

_AFTER_NUMBER = _MARKS + "%‰°€$£¥-–"
"""Commas and colons are left out: 3 is another number than 3,500."""

_AFTER_WORD = _MARKS + ",:“，、："

_DECIMALS = re.compile(r"\.\d")


BEGINS_UNSPACED = re.compile(f"[{UNSPACED}]")
"""Matches a text that begins with a letter of a script without spaces between words."""
_LEAD = "\ue000"
"""A character that no piece has together with others: it stands for the text before a phrase."""


def encode_inside(tgt: Tokenizer, phrases: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the tokens of each phrase where it follows other text without a space, as words of Chinese do.

    Phrases whose first character the vocabulary lacks are left out.
    """
    found = []
    for phrase in phrases:
        line = _LEAD + phrase
        ids, spans = tgt.encode([line])[0].tolist(), tgt.spans(line)
        first = next((i for i, (start, _) in enumerate(spans) if start >= len(_LEAD)), len(ids))
        if first < len(ids) and spans[first][0] == len(_LEAD):
            found.append(tuple(ids[first:]))
    return found


def tokens_after_number(tgt: Tokenizer) -> frozenset[int]:
    """Return the tokens that leave the word or number before them as it is: they begin a word, or with a mark.

    In scripts without spaces a word may begin at any character, and in Korean a particle.
    """
    return frozenset(
        i for i in _tokens_beginning_with(tgt, _AFTER_NUMBER) if not _DECIMALS.match(tgt.piece(i))
    )


def tokens_after_word(tgt: Tokenizer) -> frozenset[int]:
    """Return the tokens that end the word before them: also those with commas and colons, as in `Hund,`."""
    return _tokens_beginning_with(tgt, _AFTER_WORD)


def _tokens_beginning_with(tgt: Tokenizer, characters: str) -> frozenset[int]:
    begins = re.compile(rf"[{re.escape(characters)}{UNSPACED}{HANGUL}]")
    pieces = map(tgt.piece, range(tgt.num_pieces))
    return frozenset(i for i, piece in enumerate(pieces) if begins.match(piece) or tgt.begins_word(piece, ""))


def tokens_inside_word(tgt: Tokenizer) -> frozenset[int]:
    """Return the tokens that no word ends with."""
    return frozenset(i for i in range(tgt.num_pieces) if not tgt.may_end_word(tgt.piece(i)))
