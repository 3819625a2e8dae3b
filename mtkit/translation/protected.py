"""Translating with everything that `protect` protects: taken out before, put back afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mtkit.data.tokenizer import Span, Tokenizers
from mtkit.translation.alignment import word_pairs
from mtkit.translation.assembly import Translation
from mtkit.translation.options import DEFAULT_OPTIONS, TranslateOptions
from mtkit.translation.placeholders import Protected, protect
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator


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
            line = protect(request.text, unknown_spans(translator.tokenizers, request.text))
            waiting.append((request.text, line))
            links = request.links or bool(line.insets)  # they say where what was taken out goes
            yield replace(request, text=line.text, keep_numbers=True, links=links)

    for translations in translator.translate_n_best(prepared(), options):
        text, line = waiting.popleft()
        if (fault := translations[0].fault) is not None:
            yield [Translation.none_of(text, fault, options.on_error)]
        else:
            yield [restored(text, line, translation) for translation in translations]


def restored(line: str, protected: Protected, translation: Translation) -> Translation:
    """The translation with what was taken out of the line."""
    if not protected.insets:
        return translation
    text, links = protected.restore(translation.text, translation.char_links)
    return replace(translation, text=text, links=word_pairs(links, line, text), char_links=tuple(links))


def unknown_spans(tokenizers: Tokenizers, line: str) -> list[Span]:
    """What of a line no model can copy: bytes and unknown characters are hardly ever given back right.

    Letters that only the target vocabulary lacks are not among it: they are translated, as Latin ones into Russian.
    """
    found = tokenizers.src.unknown_spans(line)
    if tokenizers.joint:
        return found
    of_target = tokenizers.tgt.unknown_spans(line)
    return sorted({*found, *(span for span in of_target if not any(map(str.isalpha, line[slice(*span)])))})
