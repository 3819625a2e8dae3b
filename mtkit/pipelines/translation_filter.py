"""Filter of machine translations that are to be training pairs: what is no translation is left out, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtkit.data.tokenizer import Tokenizers
from mtkit.languages import weighted_length
from mtkit.training.diagnosis.outputs import repeats

KEPT = "kept"


@dataclass(frozen=True)
class TranslationFilter:
    """Checks of a line and its translation.

    Attributes:
        tokenizers: those of the model that translates; None for translations from elsewhere, whose characters count,
            those of East Asia as 2.5.
        max_ratio: largest ratio between the numbers of tokens of the two; None for no limit. Up to three tokens more
            are never too many: short sentences differ for good reasons.
    """

    tokenizers: Tokenizers | None
    max_ratio: float | None = 3.0

    def reasons(self, lines: Sequence[str], translations: Sequence[str]) -> list[str]:
        """Return for each line why its translation is left out, or `KEPT`."""
        src_lengths: Iterable[float] = map(weighted_length, lines)
        tgt_lengths: Iterable[float] = map(weighted_length, translations)
        if self.tokenizers is not None:
            src_lengths = map(len, self.tokenizers.src.encode(lines))
            tgt_lengths = map(len, self.tokenizers.tgt.encode(translations))
        found = zip(lines, translations, src_lengths, tgt_lengths, strict=True)
        return [self._reason(*each) for each in found]

    def _reason(self, line: str, text: str, src_length: float, tgt_length: float) -> str:
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
