"""Translating lines of which some texts must come through as they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any


def translate_protected(translator: Any, wanted: Any) -> Any:
    """`translate_n_best` of lines whose numbers, URLs, tags and unknown words come through."""
    from mtkit.decoding.protect import protect
    from mtkit.decoding.translator import Request

    src, tgt = translator.tokenizers.src, translator.tokenizers.tgt

    def can_spell(word: str) -> bool:
        """Whether both vocabularies have its characters: bytes of them are hardly ever copied right."""
        spelled = ((side, side.encode([word])[0].tolist()) for side in (src, tgt))
        return not any(i == side.unk or side.piece(i).startswith("<0x") for side, ids in spelled for i in ids)

    lines: deque[Any] = deque()

    def prepared() -> Iterator[Request]:
        for request in wanted:
            request = Request(request) if isinstance(request, str) else request
            lines.append(protect(request.text, can_spell))
            yield Request(lines[-1].text, request.prefix, request.constraints, lines[-1].kept)

    for best in translator.translate_n_best(prepared()):
        line = lines.popleft()
        best[0] = best[0].with_text(line.restore(best[0].text, best[0].word_links()))
        yield best
