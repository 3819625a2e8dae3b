"""Target tokens that may follow a complete word or number."""

from __future__ import annotations

import re

from mtkit.data.tokenizer import Tokenizer
from mtkit.languages import UNSPACED

_MARKS = '.;!?)]}…"”»。！？；'

_AFTER_NUMBER = _MARKS + "%‰°€$£¥-–"
"""Commas and colons are left out: 3 is another number than 3,500."""

_AFTER_WORD = _MARKS + ",:“，、："

_DECIMALS = re.compile(r"\.\d")


def tokens_after_number(tgt: Tokenizer) -> frozenset[int]:
    """Return the tokens that leave the word or number before them as it is: they begin a word, or with a mark.

    In scripts without spaces a word may begin at any character.
    """
    return frozenset(
        i for i in _tokens_beginning_with(tgt, _AFTER_NUMBER) if not _DECIMALS.match(tgt.piece(i))
    )


def tokens_after_word(tgt: Tokenizer) -> frozenset[int]:
    """Return the tokens that end the word before them: also those with commas and colons, as in `Hund,`."""
    return _tokens_beginning_with(tgt, _AFTER_WORD)


def _tokens_beginning_with(tgt: Tokenizer, characters: str) -> frozenset[int]:
    begins = re.compile(rf"[{re.escape(characters)}{UNSPACED}]")
    pieces = map(tgt.piece, range(tgt.num_pieces))
    return frozenset(i for i, piece in enumerate(pieces) if begins.match(piece) or tgt.begins_word(piece, ""))


def tokens_inside_word(tgt: Tokenizer) -> frozenset[int]:
    """Return the tokens that no word ends with."""
    return frozenset(i for i in range(tgt.num_pieces) if not tgt.may_end_word(tgt.piece(i)))
