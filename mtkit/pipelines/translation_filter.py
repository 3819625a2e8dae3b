"""Filter of machine translations that are to be training pairs: what is no translation is left out, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

from mtkit.data.tokenizer import Tokenizers
from mtkit.training.diagnosis.outputs import repeats

KEPT = "kept"


@dataclass(frozen=True)
class TranslationFilter:
    """Checks of a line and its translation.

    Attributes:
        tokenizers: those of the model that translates; None for translations from elsewhere, whose characters count.
        max_ratio: largest ratio between the numbers of tokens of the two; None for no limit. Up to three tokens more
            are never too many: short sentences differ for good reasons.
    """

    tokenizers: Tokenizers | None
    max_ratio: float | None = 3.0

    def reasons(self, lines: Sequence[str], translations: Sequence[str]) -> list[str]:
        """Return for each line why its translation is left out, or `KEPT`."""
        src_rows: Sequence[Sized] = lines
        tgt_rows: Sequence[Sized] = translations
        if self.tokenizers is not None:
            src_rows, tgt_rows = self.tokenizers.src.encode(lines), self.tokenizers.tgt.encode(translations)
        return [
            self._reason(line, text, len(src), len(tgt))
            for line, text, src, tgt in zip(lines, translations, src_rows, tgt_rows, strict=True)
        ]

    def _reason(self, line: str, text: str, src_length: int, tgt_length: int) -> str:
        if not line.strip() or not text.strip():
            return "empty"
        if " ".join(line.casefold().split()) == " ".join(text.casefold().split()):
            return "copied"
        shorter, longer = sorted((src_length, tgt_length))
        if self.max_ratio is not None and longer > self.max_ratio * shorter and longer > shorter + 3:
            return "too unequal in length"
        return "repeating themselves" if repeats(text) and not repeats(line) else KEPT


def summary(counts: Mapping[str, int]) -> str:
    """Return counts in a line such as `980 of 1,000 pairs kept; left out: 15 copied, 5 empty`."""
    kept, left_out = counts.get(KEPT, 0), {key: n for key, n in counts.items() if key != KEPT and n}
    text = f"{kept:,} of {sum(counts.values()):,} pairs kept"
    return text + (
        "; left out: " + ", ".join(f"{n:,} {key}" for key, n in left_out.items()) if left_out else ""
    )
