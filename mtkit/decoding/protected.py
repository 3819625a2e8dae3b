"""Translating with everything that `protect` protects: taken out before, put back afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mtkit.data.tokenizer import Tokenizers
from mtkit.decoding.options import DEFAULT_OPTIONS, TranslateOptions
from mtkit.decoding.protect import Protected, protect
from mtkit.decoding.requests import Request
from mtkit.decoding.translation import Translation
from mtkit.decoding.translator import Translator


def translate_protected(
    translator: Translator, lines: Iterable[str | Request], options: TranslateOptions = DEFAULT_OPTIONS
) -> Iterator[list[Translation]]:
    """`translate_n_best` of lines whose numbers, URLs, tags and unknown words come through.

    Their links, if `options` keep them, are between the words of the lines and those of the translations as
    they are given. Raises: DataError: see there.
    """
    waiting: deque[tuple[str, Protected]] = deque()

    def prepared() -> Iterator[Request]:
        for request in map(Request.of, lines):
            line = protect(request.text, lambda word: can_spell(translator.tokenizers, word))
            waiting.append((request.text, line))
            links = request.links or bool(line.insets)  # they say where what was taken out goes
            yield replace(request, text=line.text, kept=line.kept, links=links)

    for translations in translator.translate_n_best(prepared(), options):
        text, line = waiting.popleft()
        if (fault := translations[0].fault) is not None:
            yield [Translation.none_of(text, fault, options.on_error)]
        else:
            yield [restored(line, translation) for translation in translations]


def restored(line: Protected, translation: Translation) -> Translation:
    """The translation with what was taken out of the line."""
    text, links = line.restore(translation.text, translation.links)
    return replace(translation, text=text, links=tuple(links))


def can_spell(tokenizers: Tokenizers, word: str) -> bool:
    """Whether both vocabularies have the word's characters: bytes of them are hardly ever copied right."""
    for side in (tokenizers.src, tokenizers.tgt):
        if any(i == side.unk or side.piece(i).startswith("<0x") for i in side.encode([word])[0].tolist()):
            return False
    return True
