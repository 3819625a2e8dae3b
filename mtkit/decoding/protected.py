"""Translating with everything that `protect` protects: taken out before, put back afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mtkit.data.tokenizer import Tokenizers
from mtkit.decoding.protect import Protected, protect
from mtkit.decoding.requests import Request
from mtkit.decoding.translation import Translation
from mtkit.decoding.translator import Translator


def translate_protected(
    translator: Translator, lines: Iterable[str | Request]
) -> Iterator[list[Translation]]:
    """`translate_n_best` of lines whose numbers, URLs, tags and unknown words come through.

    The translator must keep attention. Raises: DataError: see there.
    """
    waiting: deque[Protected] = deque()

    def prepared() -> Iterator[Request]:
        for request in map(Request.of, lines):
            waiting.append(protect(request.text, lambda word: can_spell(translator.tokenizers, word)))
            yield replace(request, text=waiting[-1].text, kept=waiting[-1].kept)

    for best in translator.translate_n_best(prepared()):
        line = waiting.popleft()
        best[0] = best[0].with_text(line.restore(best[0].text, best[0].word_links()))
        yield best


def can_spell(tokenizers: Tokenizers, word: str) -> bool:
    """Whether both vocabularies have the word's characters: bytes of them are hardly ever copied right."""
    for side in (tokenizers.src, tokenizers.tgt):
        if any(i == side.unk or side.piece(i).startswith("<0x") for i in side.encode([word])[0].tolist()):
            return False
    return True
